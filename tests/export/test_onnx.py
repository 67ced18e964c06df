"""Exported networks in ONNX Runtime: equal to the model, sparse where they were, refused where they are not right."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ACT, PACT, SACT, Perforate
from accel.cli import main
from accel.errors import ConversionError
from accel.export import onnx as exporting
from accel.tests.nn.halting_nets import spread_scores
from accel.zoo import onnx_models
from accel.zoo.registry import default_rules, get_model

STANDARD = {"", "ai.onnx"}


class Net(nn.Module):
    """A norm, a sum, a pooling, a concatenation, a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.join = nn.Conv2d(32, 16, 1)
        self.last = nn.Linear(16, 5)
        for tensor in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean, self.norm.running_var):
            tensor.uniform_(0.5, 1.5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = F.relu(self.a(x)) + x
        return self.last(F.relu(self.join(torch.cat([self.b(y), y], 1))).mean((2, 3)))


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


X = drawn(2, 3, 24, 20)
SETTINGS = {
    "nearest": {},
    "irregular": {"mask": "uniform"},
    "zero": {"interpolate": "zero"},
    "fitted": {"interpolate": "fitted"},
    "refitted": {"keep": 1 / 3, "interpolate": "fitted", "correct": "weights"},
    "pooling": {"mask": "pooling"},
    "impact": {"mask": "impact"},
    "bf16": {"precision": "bf16"},
    "int8": {"interpolate": "fitted", "precision": "int8"},
    "adaptive": {"mask": "adaptive"},
}
CONFIGS = {name: Perforate(**{"keep": 0.5, "mask": "lattice", **given}) for name, given in SETTINGS.items()}


def converted(config, net=None):
    data = {"calibration": drawn(4, 3, 24, 20)} if config.needs_calibration else {}
    return accel.convert_model((net or Net()).eval(), config, example_inputs=X, **data)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {each.name: x.numpy() for each, x in zip(session.get_inputs(), inputs)}
    return [torch.from_numpy(out) for out in session.run(None, given)]


def domains(path):
    return {node.domain for node in onnx.load(path).graph.node}


@pytest.mark.filterwarnings("ignore:impact maps are resized")
@pytest.mark.parametrize("config", CONFIGS)
def test_it_gives_what_the_model_gives(config, tmp_path):
    net, path = converted(CONFIGS[config]), tmp_path / "net.onnx"
    done = accel.export_onnx(net, path, X)
    (found,) = run(path, X)
    with torch.no_grad():
        expected = net(X)
    rounded = config in ("bf16", "int8")
    step = float(expected.max() - expected.min()) / 255  # of the output as bytes
    close = {"rtol": 0.0, "atol": step} if rounded else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **close)
    assert done.path == path and done.difference <= (0.02 if rounded else 1e-5)
    assert domains(path) <= STANDARD
    names = ("stem", "a", "b", "join")
    assert (done.sparse, tuple(done.dense)) == ((), names) if config == "adaptive" else (names, ())


def test_static_sets_multiply_at_their_positions_alone(tmp_path):
    """The convolutions of the file have outputs of the phases' sizes, not of the map's; the 1x1 one is a product of the
    rows that it reads."""
    path = tmp_path / "net.onnx"
    accel.export_onnx(converted(CONFIGS["nearest"]), path, X)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    sizes = [tuple(shapes[node.output[0]][2:]) for node in model.graph.node if node.op_type == "Conv"]
    assert sizes == [(12, 10)] * 2 + [(6, 5)] * 4  # halves of 24 x 20 and of 12 x 10, in two phases each
    products = [shapes.get(node.output[0]) for node in model.graph.node if node.op_type == "MatMul"]
    assert products == [[2, 60, 16]] and "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_any_number_of_pictures(tmp_path):
    torch.manual_seed(0)
    short = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    for config, net in {"fitted": short, "irregular": None, "adaptive": short}.items():
        net, path = converted(CONFIGS[config], net), tmp_path / f"{config}.onnx"
        accel.export_onnx(net, path, X[:1], dynamic_batch=True)
        for x in (X, drawn(5, 3, 24, 20), X[1:]):
            with torch.no_grad():
                torch.testing.assert_close(run(path, x)[0], net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [ACT(), SACT(), PACT(), PACT(spatial=False)])
def test_adaptive_networks_compute_everything_and_keep_what_their_masks_say(config, tmp_path):
    torch.manual_seed(0)  # of two alike pictures ACT's heads tell apart what rounding may change
    x, path = drawn(2, 3, 32, 32), tmp_path / "net.onnx"
    net = accel.convert_model(get_model("zoo:resnet14_cifar").eval(), config, example_inputs=x)
    net = spread_scores(net, x) if not isinstance(config, PACT) else net
    done = accel.export_onnx(net, path, x)
    with torch.no_grad():
        torch.testing.assert_close(run(path, x)[0], net(x).logits, rtol=1e-3, atol=1e-3)
    assert list(done.dense) == ["layer1", "layer2", "layer3"] and domains(path) <= STANDARD


def test_dense_models_too(tmp_path):
    done = accel.export_onnx(Net().eval(), tmp_path / "net.onnx", X)
    assert (done.sparse, done.dense) == ((), {}) and done.difference < 1e-5


FAMILIES = {"zoo:hed_vgg16": 48, "zoo:demo_resnet": 64, "torchvision:mobilenet_v3_small": 32}


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_the_zoo(name, tmp_path):
    """Every one of them: profiles/cases/exported_zoo.toml."""
    torch.manual_seed(0)
    net = get_model(name, weights="none").eval()
    x = drawn(1, 3, FAMILIES[name], FAMILIES[name])
    fast = accel.convert_model(net, default_rules(name, CONFIGS["nearest"]), example_inputs=x)
    assert accel.export_onnx(fast, tmp_path / "net.onnx", x).difference < 1e-4


def test_several_inputs_by_name(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, left, right):
            return {"sum": self.conv(left) + self.conv(right), "mean": right.mean((2, 3))}

    given = {"left": X, "right": drawn(2, 3, 24, 20) + 1}
    net = accel.convert_model(Two().eval(), CONFIGS["nearest"], example_inputs=given)
    for dynamic in (False, True):
        assert accel.export_onnx(net, tmp_path / "net.onnx", given, dynamic_batch=dynamic).difference < 1e-5


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    write = exporting._write

    def write_wrong(program, path):
        write(program, path)
        model = onnx.load(path)
        bias = next(each for each in model.graph.initializer if each.dims == [16])
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 3, np.float32), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "_write", write_wrong)
    with pytest.raises(ConversionError, match=r"the exported file differs by .* from the model"):
        accel.export_onnx(converted(CONFIGS["nearest"]), tmp_path / "net.onnx", X)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="verify=False: the exported file was not compared"):
        assert accel.export_onnx(Net().eval(), tmp_path / "net.onnx", X, verify=False).difference is None


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(ConversionError, match=r"torch.export cannot export this model \(") as caught:
        accel.export_onnx(Branches().eval(), tmp_path / "net.onnx", X)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(ConversionError, match="inputs are all tensors"):
        accel.export_onnx(nn.Bilinear(2, 2, 2), tmp_path / "net.onnx", (X, [X]), dynamic_batch=True)


NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
"""


def test_the_command_line_out_and_in_again(tmp_path, capsys):
    """A network as ONNX, converted from that file, saved, and exported."""
    (tmp_path / "nets.py").write_text(NETS)
    dense, fast = tmp_path / "dense.onnx", tmp_path / "fast.onnx"
    assert main.main(["export", f"{tmp_path}/nets.py:net", "-o", str(dense), "--size", "24x32"]) == 0
    assert "reads 1x3x24x32; ONNX Runtime's outputs differ from the model's by" in capsys.readouterr().out
    photos = tmp_path / "photos"
    photos.mkdir()
    import PIL.Image

    for k in range(3):
        pixels = (drawn(30, 40, 3) * 50 + 128).clamp(0, 255).byte().roll(k, 0)
        PIL.Image.fromarray(pixels.numpy()).save(photos / f"{k}.png")
    convert = ["convert", str(dense), "--images", str(photos), "--keep", "0.5", "--mask", "lattice", "--quiet"]
    assert main.main([*convert, "-o", str(tmp_path / "out")]) == 0
    saved = ["export", str(tmp_path / "out" / "model"), "-o", str(fast), "--size", "24x32", "--dynamic-batch"]
    assert main.main(saved) == 1
    assert "--source" in capsys.readouterr().err
    assert main.main([*saved, "--source", str(dense)]) == 0
    said = capsys.readouterr().out
    assert "reads Nx3x24x32" in said and "2 perforated layers compute their positions alone there" in said
    assert run(fast, drawn(5, 3, 24, 32))[0].shape == (5, 1, 24, 32)


@pytest.mark.parametrize(
    "content, said",
    [(None, "no file"), (b"no protobuf", "is no ONNX file"), (b"", "is no ONNX file")],
)
def test_files_that_are_none(content, said, tmp_path, capsys):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    assert main.main(["profile", str(path)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_operator_that_nobody_knows(tmp_path, capsys):
    node = onnx.helper.make_node("Nonzero2", ["x"], ["y"], domain="strange")
    kind = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("strange", 1)]
    path = tmp_path / "net.onnx"
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", kind[:1], kind[1:]), opset_imports=opsets), path
    )
    assert main.main(["profile", str(path)]) == 1
    error = capsys.readouterr().err
    assert "onnx2torch cannot read" in error and error.count("\n") == 1


def test_a_network_that_is_read_wrongly_is_refused(tmp_path, capsys, monkeypatch):
    import onnx2torch

    path = tmp_path / "net.onnx"
    accel.export_onnx(Net().eval(), path, X[:1])
    convert = onnx2torch.convert

    def convert_wrong(spec):
        net = convert(spec)
        for parameter in net.parameters():
            parameter.data.mul_(1.01)
        return net

    assert main.main(["profile", str(path), "--quiet"]) == 0
    assert "1x3x24x20" in capsys.readouterr().out  # the size that the file declares
    monkeypatch.setattr(onnx2torch, "convert", convert_wrong)
    assert main.main(["profile", str(path)]) == 1
    assert "from what ONNX Runtime makes of it" in capsys.readouterr().err


def test_weights_that_nodes_give(tmp_path):
    """As other exporters write them."""
    weight = onnx.numpy_helper.from_array(drawn(4, 3, 3, 3).numpy(), "w")
    nodes = [
        onnx.helper.make_node("Constant", [], ["w"], value=weight),
        onnx.helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, size, size])
        for name, channels, size in (("x", 3, 9), ("y", 4, 7))
    )
    path, opset = tmp_path / "net.onnx", [onnx.helper.make_opsetid("", 12)]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=opset), path)
    net = onnx_models.build(str(path))
    given = drawn(1, 3, 9, 9)
    torch.testing.assert_close(net(given), F.conv2d(given, drawn(4, 3, 3, 3)))
    assert [type(each) for each in net.modules() if isinstance(each, nn.Conv2d)] == [nn.Conv2d]
    assert onnx_models.declared_size(str(path)) == (9, 9)


def test_scores_of_nothing_differ_by_the_sigmoid_of_onnx_runtime(tmp_path):
    """They are 1e-6 where that errs by 1e-7; what is further apart, or of another shape, is refused."""
    path = tmp_path / "net.onnx"
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Sigmoid()).eval()
    nn.init.constant_(net[0].bias, -14.0)
    x = drawn(1, 3, 9, 9)
    torch.onnx.export(net, (x,), path, dynamo=True)
    with torch.inference_mode():
        scores = net(x)
    onnx_models.prove(str(path), x, scores)
    onnx_models.prove(str(path), x, scores + 2e-7)
    for wrong in (scores + 1e-3, scores[..., 1:]):
        with pytest.raises(ConversionError, match="from what ONNX Runtime makes of it"):
            onnx_models.prove(str(path), x, wrong)

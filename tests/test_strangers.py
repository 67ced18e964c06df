"""What a stranger sends: damaged ONNX files are refused in one line; nothing of theirs is executed, nothing hangs."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import random
import shutil
import warnings

import pytest
import torch
from torch import nn

import accel
from accel.cli import main, models
from accel.errors import AccelError, WeightsError
from accel.tests.damage import damage_bytes, one_line

EACH = 60
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


@pytest.fixture(autouse=True)
def not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not pathlib.Path("executed").exists()


def small_onnx():
    """A network with every kind of field that a file can get wrong: weights, attributes, constants, shapes."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx brings it")
    pytest.importorskip("onnx2torch", reason="the extra onnx brings it")
    pytest.importorskip("onnxruntime", reason="the extra onnx brings it")
    from onnx import TensorProto, helper, numpy_helper

    weights = [torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(4)]
    tensors = [numpy_helper.from_array(value.numpy(), name) for value, name in zip(weights, "wb")]
    shape = numpy_helper.from_array(torch.tensor([1, -1]).numpy(), "s")
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "s"], ["y"]),
    ]
    given, gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
        for name, sides in (("x", [1, 3, 8, 8]), ("y", [1, 64]))
    )
    graph = helper.make_graph(nodes, "net", [given], [gives], [*tensors, shape])
    return onnx, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def damage_model(file, draw):
    """One field of the graph given another value; in place."""
    graph = file.graph
    node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
    attribute = draw.choice(graph.node[0].attribute)
    name = draw.choice(["", "x", "nobody", "../../x", "/etc/passwd", "y"])
    number = draw.choice([-1, 0, 1, 7, 2**31, 2**62])
    external = draw.choice(["../secret", "/etc/passwd", "nothing", "", "file.onnx"])
    kinds = (
        lambda: setattr(node, "op_type", name),
        lambda: setattr(node, "domain", draw.choice(["evil", "com.microsoft", "ai.onnx.ml"])),
        lambda: node.input.__setitem__(0, name),
        lambda: node.output.__setitem__(0, name),
        lambda: attribute.ints.__setitem__(0, number),
        lambda: setattr(attribute, "name", name),
        lambda: setattr(attribute, "type", draw.randrange(16)),
        lambda: tensor.dims.__setitem__(0, number),
        lambda: setattr(tensor, "data_type", draw.randrange(30)),
        lambda: setattr(tensor, "raw_data", tensor.raw_data[: draw.randrange(9)]),
        lambda: setattr(tensor, "name", name),
        lambda: (setattr(tensor, "data_location", 1), tensor.external_data.add(key="location", value=external)),
        lambda: graph.input[0].type.tensor_type.shape.dim[draw.randrange(4)].__setattr__("dim_value", number),
        lambda: graph.input[0].type.tensor_type.__setattr__("elem_type", draw.randrange(30)),
        lambda: graph.input.pop(),
        lambda: graph.output.pop(),
        lambda: graph.node.pop(draw.randrange(4)),
        lambda: setattr(file.opset_import[0], "version", number),
        lambda: setattr(file, "ir_version", number),
    )
    draw.choice(kinds)()


def read(spec: str) -> None:
    """All that the command line does with a model before it has a number to show."""
    resolved = models.resolve(spec)
    assert len(resolved.size) == 2
    resolved.check(X)


def test_damaged_onnx_files(tmp_path):
    onnx, whole = small_onnx()
    pathlib.Path("../secret").resolve().write_bytes(bytes(range(256)) * 4)
    refused = 0
    for seed in range(EACH):
        draw, path = random.Random(seed), tmp_path / "file.onnx"
        file = onnx.ModelProto()
        file.CopyFrom(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if seed % 3:
                    damage_model(file, draw)
                path.write_bytes(file.SerializeToString())
                if seed % 3 == 0 and seed:
                    damage_bytes(path, draw)
                read(str(path))
            except AccelError as error:
                refused += one_line(error)
                assert seed, error
    assert EACH / 2 < refused < EACH
    assert [found.name for found in tmp_path.iterdir()] == ["file.onnx"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("by", ["pickle", "torch"])
def test_a_checkpoint_with_code_in_it(by, capsys):
    pathlib.Path("run").mkdir()
    state = {"step": 1, "model": Payload(), "optimizer": {}, "random": []}
    with open("run/checkpoint.pt", "wb") as file:
        pickle.dump(state, file) if by == "pickle" else torch.save(state, file)
    sizes = ("sequence.length=4", "cell.hidden=4", "cell.max_steps=2", "data.batch=2", "fit.steps=2")
    changes = [part for size in sizes for part in ("--set", size)]
    assert main.main(["train", "parity", *changes, "-o", "run", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "checkpoint.pt is not a checkpoint of this model" in error and one_line(error.strip())


def converted(folder: pathlib.Path) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    accel.save_converted(accel.convert_model(net, accel.Perforate(keep=0.5), example_inputs=X), folder)
    return net


def test_a_folder_that_names_a_file_to_run(capsys):
    converted(pathlib.Path("sent"))
    pathlib.Path("sent/evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    for name in ("sent/evil.py:net", "zoo:../evil", "torchvision:os.system", ["zoo:x"], None):
        record = {"schema": 1, "model": name, "source": "sent/evil.py:net"}
        pathlib.Path("sent/source.json").write_text(json.dumps(record))
        assert main.main(["profile", "sent", "--size", "8"]) == 1
        assert one_line(capsys.readouterr().err.strip())


@pytest.mark.parametrize("field", ["layers", "linears", "stages", "contiguous", "refused", "aliases", "ranks"])
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "__class__", "0.weight.data", ""])
def test_names_that_lead_elsewhere(field, name):
    net, config = converted(pathlib.Path("sent")), pathlib.Path("sent/config.json")
    data = json.loads(config.read_text())
    if isinstance(data[field], list):
        data[field].append(name)
    else:
        data[field][name] = {"layers": data["layers"]["0"], "ranks": 1, "aliases": name}.get(field, {})
    config.write_text(json.dumps(data))
    try:
        fast = accel.load_converted("sent", net)
    except WeightsError as error:
        assert one_line(error)
    else:  # what is said of nothing that there is does nothing
        assert field in ("contiguous", "refused", "aliases")
        assert torch.equal(fast(X), accel.convert_model(net, accel.Perforate(keep=0.5), example_inputs=X)(X))
    assert sorted(os.listdir()) == ["sent"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "another file", "nowhere"])
def test_what_bears_a_files_name_and_is_none(name, kind):
    net, path = converted(pathlib.Path("sent")), pathlib.Path("sent") / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"endless": "/dev/zero", "another file": "/etc/passwd"}.get(kind, "/nowhere"))
    with pytest.raises(WeightsError) as refusal:
        accel.load_converted("sent", net)
    assert one_line(refusal.value) and name in str(refusal.value) and "root" not in str(refusal.value)


def test_saving_writes_through_no_link():
    net, kept = converted(pathlib.Path("sent")), pathlib.Path("kept")
    kept.write_text("mine")
    for path in pathlib.Path("sent").iterdir():
        path.unlink()
        path.symlink_to(kept.absolute())
    accel.save_converted(accel.convert_model(net, accel.Perforate(keep=0.5), example_inputs=X), "sent")
    assert kept.read_text() == "mine"
    accel.load_converted("sent", net)
    shutil.rmtree("sent")

"""Layers in eight bits: what they compute, how they are calibrated, trained, saved and refused."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers
from accel.errors import ConfigError, ConversionError, DataError, WeightsError
from accel.files import write_tensors
from accel.nn.inference import installed
from accel.nn.quantized import Quantization, floating
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.kernels.named import PAD
from accel.tests.nn.eight_bits import FILLS, WHOLE, convert, pictures


class Residual(nn.Module):
    """A stem, a residual unit with norms, a depthwise convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.Conv2d(12, 12, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.each, self.head = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))) + x)
        return self.head(F.max_pool2d(F.relu(self.each(x)), 2).mean((2, 3)))


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    net = Residual().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, -1.0, 1.5)  # a gain may be negative
    return net


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_eight_bits_lose_little_beside_what_the_fill_loses(dense, fill):
    x, new = pictures(), pictures(seed=2)
    fast, single = (
        convert(dense, FILLS[fill]),
        convert(dense, Perforate(**{**vars_of(FILLS[fill]), "precision": "fp32"})),
    )
    assert all(path.doubt is None for _, path in installed(fast)) and (installed(fast) or fill == "zero")
    assert not torch.equal(fast(new), single(new)), "it ran in fp32"
    assert relative_norm(fast(new), single(new)) < 0.02
    assert relative_norm(fast(x), dense(x)) < relative_norm(single(x), dense(x)) + 0.02
    with floating():
        assert relative_norm(fast(new), single(new)) < (1e-5 if "fitted" not in fill else 0.05)


def vars_of(config):
    data = config.to_dict()
    return {name: value for name, value in data.items() if name not in ("kind", "version")}


GEOMETRIES = [
    {"in_channels": 7, "out_channels": 5, "kernel_size": 3, "padding": 1},
    {"in_channels": 8, "out_channels": 12, "kernel_size": (1, 3), "stride": 2, "groups": 4},
    {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 2, "dilation": 2, "groups": 6},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
]


@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
@torch.no_grad()
def test_a_layer_computes_with_the_numbers_that_its_bytes_stand_for(geometry):
    torch.manual_seed(geometry)
    conv = nn.Conv2d(**GEOMETRIES[geometry])
    x = torch.randn(2, conv.in_channels, 9, 8) + 0.3
    fast = convert(nn.Sequential(conv), x=x)[0]
    found = fast.quantization
    (low, high), inputs = x.aminmax(), found.input
    assert 0 <= inputs.zero_point <= 255 and 0.5 * (high - low) <= 255 * inputs.scale <= 1.01 * (high - low)
    integers = found.integers(fast._weights(None, None), inputs)
    weight = integers.weight.double() * (integers.requantization.multiplier.double() / inputs.scale).view(-1, 1, 1, 1)
    assert relative_norm(weight, conv.weight) < 0.01
    read = (inputs.quantize(x).double() - inputs.zero_point) * inputs.scale
    padded = F.pad(read, [side for side in conv.padding[::-1] for _ in range(2)], mode=PAD[conv.padding_mode])
    out = F.conv2d(padded, weight, None, conv.stride, 0, conv.dilation, conv.groups)
    expected = out + integers.requantization.offset.double().view(-1, 1, 1)
    assert relative_norm(fast(x), expected) < 1e-6
    assert relative_norm(fast.dense_output(x), expected) < 1e-6
    means = (fast(x) - conv(x)).mean((0, 2, 3)).abs() / conv(x).std((0, 2, 3))
    assert means.max() < 0.02, "what rounding takes from the mean goes into the bias"


@torch.no_grad()
def test_rows_are_passed_on_and_read_in_bytes(dense):
    config = Perforate(keep=0.5, mask="lattice", precision="int8")
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    fast = convert(net, config)
    (_, path), x = installed(fast)[0], pictures(seed=3)
    assert path.chains.compact == {"0": ["2"]} and path.doubt is None
    with one_by_one():
        own = fast(x)
    assert torch.equal(fast(x), own)


def test_what_is_trained_is_what_runs(dense):
    fast, x = convert(dense, FILLS["nearest"]), pictures(seed=4)
    with torch.no_grad():
        ran = fast(x)
    assert relative_norm(fast(x).detach(), ran) < 2e-3  # a byte may round the other way
    layer, read = fast.stem, x.clone().requires_grad_()
    out = layer(read)
    with torch.no_grad():
        assert relative_norm(out.detach(), layer(x)) < 1e-5
    out.sum().backward()
    steps = layer.quantization.input
    inside = (x > (0 - steps.zero_point) * steps.scale) & (x < (255 - steps.zero_point) * steps.scale)
    assert layer.weight.grad.abs().min() > 0 and read.grad[inside].abs().max() > 0
    wide = (1e3 * x).requires_grad_()
    layer(wide).sum().backward()
    assert wide.grad[(wide.abs() > 2e3)].abs().max() == 0, "beyond the range nothing moves"


def test_a_step_of_training_is_seen_by_the_integers(dense):
    fast, x = convert(dense), pictures(seed=4)
    fast.train()
    before = fast.eval()(x).detach()
    fast.train()
    optimizer = torch.optim.SGD(fast.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(fast(x), torch.arange(6) % 5)
        loss.backward()
        optimizer.step()
    fast.eval()
    with torch.no_grad():
        now = fast(x)
        assert F.cross_entropy(now, torch.arange(6) % 5) < F.cross_entropy(before, torch.arange(6) % 5)
        assert relative_norm(now, copy.deepcopy(fast)(x)) == 0


@torch.no_grad()
def test_saved_copied_and_reverted(dense, tmp_path):
    fast, x = convert(dense, Rules({"stem": WHOLE, "*": FILLS["fitted"]})), pictures(seed=5)
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, Residual().eval())
    assert torch.equal(loaded(x), fast(x)) and torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert perforated_layers(loaded)["a"].config == FILLS["fitted"]
    plain = accel.revert_model(loaded)
    assert torch.equal(plain(x), dense(x)) and not hasattr(plain.stem, "quantization")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dense.parameters()))


@pytest.mark.parametrize(
    ("key", "value"), [("scale", -1.0), ("scale", float("nan")), ("clip", 0.0), ("zero_point", 300)]
)
def test_a_damaged_folder_is_refused(dense, tmp_path, key, value):
    accel.save_converted(convert(dense), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors[f"quantization:a:{key}"].fill_(value))
    with pytest.raises(WeightsError, match="damaged quantization"):
        accel.load_converted(tmp_path, Residual())


def test_a_folder_without_scales_is_refused(dense, tmp_path):
    accel.save_converted(convert(dense), tmp_path)
    rewrite(tmp_path, lambda t: [t.pop(k) for k in list(t) if k.startswith("quantization:a")])
    with pytest.raises(WeightsError, match="lacks the scales of layer 'a'"):
        accel.load_converted(tmp_path, Residual())


def rewrite(folder, change):
    """Change the saved tensors, and the checksum with them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = accel.serialize._sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


class Twice(nn.Module):
    """One layer that reads two ranges."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x), self.conv(5 * x)


@torch.no_grad()
def test_the_range_holds_every_call_of_a_layer():
    net, x = Twice().eval(), pictures()
    fast = convert(net, x=x)
    for ours, theirs in zip(fast(x), net(x)):
        assert relative_norm(ours, theirs) < 0.1
    assert fast.conv.quantization.input.scale > 3 * convert(nn.Sequential(net.conv), x=x)[0].quantization.input.scale


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.other(x) if x.shape[-1] > 100 else self.conv(x)


def test_bad_calibration_is_refused(dense):
    x = pictures()
    with pytest.raises(ConfigError, match="precision 'int8' of layer 'stem' needs data"):
        accel.convert_model(dense, WHOLE, example_inputs=x)
    with pytest.raises(DataError, match="nothing but zeros"):
        convert(dense, x=torch.zeros(2, 3, 16, 16))
    with pytest.raises(DataError, match=r"NaN|finite"):
        convert(dense, x=torch.full((2, 3, 16, 16), float("nan")))
    with pytest.raises(ValueError, match="NaN or an infinity"), torch.no_grad():
        convert(dense).stem(torch.full((1, 3, 8, 8), float("inf")))


@torch.no_grad()
def test_a_layer_that_no_picture_reaches_stays_in_fp32():
    net = Unreached().eval()
    with pytest.warns(UserWarning, match="left in fp32, as the calibration data never reaches them: other"):
        fast = convert(net)
    wide = torch.randn(1, 3, 8, 104, generator=torch.Generator().manual_seed(0))
    assert relative_norm(fast(wide), net(wide)) < 1e-5 and fast.conv.config == WHOLE
    plan = {name: layer.facts()["note"] for name, layer in perforated_layers(fast).items()}
    assert plan == {"conv": "in int8", "other": None}


def test_one_colour_is_a_range():
    conv = nn.Sequential(nn.Conv2d(3, 4, 1))
    x = torch.full((2, 3, 8, 8), 0.7)
    with torch.no_grad():
        assert relative_norm(convert(conv, x=x)(x), conv(x)) < 0.01


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "int4"}, "unknown precision 'int4': choose one of fp32, bf16, int8"),
        ({"precision": "int8", "mask": "adaptive"}, "mask 'adaptive' chooses positions in each image"),
    ],
)
def test_configurations_that_make_no_sense(given, said):
    with pytest.raises(ConfigError, match=said):
        Perforate(**{"keep": 0.5, **given})


def test_networks_and_searches_that_cannot(dense):
    x = pictures()
    with pytest.raises(ConversionError, match=r"layer 'stem' has torch.float64 weights on cpu"):
        convert(copy.deepcopy(dense).double(), x=x.double())
    with pytest.raises(ConversionError, match=r"no layer can compute in eight bits: 'stem' has torch.float64 weights"):
        accel.search(
            copy.deepcopy(dense).double(),
            example_inputs=x.double(),
            calibration=[x.double()],
            macs=0.7,
            precision="int8",
        )


@torch.no_grad()
def test_a_channel_without_weights_and_one_of_denormal_ones():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    conv.weight[0], conv.weight[1] = 0.0, 1e-42
    x = pictures()
    out = convert(nn.Sequential(conv), x=x)(x)
    assert out.isfinite().all() and relative_norm(out, conv(x)) < 0.02


@torch.no_grad()
def test_a_compiler_sees_one_op(dense):
    fast, x = convert(dense, FILLS["fitted"]), pictures(seed=6)
    run = torch.compile(fast, backend="aot_eager", fullgraph=True)
    assert relative_norm(run(x), fast(x)) < 2e-3  # in another order: a byte may round the other way


@torch.no_grad()
def test_the_plan_names_the_precision(dense):
    plan = accel.plan_conversion(dense, FILLS["nearest"], example_inputs=pictures(2), calibration=[pictures()])
    notes = {row["layer"]: row["note"] for row in plan.rows}
    assert "in int8" in notes["a"] and notes["head"] == "in int8"


@torch.no_grad()
def test_bytes_of_the_user_are_not_taken_for_those_of_a_layer(dense):
    with pytest.raises(TypeError, match=r"x must be float32, got torch.uint8"):
        convert(dense).stem(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@torch.no_grad()
def test_integers_for_two_readers_are_kept_side_by_side(monkeypatch):
    torch.manual_seed(0)
    first, second, third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
    net = nn.Sequential(first, second, first, third).eval()
    fast, x, made = convert(net), pictures(seed=9), []
    assert installed(fast)[0][1].chains.bytes == {"0": ["1", "3"], "1": ["0"]}
    first = fast(x)
    integers = Quantization.integers
    monkeypatch.setattr(Quantization, "integers", lambda self, *given: made.append(1) or integers(self, *given))
    assert torch.equal(fast(x), first) and not made

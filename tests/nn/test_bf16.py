"""Networks in bf16: what their layers compute, how they are trained, saved, reverted and refused."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers
from accel.errors import ConfigError, ConversionError
from accel.kernels.bf16 import multiplies_bf16
from accel.nn.inference import installed
from accel.nn.precision import imitated_bf16
from accel.nn.quantized import floating
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.kernels.named import PAD
from accel.tests.nn.eight_bits import FILLS as BYTE_FILLS
from accel.tests.nn.eight_bits import pictures
from accel.tests.nn.test_quantized import GEOMETRIES, Residual, dense, vars_of  # noqa: F401  a fixture

pytestmark = pytest.mark.filterwarnings("ignore:precision 'bf16'")
FILLS = {n: Perforate(**{**vars_of(config), "precision": "bf16"}) for n, config in BYTE_FILLS.items()}
FILLS["adaptive"] = Perforate(keep=0.5, mask="adaptive", precision="bf16")
WHOLE = FILLS["whole"]
ROUNDING = 2**-8  # the most that a number changes


def convert(net, rules=WHOLE, x=None, **how):
    x = pictures() if x is None else x
    return accel.convert_model(net, rules, example_inputs=x[:2], calibration=[x], **how)


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_bf16_loses_little_beside_what_the_fill_loses(dense, fill):  # noqa: F811
    x, new = pictures(), pictures(seed=2)
    fast = convert(dense, FILLS[fill])
    single = convert(dense, Perforate(**{**vars_of(FILLS[fill]), "precision": "fp32"}))
    assert all(path.doubt is None for _, path in installed(fast)) and (installed(fast) or fill == "zero")
    assert not torch.equal(fast(new), single(new)), "it ran in fp32"
    assert relative_norm(fast(new), single(new)) < 2 * ROUNDING
    assert relative_norm(fast(x), dense(x)) < relative_norm(single(x), dense(x)) + 2 * ROUNDING
    with floating():
        assert relative_norm(fast(new), single(new)) < (1e-5 if "fitted" not in fill else 0.01)


@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
@torch.no_grad()
def test_a_layer_multiplies_rounded_numbers(geometry):
    torch.manual_seed(geometry)
    conv = nn.Conv2d(**GEOMETRIES[geometry])
    x = torch.randn(2, conv.in_channels, 9, 8)
    fast = convert(nn.Sequential(conv), x=x)[0]
    read, weight = x.bfloat16().double(), conv.weight.bfloat16().double()
    padded = F.pad(read, [side for side in conv.padding[::-1] for _ in range(2)], mode=PAD[conv.padding_mode])
    bias = None if conv.bias is None else conv.bias.double()
    expected = F.conv2d(padded, weight, bias, conv.stride, 0, conv.dilation, conv.groups)
    assert relative_norm(fast(x), expected) < 1e-6 and relative_norm(fast.dense_output(x), expected) < 1e-6
    assert relative_norm(conv(x), expected) > 1e-4


@torch.no_grad()
def test_layers_in_a_row_are_one_call_of_the_same_numbers():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 9, 3), nn.Conv2d(9, 9, 3, groups=9), nn.Conv2d(9, 5, 1)]
    net = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU()))).eval()
    fast, x = convert(net, FILLS["nearest"]), pictures(seed=3)
    (_, path) = installed(fast)[0]
    assert path.chains.compact and path.doubt is None
    assert path.chains.bf16 == {"0": ["2"], "2": ["4"], "4": ["6"]}
    fast(x)
    programs = [program for segment in path.rewritten.segments for program in segment._programs.values()]
    assert programs and None not in programs, "it was not replayed"
    with one_by_one():
        own = fast(x)
    assert torch.equal(fast(x), own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relative_norm(copy.deepcopy(fast)(x), own) == 0


@pytest.mark.parametrize(
    ("fill", "passed"),
    [
        ("whole", {"a": ["b"], "b": ["each"]}),  # what the stem gives is added too
        ("nearest", {"a": ["b"], "b": ["each"]}),
        ("fitted", {}),  # sums of rows in fp32
        ("adaptive", {}),  # its mask looks at the input
    ],
)
def test_maps_are_bf16_where_nobody_else_reads_them(dense, fill, passed):  # noqa: F811
    (_, path), *_ = installed(convert(dense, FILLS[fill]))
    assert path.chains.bf16 == passed


@torch.no_grad()
def test_maps_in_bf16_change_no_number(dense, monkeypatch):  # noqa: F811
    x = pictures(seed=7)
    fast = convert(dense, FILLS["nearest"])
    monkeypatch.setattr("accel.nn.pipeline.pass_bf16", lambda *_: None)
    plain = convert(dense, FILLS["nearest"])
    assert not installed(plain)[0][1].chains.bf16 and installed(fast)[0][1].chains.bf16
    assert torch.equal(fast(x), plain(x))
    for net in (fast, plain):
        for layer in net.modules():
            layer.register_forward_hook(lambda *_: None)  # module by module
    assert torch.equal(fast(x), plain(x))


def test_what_is_trained_is_what_runs(dense):  # noqa: F811
    fast, x = convert(dense, FILLS["nearest"]), pictures(seed=4)
    layer, read = fast.stem, x.clone().requires_grad_()
    out = layer(read)
    with torch.no_grad():
        assert relative_norm(out.detach(), layer(x)) < 1e-6
    out.square().sum().backward()
    single = convert(dense, Perforate(keep=0.5, mask="lattice")).stem
    again = x.bfloat16().float().requires_grad_()
    with torch.no_grad():
        single.weight.copy_(layer.weight.bfloat16())
    single(again).square().sum().backward()
    assert relative_norm(read.grad, again.grad) < 1e-5, "gradients pass the rounding"
    assert relative_norm(layer.weight.grad, single.weight.grad) < 1e-5


def test_a_step_of_training_is_seen(dense):  # noqa: F811
    fast, x = convert(dense), pictures(seed=4)
    target = torch.arange(6) % 5
    with torch.no_grad():
        before = F.cross_entropy(fast(x), target)
    optimizer = torch.optim.SGD(fast.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(fast(x), target).backward()
        optimizer.step()
    with torch.no_grad():
        assert F.cross_entropy(fast(x), target) < before
        assert torch.equal(fast(x), copy.deepcopy(fast)(x))


@torch.no_grad()
def test_saved_copied_and_reverted(dense, tmp_path):  # noqa: F811
    rules = Rules({"stem": WHOLE, "a": None, "*": FILLS["fitted"]})
    fast, x = convert(dense, rules), pictures(seed=5)
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, Residual().eval())
    assert torch.equal(loaded(x), fast(x)) and torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert {name: layer.config for name, layer in perforated_layers(loaded).items()} == {
        "stem": WHOLE, "b": FILLS["fitted"], "each": FILLS["fitted"],
    }  # fmt: skip
    plain = accel.revert_model(loaded)
    assert torch.equal(plain(x), dense(x))


def test_nothing_is_calibrated(dense):  # noqa: F811
    assert not WHOLE.needs_calibration and FILLS["fitted"].needs_calibration
    fast = accel.convert_model(dense, FILLS["nearest"], example_inputs=pictures(2))
    assert type(fast.head) is nn.Linear and fast.stem.quantization is None


@torch.no_grad()
def test_a_compiler_sees_one_op(dense):  # noqa: F811
    fast, x = convert(dense, FILLS["nearest"]), pictures(seed=6)
    run = torch.compile(fast, backend="aot_eager", fullgraph=True)
    assert relative_norm(run(x), fast(x)) < ROUNDING  # its norms are not folded into the weights that are rounded


@torch.no_grad()
def test_reports_name_the_precision_and_say_where_it_is_imitated(dense):  # noqa: F811
    x = pictures(2)
    imitated = not multiplies_bf16(torch.device("cpu"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = accel.plan_conversion(dense, FILLS["nearest"], example_inputs=x)
    said = [str(each.message) for each in caught if "bf16" in str(each.message)]
    assert len(said) == imitated and all("no faster than fp32 here" in each and "\n" not in each for each in said)
    notes = {row["layer"]: row["note"] or "" for row in plan.rows}
    assert "in bf16" in notes["a"] and "bf16" not in notes["head"]
    fast = accel.convert_model(dense, FILLS["nearest"], example_inputs=x)
    rows = {row["layer"]: row for row in accel.profile(fast, x, repeats=1).rows}
    assert rows["b"]["precision"] == "bf16" and rows["head"]["precision"] == "fp32"


def test_the_line_says_where_numbers_are_rounded_in_software(dense, monkeypatch):  # noqa: F811
    fast = convert(dense, Rules({"a": WHOLE}))
    monkeypatch.setattr("accel.nn.precision.multiplies_bf16", lambda device: True)
    assert imitated_bf16(fast) is None
    monkeypatch.setattr("accel.nn.precision.multiplies_bf16", lambda device: False)
    assert re.fullmatch(r"precision 'bf16': this CPU has no bf16 instructions \(AVX512_BF16\), .*", imitated_bf16(fast))
    assert imitated_bf16(dense) is None


def test_what_cannot_be_in_bf16_is_refused(dense):  # noqa: F811
    with pytest.raises(ConfigError, match=r"unknown precision 'bf8': choose one of fp32, bf16, int8"):
        Perforate(keep=0.5, precision="bf8")
    x = pictures(2).double()
    with pytest.raises(ConversionError, match=r"layer 'stem' has torch.float64 weights, and bf16 is made of float32"):
        accel.convert_model(copy.deepcopy(dense).double(), WHOLE, example_inputs=x)
    with pytest.raises(ConversionError, match=r"no layer can compute in bf16: 'stem' has torch.float64 weights"):
        accel.search(copy.deepcopy(dense).double(), example_inputs=x, calibration=[x], macs=0.7, precision="bf16")


def test_a_search_finds_rules_in_bf16():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)), pictures(4, 12)
    how = {"example_inputs": x[:2], "calibration": [x]}
    rules = accel.search(net, macs=0.7, precision="bf16", minutes=0.1, **how)
    found = [config for config in rules.values() if config is not None]
    assert {config.precision for config in found} == {"bf16"} and any(config.keep < 1 for config in found)
    assert accel.convert_model(net, rules, **how)[0].config.in_bf16


def test_rules_and_dicts_keep_the_precision():
    rules = Rules({"a.*": WHOLE, "*": None})
    assert Rules.from_dict(rules.to_dict()).get("a.*") == WHOLE

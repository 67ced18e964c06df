"""Linear layers in eight bits: what they compute, and how they are calibrated, trained, saved and refused."""

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.errors import ConfigError, ConversionError, DataError, WeightsError
from accel.nn.quantized import floating
from accel.nn.quantized_linear import QuantizedLinear
from accel.profiling.distances import relative_norm
from accel.tests.nn.eight_bits import WHOLE, convert, pictures


class Net(nn.Module):
    """A convolution, and two linear layers on its means."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).mean((2, 3)))))


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def linear():
    """(a linear layer, the same in eight bits, what it was calibrated on)"""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(7, 5)).eval(), torch.randn(64, 7) + 0.3
    return net[0], convert(net, x=x)[0], x


@torch.no_grad()
def test_it_computes_with_the_numbers_that_its_bytes_stand_for(linear):
    dense, fast, x = linear
    inputs = fast.quantization.input
    integers = fast.quantization.integers(fast._folded.get(fast, None), inputs)
    weight = integers.weight.double().flatten(1) * (integers.requantization.multiplier.double() / inputs.scale)[:, None]
    assert relative_norm(weight, dense.weight) < 0.01
    expected = F.linear((inputs.quantize(x).double() - inputs.zero_point) * inputs.scale, weight)
    expected += integers.requantization.offset.double()
    assert relative_norm(fast(x), expected) < 1e-6 and relative_norm(fast.dense_output(x), expected) < 1e-6
    assert relative_norm(fast(x), dense(x)) < 0.02 and not torch.equal(fast(x), dense(x))
    means = (fast(x) - dense(x)).mean(0).abs() / dense(x).std(0)
    assert means.max() < 0.02, "what rounding takes from the mean goes into the bias"
    with floating():
        assert torch.equal(fast(x), dense(x))


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 0, 7), (0, 7)])
@torch.no_grad()
def test_any_number_of_dimensions_before_the_channels(linear, shape):
    _, fast, x = linear
    given = x.flatten()[: torch.Size(shape).numel()].view(shape)
    found = fast(given)
    assert found.shape == (*shape[:-1], 5) and found.dtype is torch.float32
    rows = [fast(row[None]) for row in given.view(-1, 7)]
    assert torch.equal(found.reshape(-1, 5), torch.cat([found.new_empty(0, 5), *rows]))


def test_the_rules_that_ask_for_eight_bits_reach_linear_layers(dense):
    fast = convert(dense)
    assert type(fast.hidden) is QuantizedLinear and type(fast.head) is QuantizedLinear
    only_convs = convert(dense, Rules({"conv": WHOLE}))
    assert type(only_convs.hidden) is nn.Linear
    one = convert(dense, Rules({"conv": None, "head": WHOLE}))
    assert (type(one.conv), type(one.hidden), type(one.head)) == (nn.Conv2d, nn.Linear, QuantizedLinear)
    spared = convert(dense, Rules({"head": None, "*": WHOLE}))
    assert type(spared.head) is nn.Linear and type(spared.hidden) is QuantizedLinear
    half = convert(dense, Perforate(keep=0.5, mask="lattice", interpolate="fitted", precision="int8"))
    assert type(half.head) is QuantizedLinear
    with pytest.raises(ConfigError, match="head"):
        convert(dense, Rules({"conv": WHOLE, "head": Perforate(keep=0.5)}))
    with pytest.raises(ConfigError, match="pass calibration="):
        accel.convert_model(dense, Rules({"head": WHOLE}), example_inputs=pictures())
    with pytest.raises(ConversionError, match="nothing to perforate"):
        accel.convert_model(nn.Sequential(nn.Linear(3, 4)), Perforate(keep=0.5), example_inputs=torch.ones(1, 3))


@torch.no_grad()
def test_a_network_in_eight_bits_loses_little_and_says_so(dense):
    fast, x = convert(dense), pictures(seed=2)
    assert 0 < relative_norm(fast(x), dense(x)) < 0.03
    plan = accel.plan_conversion(dense, WHOLE, example_inputs=x[:2], calibration=[x])
    notes = {row["layer"]: row["note"] for row in plan.rows}
    assert "in int8" in notes["hidden"] and "in int8" in notes["head"]
    assert accel.count_macs(fast, x) == accel.count_macs(dense, x)


def test_the_plan_says_which_linear_layers_stay_in_fp32(dense):
    dense.head = nn.utils.parametrizations.weight_norm(dense.head)
    dense.hidden.forward = lambda x: F.linear(x, dense.hidden.weight, dense.hidden.bias)
    plan = accel.plan_conversion(dense, WHOLE, example_inputs=pictures(2), calibration=[pictures()])
    notes = {row["layer"]: row["note"] for row in plan.rows}
    assert "left in fp32: is a ParametrizedLinear" in notes["head"]
    assert "left in fp32: has a forward set on the layer itself" in notes["hidden"]


def test_what_is_trained_is_what_runs(linear):
    _, fast, x = linear
    with torch.no_grad():
        ran = fast(x)
    read = x.clone().requires_grad_()
    out = fast(read)
    assert relative_norm(out.detach(), ran) < 1e-5
    out.sum().backward()
    assert fast.weight.grad.abs().min() > 0 and read.grad.abs().max() > 0
    wide = (1e3 * x).requires_grad_()
    fast(wide).sum().backward()
    assert wide.grad[wide.abs() > 10].abs().max() == 0, "beyond the range nothing moves"
    with torch.no_grad():
        fast.weight.mul_(2)
        assert relative_norm(fast(x), ran) > 0.5, "integers follow their weights"


def test_reverting_copying_and_pickling(dense):
    dense.head.quantization = "my own"
    fast, x = convert(dense), pictures(seed=2)
    back = accel.revert_model(fast)
    assert type(back.head) is nn.Linear and back.head.quantization == "my own" and not hasattr(back.head, "_integers")
    with torch.no_grad():
        expected = fast(x)
        torch.testing.assert_close(back(x), dense(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(copy.deepcopy(fast)(x), expected)
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)


@torch.no_grad()
def test_saving_and_loading(dense, tmp_path):
    fast, x = convert(dense), pictures(seed=2)
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, Net())
    assert torch.equal(loaded.eval()(x), fast(x)) and type(loaded.head) is QuantizedLinear
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["version"] == 4 and config["linears"] == ["hidden", "head"]
    accel.save_converted(convert(dense, Rules({"conv": WHOLE})), tmp_path / "convs")
    assert json.loads((tmp_path / "convs" / "config.json").read_text())["version"] == 4
    for linears, message in (["hidden", "nowhere"], "no linear layer 'nowhere'"), (["conv"], "no linear layer 'conv'"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "linears": linears}))
        with pytest.raises(WeightsError, match=message):
            accel.load_converted(tmp_path, Net())
    (tmp_path / "config.json").write_text(json.dumps({**config, "version": 5}))
    with pytest.raises(WeightsError, match="of version 5"):
        accel.load_converted(tmp_path, Net())


@pytest.mark.parametrize("training", [False, True])
def test_compiled_and_exported(linear, training):
    _, fast, x = linear
    eager = fast(x) if training else None
    with torch.set_grad_enabled(training):
        compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
        found = compiled(x)
        if not training:
            torch.testing.assert_close(found, fast(x), rtol=0, atol=0)
            torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), fast(x), rtol=0, atol=0)
            return
    found.square().sum().backward()
    seen = fast.weight.grad.clone()
    fast.weight.grad = None
    eager.square().sum().backward()
    torch.testing.assert_close(seen, fast.weight.grad, rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """One linear layer on maps of two ranges, and one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.shared, self.unused = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.shared(x) + self.shared(10 * x)


@torch.no_grad()
def test_a_layer_called_twice_holds_both_ranges_and_one_not_called_stays_as_it_is():
    torch.manual_seed(0)
    net, x = Twice().eval(), pictures()
    with pytest.warns(UserWarning, match="left in fp32, .*unused"):
        fast = convert(net)
    assert type(fast.unused) is nn.Linear and relative_norm(fast(x), net(x)) < 0.03


def test_what_no_byte_stands_for_is_refused(linear):
    _, fast, x = linear
    with torch.no_grad(), pytest.raises(ValueError, match="NaN or an infinity"):
        fast(torch.full_like(x, float("nan")))
    with pytest.raises(DataError, match="nothing but zeros"):
        convert(nn.Sequential(nn.Linear(7, 5)), x=torch.zeros(4, 7))


def test_the_first_rule_that_matches_any_name_of_a_shared_layer_decides(dense):
    dense.again, dense.twin = dense.head, dense.conv
    fast = convert(dense, Rules({"again": None, "twin": None, "*": WHOLE}))
    assert (type(fast.head), type(fast.conv), type(fast.hidden)) == (nn.Linear, nn.Conv2d, QuantizedLinear)
    fast = convert(dense, Rules({"*": WHOLE, "again": None, "twin": None}))
    assert type(fast.head) is QuantizedLinear and fast.conv.config == WHOLE

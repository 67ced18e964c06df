"""PerforatedConv2d against dense convolution followed by the nearest map."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel import Perforate
from accel.nn.perforated import PerforatedConv2d

SHAPES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1)},
    "same": {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "grouped": {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "bias": False},
    "reflect": {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    "pointwise": {"kernel_size": 1},
}


def layer(keep=0.5, interpolate="nearest", mask="uniform", dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    config = Perforate(keep=keep, interpolate=interpolate, mask=mask)
    return PerforatedConv2d(4, 6, **kwargs, config=config, layer_name="conv").to(dtype)


def dense(conv):
    return copy.deepcopy(conv).release()


def image(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", [(9, 9), (7, 13)])
def test_every_position_holds_the_dense_value_of_its_stand_in(shape, size):
    conv, x = layer(**shape), image(3, 4, *size)
    expected = dense(conv)(x)
    positions = conv.position_set(*expected.shape[2:])
    chosen = positions.positions[positions.nearest.long()].long()
    torch.testing.assert_close(conv(x), expected.flatten(2)[..., chosen].view_as(expected))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_keep_one_is_the_dense_convolution(shape):
    conv, x = layer(keep=1.0, **shape), image(2, 4, 8, 11)
    torch.testing.assert_close(conv(x), dense(conv)(x))


def test_zero_interpolation_leaves_zeros():
    conv, x = layer(interpolate="zero", kernel_size=3, padding=1), image(2, 4, 6, 7)
    positions = conv.position_set(6, 7)
    kept = torch.zeros(42, dtype=torch.float64).index_fill(0, positions.positions.long(), 1).view(6, 7)
    torch.testing.assert_close(conv(x), dense(conv)(x) * kept)


@pytest.mark.parametrize("interpolate", ["nearest", "zero"])
def test_gradients(interpolate):
    conv = layer(interpolate=interpolate, kernel_size=3, padding=1, stride=2)
    x = image(2, 4, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, conv.weight, conv.bias))


def test_bias_gradient_counts_every_position():
    conv, x = layer(kernel_size=3, padding=1), image(2, 4, 5, 6)
    conv(x).sum().backward()
    torch.testing.assert_close(conv.bias.grad, torch.full_like(conv.bias, 2 * 5 * 6))


def test_any_memory_format_and_rank():
    conv, x = layer(kernel_size=3, padding=1), image(2, 4, 6, 8)
    expected = conv(x)
    torch.testing.assert_close(conv(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(conv(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    torch.testing.assert_close(conv(x[0]), expected[0])


def test_sets_depend_on_seed_name_and_size_only():
    conv, again = layer(kernel_size=3), layer(kernel_size=5)
    first, second = conv.position_set(9, 9), again.position_set(9, 9)
    assert torch.equal(first.positions, second.positions) and torch.equal(first.nearest, second.nearest)
    assert conv.position_set(9, 9) is first
    again.layer_name = "other"
    again._sets.clear()
    assert not torch.equal(again.position_set(9, 9).positions, first.positions)


def test_the_cache_of_sets_is_bounded():
    conv = layer(kernel_size=3)
    for size in range(1, 40):
        conv.position_set(size, size)
    assert len(conv._sets) <= 8 and (39, 39, torch.device("cpu")) in conv._sets


def test_a_set_built_in_inference_mode_serves_training():
    conv, x = layer(kernel_size=3), image(1, 4, 8, 8)
    with torch.inference_mode():
        conv(x)
    conv(x).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_copies_and_pickles_compute_the_same():
    conv, x = layer(kernel_size=3), image(1, 4, 8, 8)
    expected = conv(x)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other._sets == {} and torch.equal(other(x), expected)
        assert other.weight.data_ptr() != conv.weight.data_ptr()
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_adoption_keeps_hooks_and_release_undoes_it():
    conv, calls = nn.Conv2d(4, 6, 3), []
    conv.register_forward_hook(lambda *_: calls.append(1))
    attributes = set(conv.__dict__)
    adopted = PerforatedConv2d.adopt(conv, Perforate(keep=0.5), "conv")
    adopted(image(1, 4, 8, 8, dtype=torch.float32))
    assert adopted is conv and calls == [1]
    assert type(adopted.release()) is nn.Conv2d and set(conv.__dict__) == attributes


def test_an_impact_map_of_another_size_is_resized_and_that_is_said():
    conv = layer(mask="impact", kernel_size=1)
    conv.impact = torch.arange(16.0).view(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conv.position_set(4, 4)
    with pytest.warns(UserWarning, match="resized by the nearest rule"):
        found = conv.position_set(8, 8)
    assert found.positions.tolist() == list(range(32, 64))


def test_autocast_and_low_precision_stay_near_single_precision():
    conv, x = layer(kernel_size=3, padding=1, dtype=torch.float32), image(2, 4, 8, 8, dtype=torch.float32)
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = conv(x)
    assert (under.float() - expected).norm() < 0.02 * expected.norm()
    low = copy.deepcopy(conv).bfloat16()(x.bfloat16())
    assert low.dtype is torch.bfloat16 and (low.float() - expected).norm() < 0.02 * expected.norm()


def test_an_input_smaller_than_the_kernel_is_named():
    with pytest.raises(ValueError, match=r"3x3 kernel .* does not fit an input of 2x2"):
        layer(kernel_size=3)(image(1, 4, 2, 2))


def test_empty_batches_pass():
    out = layer(kernel_size=3, padding=1)(image(0, 4, 6, 6))
    assert out.shape == F.conv2d(image(0, 4, 6, 6), torch.zeros(6, 4, 3, 3).double(), padding=1).shape

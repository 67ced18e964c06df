"""quantized_interpolate: the bytes of fitted interpolation, whose map is never written."""

import pytest
import torch

from accel.kernels.interpolate import interpolate
from accel.kernels.positions import Neighbors, PositionSet
from accel.kernels.quantization import Affine
from accel.kernels.quantize import quantize
from accel.kernels.quantized_interpolate import quantized_interpolate
from accel.ops import use_backend

SHAPES = {"one": (5, 4, 1), "three": (6, 7, 3), "odd": (13, 9, 17), "wide": (12, 10, 64), "panels": (6, 7, 163)}


def drawn(height, width, channels, batch=2, taps=5, classes=3):
    """(rows, set, neighbours, weights, constant), half of the positions computed, in random order."""
    g = torch.Generator().manual_seed(channels)
    pixels = height * width
    count = pixels // 2
    order = torch.randperm(pixels, generator=g).to(torch.int32)
    nearest = torch.randint(count, (pixels,), generator=g, dtype=torch.int32)
    nearest[order[:count].long()] = torch.arange(count, dtype=torch.int32)
    kept, skipped = PositionSet(order[:count].clone(), nearest, height, width), order[count:].clone()
    starts = torch.tensor([len(skipped) * k // classes for k in range(classes + 1)], dtype=torch.int32)
    rows = torch.randint(count, (len(skipped), taps), generator=g, dtype=torch.int32)
    shape = (classes, taps, channels)
    values = [torch.randn(*each, generator=g) for each in ((batch * count, channels), shape, (classes, channels))]
    return values[0], kept, Neighbors(skipped, rows, starts), *values[1:]


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "hardswish", "relu6"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_of_the_map(isa, shape, activation):
    given = drawn(*SHAPES[shape])
    expected = quantize(interpolate(*given, activation), 20.0, 60)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = quantized_interpolate(*given, 20.0, 60, activation)
        assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(found, expected)
    torch.set_num_threads(before)
    with use_backend("reference"):
        steps = quantized_interpolate(*given, 20.0, 60, activation).int() - expected.int()
    assert steps.abs().max() <= 1 and (steps != 0).float().mean() < 0.01  # sums in another order
    assert 0 < expected.float().mean() < 255 and len(expected.unique()) > 10


@pytest.mark.parametrize("activation", ["none", "relu", "hardswish"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_what_is_added(isa, kind, shape, activation):
    given = drawn(*SHAPES[shape])
    size = (2, given[0].shape[1], *SHAPES[shape][:2])
    residual = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    added = Affine(0.013, 77)
    numbers = added.dequantize(residual)
    expected = quantize(interpolate(*given, activation, numbers), 20.0, 60)
    how = (residual, added) if kind == "bytes" else (numbers, None)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(quantized_interpolate(*given, 20.0, 60, activation, *how), expected)
    torch.set_num_threads(before)
    with use_backend("reference"):
        steps = quantized_interpolate(*given, 20.0, 60, activation, *how).int() - expected.int()
    assert steps.abs().max() <= 1 and (steps != 0).float().mean() < 0.01  # sums in another order
    assert not torch.equal(expected, quantized_interpolate(*given, 20.0, 60, activation))


def test_what_cannot_be_added():
    given = (*drawn(*SHAPES["three"]), 20.0, 60, "none")
    residual = torch.zeros(2, 3, 6, 7, dtype=torch.uint8)
    with pytest.raises(ValueError, match="says what the bytes of a residual stand for"):
        quantized_interpolate(*given, residual)
    with pytest.raises(ValueError, match="says what the bytes of a residual stand for"):
        quantized_interpolate(*given, residual.float(), Affine(1.0, 0))
    with pytest.raises(ValueError, match="residual"):
        quantized_interpolate(*given, residual[:, :2], Affine(1.0, 0))
    with pytest.raises(TypeError, match="residual must be float32 or uint8"):
        quantized_interpolate(*given, residual.double())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_byte_stands_for_what_is_not_finite(isa, odd, backend):
    rows, *rest = drawn(*SHAPES["odd"])
    rows[11, 16] = odd
    with use_backend(backend), pytest.raises(ValueError, match="NaN or an infinity"):
        quantized_interpolate(rows, *rest, 20.0, 60)


def test_opcheck_and_nothing():
    rows, kept, neighbors, weights, constant = drawn(*SHAPES["three"])
    lists = (kept.positions, neighbors.skipped, neighbors.rows, neighbors.starts)
    given = (rows, *lists, weights, constant, 2, (6, 7), "relu", None, 20.0, 60, 0.0, 0)
    assert set(torch.library.opcheck(torch.ops.accel.quantized_interpolate.default, given).values()) == {"SUCCESS"}
    assert quantized_interpolate(rows[:0], kept, neighbors, weights, constant, 20.0, 60).shape == (0, 3, 6, 7)


def test_refusals():
    rows, kept, neighbors, weights, constant = drawn(*SHAPES["three"])
    with pytest.raises(TypeError, match=r"rows must be float32, got torch.float64"):
        quantized_interpolate(rows.double(), kept, neighbors, weights, constant, 1.0, 0)
    with pytest.raises(ValueError, match=r"quantized_interpolate: rows must be \[N \* 21, C\]"):
        quantized_interpolate(rows[:-1], kept, neighbors, weights, constant, 1.0, 0)
    with pytest.raises(ValueError, match="quantized_interpolate: weights"):
        quantized_interpolate(rows, kept, neighbors, weights[..., :1], constant, 1.0, 0)

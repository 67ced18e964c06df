"""quantize: the same bytes on every instruction set, to the nearest, and nothing odd."""

import pytest
import torch

from accel.kernels.quantize import quantize
from accel.ops import Affine, use_backend


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_to_the_nearest_byte_halves_to_even(isa, zero):
    x = torch.arange(-1100, 1100) / 4.0
    expected = ((x * 2).round().double() + zero).clamp(0, 255).to(torch.uint8)
    assert torch.equal(quantize(x, 2.0, zero), expected)
    assert torch.equal(Affine(0.5, zero).quantize(x), expected)
    with use_backend("reference"):
        assert torch.equal(quantize(x, 2.0, zero), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 15, 17, 33, (1 << 14) + 5, 3 << 14])
def test_every_length_and_any_scale(isa, count):
    x = 40 * torch.randn(count, generator=torch.Generator().manual_seed(count))
    with use_backend("reference"):
        expected = quantize(x, 1 / 0.37, 90)
    threads = torch.get_num_threads()
    for asked in (1, 2):
        torch.set_num_threads(asked)
        assert torch.equal(quantize(x, 1 / 0.37, 90), expected)
    torch.set_num_threads(threads)


def test_what_lies_far_outside_is_clamped(isa):
    x = torch.tensor([-3e38, -1e10, -0.0, 1e-40, 1e10, 3e38])
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            assert quantize(x, 1e30, 7).tolist() == [0, 0, 7, 7, 255, 255]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 20, 36])
def test_no_byte_stands_for_what_is_not_finite(isa, odd, at):
    x = torch.zeros(37)
    x[at] = odd
    for backend in ("cpu", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match="NaN or an infinity"):
            quantize(x, 1.0, 0)


def test_the_memory_format_stays(isa):
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        out = quantize(given, 20.0, 100)
        assert torch.equal(out, ((given * 20).round() + 100).clamp(0, 255).to(torch.uint8))
    wide = torch.randn(2, 20, 4, 3).contiguous(memory_format=torch.channels_last)
    assert quantize(wide, 20.0, 100).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (90, 130)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 13, 15, 17])
def test_pixels_of_few_channels_begin_at_fours(isa, channels, size):
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(channels))
    x, (height, width) = x.contiguous(memory_format=torch.channels_last), size
    pitch = channels if channels > 16 else -(-channels // 4) * 4
    threads = torch.get_num_threads()
    for asked in (1, 2):
        torch.set_num_threads(asked)
        out = quantize(x, 20.0, 100)
        if (height, width) != (1, 1):
            assert out.stride() == (height * width * pitch, 1, width * pitch, pitch)
        assert torch.equal(out, ((x * 20).round() + 100).clamp(0, 255).to(torch.uint8))
        with pytest.raises(ValueError, match="NaN or an infinity"):
            quantize(x.index_fill(3, torch.tensor(width - 1), float("nan")), 20.0, 100)
    torch.set_num_threads(threads)
    with use_backend("reference"):
        assert quantize(x, 20.0, 100).stride() == out.stride()


def test_refusals():
    with pytest.raises(TypeError, match=r"must be float32, got torch.float64"):
        quantize(torch.zeros(3, dtype=torch.float64), 1.0, 0)
    with pytest.raises(ValueError, match="1 / scale is no fp32 number"):
        Affine(1e-42, 0)
    with torch.device("meta"):
        assert quantize(torch.zeros(2, 3), 1.0, 0).dtype is torch.uint8

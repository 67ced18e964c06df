"""The convolution kernels over several tiles, in every dtype, against the reference in float64.

tests/kernels compares the ops with F.conv2d on many small geometries; here are the sizes at which programs meet: more
rows and channels than one tile holds, none of them a multiple of it.
"""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.errors import InterpreterError

from accel.kernels.geometry import CallGeometry
from accel.kernels.positions import output_size
from accel.kernels.reference import active_positions as reference_active
from accel.kernels.reference import masked_conv2d as reference_masked
from accel.kernels.reference import perforated_conv2d as reference
from accel.kernels.triton import masked_conv2d as masked
from accel.kernels.triton import perforated_conv2d as perforated
from accel.kernels.triton.gather_conv import invert, weight_tiles
from accel.kernels.triton.launch import arithmetic, clip, conv_precision, matrix_tiles, on_its_device

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
N, C, K, H, W = 2, 72, 72, 13, 11  # tiles of the interpreter: 128 rows, 64 output and 64 input channels


def doubled(tensors):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors]


def draw(generator, dtype, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perforated_over_several_tiles(interpreter, generator, random_set, assert_close, dtype, compact):
    size = output_size((H, W), (3, 2), (1, 1), (1, 1, 1, 0), (1, 1))
    here, source = random_set(*size, 95), random_set(H, W, 80)
    x = draw(generator, dtype, N * 80, C)
    weight, bias = draw(generator, dtype, K, C, 3, 2) / 20, draw(generator, dtype, K)
    residual = draw(generator, dtype, *((N * 95, K) if compact else (N, K, *size)))
    tensors = (x, weight, bias, here.positions, here.nearest, source.nearest, residual)
    geometry = (CallGeometry((N, H, W), size, (1, 1), (1, 1, 1, 0), (1, 1), 1), "relu", compact)
    got = perforated.perforated_conv2d(*tensors, *geometry)
    assert_close(got, reference.perforated_conv2d(*doubled(tensors), *geometry))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perforated_gradients_over_several_tiles(interpreter, generator, random_set, assert_close, dtype):
    stride, padding = (2, 1), (1, 0, 2, 1)
    size = output_size((23, W), (3, 2), stride, padding, (1, 1))
    here, source = random_set(*size, 90), random_set(23, W, 150)
    grad, x = draw(generator, dtype, N * 90, K), draw(generator, dtype, N * 150, C)
    tensors = (grad, x, draw(generator, dtype, K, C, 3, 2) / 25, here.positions, source.nearest)
    geometry = (CallGeometry((N, 23, W), size, stride, padding, (1, 1), 1),)
    got = perforated.perforated_conv2d_backward(*tensors, *geometry)
    for one, expected in zip(got, reference.perforated_conv2d_backward(*doubled(tensors), *geometry), strict=True):
        assert_close(one, expected)


def test_the_shares_of_the_weight_gradient_add_up(interpreter, generator, random_set, assert_close, monkeypatch):
    """Rows split over several programs, the last share short."""
    monkeypatch.setattr("accel.kernels.triton.gather_conv.WEIGHT_ROWS", 100)
    here = random_set(H, W, 143)
    tensors = (draw(generator, torch.float32, 5 * 143, 8), draw(generator, torch.float32, 5, 8, H, W))
    tensors += (draw(generator, torch.float32, 8, 8, 1, 1), here.positions, None)
    geometry = (CallGeometry((5, H, W), (H, W), (1, 1), (0, 0, 0, 0), (1, 1), 1),)
    got = perforated.perforated_conv2d_backward(*tensors, *geometry)
    for one, expected in zip(got, reference.perforated_conv2d_backward(*doubled(tensors), *geometry), strict=True):
        assert_close(one, expected)


def active(generator, fraction):
    mask = torch.rand(3, H, W, generator=generator) < fraction
    mask[1] = False  # an image without any
    return mask


@pytest.mark.parametrize("with_residual", [False, True], ids=["compact", "scatter"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fraction", [0.0, 0.6], ids=["empty", "several tiles"])
def test_masked(interpreter, generator, assert_close, dtype, fraction, with_residual):
    mask = active(generator, fraction)
    positions, counts = reference_active.active_positions(mask, 0)
    source, _ = reference_active.active_positions(mask, 1)
    x = draw(generator, dtype, len(source), C)
    x[source < 0] = float("nan")  # unused rows are never read
    residual = draw(generator, dtype, 3, K, H, W) if with_residual else None
    tensors = (
        x,
        draw(generator, dtype, K, C, 3, 3) / 25,
        draw(generator, dtype, K),
        positions,
        counts,
        source,
        residual,
    )
    geometry = (CallGeometry((3, H, W), (H, W), (1, 1), (1, 1, 1, 1), (1, 1), 1), "relu")
    got = masked.masked_conv2d(*tensors, *geometry)
    clean = (torch.where((source < 0)[:, None], 0, x), *tensors[1:])
    expected = reference_masked.masked_conv2d(*doubled(clean), *geometry)
    if not with_residual and fraction == 0.0:
        assert not got.any()
    else:
        assert_close(got, expected)
    if with_residual:  # untouched means bit for bit
        still = ~mask[:, None].expand_as(residual)
        assert torch.equal(got[still], residual[still])


@pytest.mark.parametrize(
    ("dtype", "compact"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)], ids=str
)
def test_masked_gradients(interpreter, generator, assert_close, dtype, compact):
    mask = active(generator, 0.5)
    positions, counts = reference_active.active_positions(mask, 0)
    source = reference_active.active_positions(mask, 1)[0] if compact else None
    x = draw(generator, dtype, *((3 * H * W, C) if compact else (3, C, H, W)))
    grad = draw(generator, dtype, len(positions), K)
    clean = torch.where((positions < 0)[:, None], 0, grad)
    grad[positions < 0] = float("nan")  # the gradient of rows past the total is not a number that counts
    rest = (x, draw(generator, dtype, K, C, 3, 3) / 25, positions, counts, source)
    geometry = (CallGeometry((3, H, W), (H, W), (1, 1), (1, 1, 1, 1), (1, 1), 1),)
    got = masked.masked_conv2d_backward(grad, *rest, *geometry)
    expected = reference_masked.masked_conv2d_backward(*doubled((clean, *rest)), *geometry)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other)


def test_idle_programs_touch_nothing(interpreter, generator):
    """A launch covers the capacity; what lies past the active positions is not even read."""
    capacity, count = 700, 5
    positions = torch.full((capacity,), -1, dtype=torch.int32)
    positions[:count] = torch.arange(count, dtype=torch.int32)
    x = torch.full((1, 8, 25, 28), float("nan")).to(memory_format=torch.channels_last)
    x[:, :, 0, :count] = 1.0
    counts = torch.tensor([count], dtype=torch.int32)
    geometry = (CallGeometry((1, 25, 28), (25, 28), (1, 1), (0, 0, 0, 0), (1, 1), 1), "none")
    rows = masked.masked_conv2d(x, torch.ones(8, 8, 1, 1), None, positions, counts, None, None, *geometry)
    assert torch.equal(rows[:count], torch.full((count, 8), 8.0))
    assert not rows[count:].any()


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "hardswish", "relu6"])
def test_a_nan_stays_one(interpreter, random_set, activation):
    here = random_set(2, 2, 4)
    x = torch.tensor([[1.0, float("nan"), -1.0, 4.0]]).view(1, 1, 2, 2)
    geometry = (CallGeometry((1, 2, 2), (2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1), activation, False)
    tensors = (x, torch.ones(1, 1, 1, 1), None, here.positions, here.nearest, None, None)
    got = perforated.perforated_conv2d(*tensors, *geometry)
    torch.testing.assert_close(got, reference.perforated_conv2d(*tensors, *geometry), equal_nan=True)


def test_invert(interpreter):
    positions = torch.tensor([3, 0, -1, 7], dtype=torch.int32)
    assert invert(positions, 9).tolist() == [1, -1, -1, 0, -1, -1, -1, 3, -1]


@pytest.mark.parametrize("op", ["perforated", "masked"])
def test_addresses_have_64_bits(interpreter, op):
    """A position 2**33 elements into a map that is not there: the guard sees the address unwrapped."""
    side = 2**15
    last, nearest = torch.tensor([side * side - 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    x, weight, one = torch.zeros(1, 8, 1, 1).half(), torch.zeros(8, 8, 1, 1).half(), torch.ones(1, dtype=torch.int32)
    sizes = ((side, side), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    with pytest.raises(InterpreterError, match="OutOfBounds") as caught:
        if op == "perforated":
            sets = (last, nearest, None, None)
            geometry = CallGeometry((1, side, side), *sizes)
            perforated.perforated_conv2d(x, weight, None, *sets, geometry, "none", True)
        else:  # the input is one pixel, the residual as large as the map
            masked.masked_conv2d(x, weight, None, last, one, None, x, CallGeometry((1, 1, 1), *sizes), "none")
    distance = int(re.search(r"byte (-?\d+) of", str(caught.value))[1])
    assert 2**33 < distance < 2**35


def test_an_empty_batch_launches_nothing(interpreter, random_set):
    here = random_set(4, 4, 5)
    x, weight = torch.zeros(0, 8, 4, 4), torch.ones(8, 8, 1, 1)
    geometry = CallGeometry((0, 4, 4), (4, 4), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    out = perforated.perforated_conv2d(
        x, weight, None, here.positions, here.nearest, None, None, geometry, "none", False
    )
    assert out.shape == (0, 8, 4, 4)
    grad = torch.zeros(0, 8)
    d_x, d_weight, d_bias = perforated.perforated_conv2d_backward(grad, x, weight, here.positions, None, geometry)
    assert d_x.shape == x.shape and not d_weight.any() and not d_bias.any()


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float16, torch.float32)], ids=str)
def test_other_dtypes_are_refused(interpreter, random_set, dtypes):
    here = random_set(4, 4, 5)
    x, weight = torch.zeros(1, 8, 4, 4, dtype=dtypes[0]), torch.ones(8, 8, 1, 1, dtype=dtypes[1])
    geometry = (CallGeometry((1, 4, 4), (4, 4), (1, 1), (0, 0, 0, 0), (1, 1), 1), "none", False)
    with pytest.raises(TypeError, match=r"perforated_conv2d on the triton backend takes .* got .*cast them"):
        perforated.perforated_conv2d(x, weight, None, here.positions, here.nearest, None, None, *geometry)


def test_launches_happen_on_the_device_of_the_tensors(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def device(which):
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    launcher = on_its_device(lambda h, x: (entered.append("launched"), x)[1])
    with FakeTensorMode():
        launcher(None, torch.empty(1, device="cuda:1"))
        launcher(torch.empty(1), None)
    assert entered == [torch.device("cuda:1"), "launched", "launched"]


def test_float32_follows_torchs_convolution_setting():
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = setting
            assert conv_precision(torch.float32) == arithmetic(torch.float32) == setting
        assert (conv_precision(torch.float16), arithmetic(torch.float16)) == ("ieee", "half")
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_tiles_are_no_wider_than_the_layer():
    wide, narrow = matrix_tiles("sm90", "half", 256, 256), matrix_tiles("sm90", "half", 3, 8)
    assert {tile.out for tile in wide} == {64, 128}
    assert all(tile.out == tile.inner == 16 for tile in narrow)
    assert clip(wide, wide[0]._replace(warps=4)) == wide[:1]  # clipped to one, listed once
    assert all(tile.rows <= 16 for tile in weight_tiles("sm90", "half", 5, 64))

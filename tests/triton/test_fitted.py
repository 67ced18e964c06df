"""Fitted interpolation over several blocks, in every dtype, against the reference in float64.

tests/kernels compares the op on small maps on every backend; here programs meet: more computed rows, positions of a
class and channels than one holds, none a multiple of it, and classes without positions.
"""

from __future__ import annotations

import re

import pytest
import torch
from triton.runtime.errors import InterpreterError

from accel.kernels.reference import interpolate as reference
from accel.kernels.triton import interpolate
from accel.kernels.triton.interpolate import TILE, readers, tiles

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
N, T = 3, 3
# height, width, channels, computed positions, sizes of the classes
WIDE = (13, 11, 140, 60, (0, 40, 0, 43, 0))
NARROW = (7, 1, 5, 4, (1, 2))
CASES = {
    "several blocks": WIDE,
    "narrow": NARROW,
    "one position": (1, 1, 1, 1, ()),
    "nothing skipped": (5, 7, 33, 35, (0, 0)),
    "no classes": (5, 7, 33, 35, ()),
    "one row for all": (31, 2, 3, 1, (61,)),
}


class Problem:
    """Tensors of one case in `dtype`: random rows, random neighbours, positions in random order."""

    def __init__(self, case, dtype: torch.dtype, generator: torch.Generator):
        height, width, channels, count, sizes = case
        self.size, self.classes = (height, width), len(sizes)
        order = torch.randperm(height * width, generator=generator).to(torch.int32)
        self.positions, self.skipped = order[:count], order[count:].clone()
        self.starts = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
        self.neighbors = torch.randint(count, (len(self.skipped), T), generator=generator, dtype=torch.int32)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.rows, self.grad = draw(N * count, channels), draw(N, channels, height, width)
        self.weights, self.constant = draw(len(sizes), T, channels), draw(len(sizes), channels)

    def forward(self, module, activation="none", wide=False):
        values = [t.double() if wide else t for t in (self.rows, self.weights, self.constant)]
        sets = (self.positions, self.skipped, self.neighbors, self.starts)
        return module.interpolate_fitted(values[0], *sets, *values[1:], N, self.size, activation)

    def backward(self, module, wide=False):
        grad, rows, weights = (t.double() if wide else t for t in (self.grad, self.rows, self.weights))
        sets = (self.positions, self.skipped, self.neighbors, self.starts)
        return module.interpolate_fitted_backward(grad, rows, *sets, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs(interpreter, generator, assert_close, case, dtype):
    problem = Problem(case, dtype, generator)
    got = problem.forward(interpolate, "relu")
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, problem.forward(reference, "relu", wide=True))


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "hardswish", "relu6"])
def test_activations(interpreter, generator, assert_close, activation):
    problem = Problem(NARROW, torch.float32, generator)
    assert_close(problem.forward(interpolate, activation), problem.forward(reference, activation, wide=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients(interpreter, generator, assert_close, case, dtype):
    problem = Problem(case, dtype, generator)
    got = problem.backward(interpolate)
    for one, expected in zip(got, problem.backward(reference, wide=True), strict=True):
        assert one.dtype == dtype
        if expected.numel():
            assert_close(one, expected)
        else:
            assert one.shape == expected.shape


def test_computed_positions_are_copied_bit_for_bit(interpreter, generator):
    problem = Problem(WIDE, torch.float16, generator)
    out = problem.forward(interpolate).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(out[:, problem.positions.long()].flatten(0, 1), problem.rows)


def test_the_gradients_of_weights_in_several_shares(interpreter, generator, assert_close, monkeypatch):
    """Images split over two and three programs: the same sums to rounding, and to the bit when run again."""
    problem = Problem(NARROW, torch.float32, generator)
    expected = problem.backward(reference, wide=True)
    for programs in (12, 1000):
        monkeypatch.setattr(interpolate, "WEIGHT_PROGRAMS", programs)
        got, again = problem.backward(interpolate), problem.backward(interpolate)
        for one, two, other in zip(got, again, expected, strict=True):
            assert_close(one, other)
            assert torch.equal(one, two)


def test_an_empty_batch(interpreter, generator):
    problem = Problem(NARROW, torch.float32, generator)
    sets = (problem.positions, problem.skipped, problem.neighbors, problem.starts)
    rows = torch.zeros(0, 5)
    out = interpolate.interpolate_fitted(rows, *sets, problem.weights, problem.constant, 0, problem.size, "none")
    assert out.shape == (0, 5, 7, 1)
    grads = interpolate.interpolate_fitted_backward(torch.zeros(0, 5, 7, 1), rows, *sets, problem.weights)
    assert grads[0].shape == (0, 5) and not grads[1].any() and not grads[2].any()
    assert grads[1].shape == problem.weights.shape and grads[2].shape == problem.constant.shape


def test_tiles_hold_every_position_once_and_one_class_each():
    starts = torch.tensor([0, 0, 70, 71, 71, 135, 135], dtype=torch.int32)
    first, bounds, order = tiles(starts, 135)
    assert tiles(starts, 135).first is first  # kept
    assert len(first) == len(order) == 135 // TILE + 6 and bounds.tolist() == [0, 0, 3, 4, 4, 6, 6]
    assert first[:6].tolist() == [[1, 0], [1, 32], [1, 64], [2, 70], [4, 71], [4, 103]]
    assert first[6:].tolist() == [[0, 135]] * 4  # idle: class 0 ends before 135


def test_readers_are_the_inverse_of_neighbours():
    neighbors = torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)
    starts, pixels, weights = readers(
        torch.tensor([8, 6], dtype=torch.int32), neighbors, torch.tensor([0, 1, 1, 2], dtype=torch.int32), 3
    )
    assert starts.tolist() == [0, 1, 4, 4]
    # row 0 is neighbour 1 of position 8 (class 0); row 1 neighbour 0 of 8, then both of 6 (class 2)
    assert pixels.tolist() == [8, 8, 6, 6] and weights.tolist() == [1, 0, 4, 5]


def test_a_neighbour_outside_the_rows_is_found(interpreter, generator):
    problem = Problem(NARROW, torch.float32, generator)
    rows = problem.rows
    # the storage goes on behind the rows, so no other tensor is nearer to what is read there
    problem.rows = torch.cat((rows, rows.new_zeros(1000, rows.shape[1])))[: len(rows)]
    problem.neighbors[1, 2] = len(rows) + 100
    with pytest.raises(InterpreterError, match=r"OutOfBounds.*argument 'rows'"):
        problem.forward(interpolate)


def test_addresses_beyond_32_bits(interpreter):
    """A skipped position 2**30 pixels of 8 channels into a map that is not there: the guard sees it unwrapped."""
    side = 2**15
    zero, last, starts = (torch.tensor(values, dtype=torch.int32) for values in ([0], [side * side - 1], [0, 1]))
    lists, blocks = tiles(starts, 1).first, {"C": 8, "BLOCK_P": TILE, "BLOCK_C": 8}
    rows, grad, out = torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(16)
    for kernel, arguments in (
        (interpolate.sum_tiles, (grad, rows, last, zero, starts, lists, out, side * side, 1, 1)),
        (interpolate.sum_readers, (grad, zero, rows, starts, last, zero, out, side * side, 1)),
    ):
        with pytest.raises(InterpreterError, match="OutOfBounds") as caught:
            kernel[(1, 1, 1)](*arguments, **blocks, **({"T": 1} if kernel is interpolate.sum_tiles else {}))
        assert 2**34 < int(re.search(r"byte (-?\d+) of", str(caught.value))[1]) < 2**36

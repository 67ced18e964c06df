"""The kernels around the convolutions at sizes of several blocks, and in half precision, against the reference.

tests/kernels compares the ops in float32 on small maps; here programs meet: several blocks an image, several spans a
row.
"""

from __future__ import annotations

import pytest
import torch

from accel.kernels.reference import active_positions as reference_active
from accel.kernels.reference import halting_step as reference_step
from accel.kernels.reference import interpolate as reference_interpolate
from accel.kernels.reference import local_deviation as reference_deviation
from accel.kernels.reference import max_rows as reference_max
from accel.kernels.reference import ponder_cost as reference_ponder
from accel.kernels.reference import select_positions as reference_select
from accel.kernels.triton import (
    active_positions,
    halting_step,
    interpolate,
    local_deviation,
    max_rows,
    ponder_cost,
    select_positions,
)

SIDE = 47  # 2209 positions: three blocks of 1024, the last one short


@pytest.mark.parametrize("dilate", [0, 1, 2])
@pytest.mark.parametrize("fraction", [0.0, 0.02, 1.0])
def test_active_positions_over_several_blocks(interpreter, generator, fraction, dilate):
    mask = torch.rand(3, SIDE, SIDE, generator=generator) < fraction
    mask[1] = False
    got = active_positions.active_positions(mask, dilate)
    for one, expected in zip(got, reference_active.active_positions(mask, dilate), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", [1, 700, SIDE * SIDE])
def test_select_positions_with_many_ties(interpreter, generator, dtype, budget):
    score = torch.randn(2, SIDE, SIDE, generator=generator).mul(4).round().to(dtype)  # some 30 values
    score[0, :5] = -0.0
    score[1, 0, :3] = float("inf")
    score[1, 1, :3] = -float("inf")
    got = select_positions.select_positions(score, budget)
    for one, expected in zip(got, reference_select.select_positions(score, budget), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_ponder_cost_over_several_blocks(interpreter, generator, dtype):
    ponder = (2 + 5 * torch.rand(3, SIDE, SIDE, generator=generator)).to(dtype)
    units = torch.randint(1, 7, (3, SIDE, SIDE), generator=generator, dtype=torch.int32)
    got = ponder_cost.ponder_cost(ponder, units)
    for one, expected in zip(got, reference_ponder.ponder_cost(ponder, units), strict=True):
        assert one.dtype == expected.dtype and torch.equal(one, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_interpolation_over_several_blocks(interpreter, generator, random_set, assert_close, dtype):
    here = random_set(11, 13, 80)
    rows = torch.randn(2 * 80, 70, generator=generator).to(dtype)
    assert torch.equal(
        interpolate.interpolate(rows, here.nearest, 2, (11, 13)),
        reference_interpolate.interpolate(rows, here.nearest, 2, (11, 13)),
    )
    grad = torch.randn(2, 70, 11, 13, generator=generator).to(dtype)
    got = interpolate.interpolate_backward(grad, here.nearest, 80)
    assert_close(got, reference_interpolate.interpolate_backward(grad.double(), here.nearest, 80))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_max_rows_over_several_blocks(interpreter, generator, dtype):
    rows = torch.randn(2 * 90, 70, generator=generator).to(dtype)
    taps = torch.randint(90, (4, 75), generator=generator, dtype=torch.int32)
    assert torch.equal(max_rows.max_rows(rows, taps, 2), reference_max.max_rows(rows, taps, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_local_deviation_over_several_blocks(interpreter, generator, assert_close, dtype, channels):
    x = torch.randn(2, 35, 13, 11, generator=generator).to(dtype)
    got = local_deviation.local_deviation(x, channels)
    assert_close(got, reference_deviation.local_deviation(x.double(), channels))


def halting_problem(generator, spatial: bool, state_dtype, dtype):
    """h, x, and the state of a unit in the middle of a stage: some positions halted, some about to."""
    x = torch.randn(3, 80, 11, 7, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    shape = (3, 11, 7) if spatial else (3,)
    remainder = torch.rand(shape, generator=generator).to(state_dtype)
    remainder.view(-1)[0] = 0.0
    ponder, h = (torch.rand(shape, generator=generator).to(state_dtype) for _ in range(2))
    units = torch.randint(1, 4, shape, generator=generator, dtype=torch.int32)
    return h, x, remainder, ponder, units, torch.randn(x.shape, generator=generator).to(x)


@pytest.mark.parametrize("spatial", [True, False], ids=["SACT", "ACT in two spans"])
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sticks", [False, True])
def test_halting_step(interpreter, generator, assert_close, spatial, dtypes, last, sticks):
    h, x, *state = halting_problem(generator, spatial, *dtypes)
    expected = reference_step.halting_step(h, x, *state, 0.1, last, sticks)
    got = halting_step.halting_step(h, x, *state, 0.1, last, sticks)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride()
    for number in (0, 1, 2, 4):  # the state is decided in the same roundings
        assert torch.equal(got[number], expected[number])
    weighted = reference_step.spread(expected[4].double(), x.double()) * x.double()
    assert_close(got[3], state[3].double() + weighted)

    running = halting_step.halting_step_(h, x, *state, 0.1, last, sticks)
    assert torch.equal(running, expected[0] > 0)
    for one, other in zip(state, got, strict=False):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spatial", [True, False], ids=["SACT", "ACT in two spans"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sticks", [False, True])
def test_halting_gradients(interpreter, generator, assert_close, spatial, last, sticks):
    h, x, remainder, ponder, _, output = halting_problem(generator, spatial, torch.float32, torch.float32)
    grads = remainder.flip(0), ponder, output, ponder.flip(0)
    got = halting_step.halting_step_backward(h, x, remainder, *grads, 0.1, last, sticks)
    doubled = (tensor.double() for tensor in (h, x, remainder, *grads))
    for one, expected in zip(got, reference_step.halting_step_backward(*doubled, 0.1, last, sticks), strict=True):
        assert_close(one, expected)

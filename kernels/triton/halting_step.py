"""Triton kernels of `accel::halting_step` and its backward; the contract is the reference's, argument by argument.

The state is [rows] and the unit's output [rows, channels]: a row is a position (SACT, channels_last) or an image (ACT).
One program decides for BLOCK_ROWS rows, stores their new state, and adds weight * x over its span of channels, so each
value is read once and written once; rows of weight 0 read no x, and in place they touch no output either. Both rules
are decided in one place (`_decide`). Maps without channels are maps that nobody sums: then only the state steps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import cdiv, check_dtype, on_its_device

BLOCK_ROWS, BLOCK_CHANNELS = 32, 128  # 4096 elements: 16 bytes of a half-precision row per thread with 4 warps
# A row this long or shorter belongs to one program. ACT's rows are whole images: they are cut, or a batch of N images
# would keep N multiprocessors busy.
SPAN = 4096


@triton.jit
def _decide(h, remainder, row, inside, eps, LAST: tl.constexpr, STICKS: tl.constexpr):
    """-> (score, weight of this unit, remainder before and after it, runs in this unit, goes on after it)."""
    left = tl.load(remainder + row, mask=inside, other=0.0).to(tl.float32)
    runs = left > 0.0
    if LAST:
        score = left * 0.0
        weight = left
        after = left * 0.0
        goes_on = left < 0.0  # a remainder is never negative
    else:
        score = tl.load(h + row, mask=inside, other=0.0).to(tl.float32)
        # rounded to the state's dtype wherever the reference is
        if STICKS:
            weight = (score * left).to(remainder.dtype.element_ty).to(tl.float32)
            goes = (1.0 - score).to(remainder.dtype.element_ty).to(tl.float32)
            after = (goes * left).to(remainder.dtype.element_ty).to(tl.float32)
            goes_on = after > 0.0
        else:
            after = (left - score).to(remainder.dtype.element_ty).to(tl.float32)
            bound = (tl.zeros_like(left) + eps).to(remainder.dtype.element_ty).to(tl.float32)
            goes_on = runs & (after > bound)
            weight = tl.where(goes_on, score, left)
            after = tl.where(goes_on, after, 0.0)
    return score, tl.where(runs, weight, 0.0), left, after, runs, goes_on


@triton.jit(do_not_specialize=["rows", "eps"])
def step(
    h,
    x,
    remainder,
    ponder,
    units,
    output,
    new_remainder,
    new_ponder,
    new_units,
    new_output,
    new_weight,  # or None
    new_active,  # uint8, or None
    rows,
    channels,
    span,
    eps,
    LAST: tl.constexpr,
    STICKS: tl.constexpr,
    IN_PLACE: tl.constexpr,  # output and new_output are one
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Grid: (blocks of rows, spans of channels)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    _, weight, _, after, runs, goes_on = _decide(h, remainder, row, inside, eps, LAST, STICKS)
    if tl.program_id(1) == 0:
        cost = tl.load(ponder + row, mask=inside, other=0.0).to(tl.float32)
        if STICKS:
            cost += after  # the part of the stick that the next unit is needed for
        else:
            cost += tl.where(goes_on, 1.0, weight)  # one more unit to come, or the remainder spent
        tl.store(new_ponder + row, cost.to(new_ponder.dtype.element_ty), mask=inside)
        tl.store(new_units + row, tl.load(units + row, mask=inside, other=0) + runs.to(tl.int32), mask=inside)
        tl.store(new_remainder + row, after.to(new_remainder.dtype.element_ty), mask=inside)
        if new_weight is not None:
            tl.store(new_weight + row, weight.to(new_weight.dtype.element_ty), mask=inside)
        if new_active is not None:
            tl.store(new_active + row, goes_on.to(tl.uint8), mask=inside)
    begin = tl.program_id(1) * span
    for first in range(begin, tl.minimum(begin + span, channels), BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        where = row.to(tl.int64)[:, None] * channels + channel[None, :]
        mask = inside[:, None] & (channel < channels)[None, :]
        adds = mask & (weight != 0.0)[:, None]
        if IN_PLACE:
            mask = adds
        value = tl.load(x + where, mask=adds, other=0.0).to(tl.float32)
        total = tl.load(output + where, mask=mask, other=0.0).to(tl.float32)
        total += weight[:, None] * value
        tl.store(new_output + where, total.to(new_output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "eps"])
def step_backward(
    h,
    x,
    remainder,
    d_output,
    d_x,
    partial,  # float32 [spans, rows]: this span's sum of d_output * x
    rows,
    channels,
    span,
    eps,
    LAST: tl.constexpr,
    STICKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """dX, and the part of the weight's gradient that comes through the output. Grid: as `step`."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    _, weight, _, _, _, _ = _decide(h, remainder, row, inside, eps, LAST, STICKS)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), dtype=tl.float32)
    begin = tl.program_id(1) * span
    for first in range(begin, tl.minimum(begin + span, channels), BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        where = row.to(tl.int64)[:, None] * channels + channel[None, :]
        mask = inside[:, None] & (channel < channels)[None, :]
        grad = tl.load(d_output + where, mask=mask, other=0.0).to(tl.float32)
        total += grad * tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_x + where, (grad * weight[:, None]).to(d_x.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(1) * rows + row, tl.sum(total, 1), mask=inside)


@triton.jit(do_not_specialize=["rows", "spans", "eps"])
def step_backward_state(
    h,
    remainder,
    d_remainder,
    d_ponder,
    d_weight,
    partial,
    d_h,
    d_old,
    rows,
    spans,
    eps,
    LAST: tl.constexpr,
    STICKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients to the score and the old remainder. Grid: (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    score, _, left, _, runs, goes_on = _decide(h, remainder, row, inside, eps, LAST, STICKS)
    through = tl.load(d_weight + row, mask=inside, other=0.0).to(tl.float32)
    for span in range(0, spans):
        through += tl.load(partial + span * rows + row, mask=inside, other=0.0)
    from_remainder = tl.load(d_remainder + row, mask=inside, other=0.0).to(tl.float32)
    from_ponder = tl.load(d_ponder + row, mask=inside, other=0.0).to(tl.float32)
    if STICKS:
        from_left = from_remainder + from_ponder
        of_score = left * 0.0 if LAST else left * (through - from_left)
        grad = through if LAST else score * through + (1.0 - score) * from_left
    else:
        # the score of the unit a row halts in only decided that it halts: no gradient
        of_score = tl.where(goes_on, through - from_remainder, 0.0)
        halted_here = tl.where(runs, through + from_ponder, 0.0)
        grad = tl.where(goes_on, from_remainder, halted_here)
    tl.store(d_h + row, of_score.to(d_h.dtype.element_ty), mask=inside)
    tl.store(d_old + row, grad.to(d_old.dtype.element_ty), mask=inside)


@on_its_device
def halting_step(h, x, remainder, ponder, units, output, eps, last, sticks=False):
    """See `accel.kernels.reference.halting_step`."""
    state = _plain(remainder, ponder, units)
    new = tuple(torch.empty_like(old) for old in state)
    weight = torch.empty_like(state[0])
    new_output = _step(h, x, state, new, output, False, weight, None, eps, last, sticks)
    return *new, _like(new_output, output), weight


@on_its_device
def halting_step_(h, x, remainder, ponder, units, output, eps, last, sticks=False):
    """See `accel.kernels.reference.halting_step`."""
    old = (remainder, ponder, units)
    state = _plain(*old)
    # With several spans, programs that still read the state must not see it written.
    spans = cdiv(x.numel(), max(remainder.numel(), 1) * SPAN)
    new = state if spans <= 1 else tuple(torch.empty_like(tensor) for tensor in state)
    active = torch.empty_like(state[0], dtype=torch.uint8)
    rows = _step(h, x, state, new, output, True, None, active, eps, last, sticks)
    for tensor, result in zip((*old, output), (*new, _maps(rows, output))):
        if tensor.data_ptr() != result.data_ptr():
            tensor.copy_(result)
    return active.view(torch.bool)


@on_its_device
def halting_step_backward(h, x, remainder, d_remainder, d_ponder, d_output, d_weight, eps, last, sticks=False):
    """See `accel.kernels.reference.halting_step`."""
    check_dtype("halting_step_backward", remainder, d_remainder, d_ponder, d_weight)
    check_dtype("halting_step_backward", x, d_output)
    (left, d_left, d_cost, d_share) = _plain(remainder, d_remainder, d_ponder, d_weight)
    score = left if h is None else h.contiguous()
    d_h, d_old = torch.empty_like(left), torch.empty_like(left)
    values, grads = _rows(x, left.numel()), _rows(d_output, left.numel())
    rows, channels = values.shape
    d_x = torch.empty_like(values)
    if not rows:
        return d_h, _like(d_x, x), d_old
    spans = max(cdiv(channels, SPAN), 1)
    partial = torch.empty(spans, rows, dtype=torch.float32, device=x.device)
    last = last or h is None
    step_backward[(cdiv(rows, BLOCK_ROWS), spans)](
        score, values, left, grads, d_x, partial, rows, channels, SPAN, eps, LAST=last, STICKS=sticks,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_CHANNELS=BLOCK_CHANNELS,
    )  # fmt: skip
    step_backward_state[(cdiv(rows, 1024),)](
        score, left, d_left, d_cost, d_share, partial, d_h, d_old, rows, spans, eps, LAST=last, STICKS=sticks,
        BLOCK=1024,
    )  # fmt: skip
    return d_h, _like(d_x, x), d_old


def _step(
    h: Tensor | None,
    x: Tensor,
    state: tuple[Tensor, ...],
    new: tuple[Tensor, ...],
    output: Tensor,
    in_place: bool,
    weight: Tensor | None,
    active: Tensor | None,
    eps: float,
    last: bool,
    sticks: bool,
) -> Tensor:
    """Launch; returns the new output as rows, which in place are those of `output` wherever it is channels_last."""
    check_dtype("halting_step", state[0], state[1], h)
    check_dtype("halting_step", x, output)
    total = _rows(output, state[0].numel())
    new_total = total if in_place else torch.empty_like(total)
    rows, channels = total.shape
    if rows:
        grid = (cdiv(rows, BLOCK_ROWS), max(cdiv(channels, SPAN), 1))
        step[grid](
            None if h is None else h.contiguous(), _rows(x, rows), *state, total, *new, new_total, weight, active,
            rows, channels, SPAN, eps, LAST=last or h is None, STICKS=sticks, IN_PLACE=in_place,
            BLOCK_ROWS=BLOCK_ROWS, BLOCK_CHANNELS=BLOCK_CHANNELS,
        )  # fmt: skip
    return new_total


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _rows(x: Tensor, count: int) -> Tensor:
    """[N, C, H, W] or [N, ...] -> [count, channels], one row per element of the state; a view of channels_last."""
    rows = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(count, x.numel() // max(count, 1))
    return rows.contiguous()  # of a single image reshape makes a transposed view


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    if like.dim() != 4:
        return rows.view(like.shape)
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _like(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`, with the strides of `like`."""
    maps = _maps(rows, like)
    return maps if maps.stride() == like.stride() else torch.empty_like(like).copy_(maps)

"""Triton kernels of `accel::interpolate` and its adjoint; the contract is the reference's, argument by argument.

Forward copies rows: out[n, q] = rows[n, nearest[q]]. The adjoint adds, for every computed position, the gradients of
the positions it stands in for, from a precomputed list in a fixed order: no atomics, the same sum at every run. Sums
are float32 whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from accel.kernels.triton.launch import cdiv, channels_last, check_dtype, copy_block, new_channels_last, on_its_device

_SEGMENTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def segments(nearest: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """CSR list of the adjoint of `nearest`: (int32 [count + 1] starts, int32 [H * W] positions in row order).

    Kept for as long as `nearest` itself lives: a position set never changes.
    """
    found = _SEGMENTS.get(nearest)
    if found is None:
        order = torch.argsort(nearest, stable=True)
        rows = torch.arange(count + 1, dtype=nearest.dtype, device=nearest.device)
        found = torch.searchsorted(nearest[order], rows, out_int32=True), order.to(torch.int32)
        _SEGMENTS[nearest] = found
    return found


@triton.jit(do_not_specialize=["positions", "per_image"])
def interpolate_rows(
    rows, nearest, out, positions, per_image, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of positions, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = position < positions
    row = tl.load(nearest + position, mask=inside, other=0)
    mask = inside[:, None] & (channel < C)[None, :]
    value = tl.load(rows + (image * per_image + row)[:, None] * C + channel[None, :], mask=mask, other=0.0)
    tl.store(out + (image * positions + position)[:, None] * C + channel[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["positions", "per_image"])
def sum_segments(
    grad, starts, order, out, positions, per_image, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of rows, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = row < per_image
    start = tl.load(starts + row, mask=inside, other=0)
    length = tl.load(starts + row + 1, mask=inside, other=0) - start
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for j in range(0, tl.max(length, 0)):
        more = j < length
        position = tl.load(order + start + j, mask=more, other=0)
        where = (image * positions + position)[:, None] * C + channel[None, :]
        total += tl.load(grad + where, mask=more[:, None] & (channel < C)[None, :], other=0.0).to(tl.float32)
    where = (image * per_image + row)[:, None] * C + channel[None, :]
    tl.store(out + where, total.to(out.dtype.element_ty), mask=inside[:, None] & (channel < C)[None, :])


@on_its_device
def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate", rows)
    height, width = size
    channels = rows.shape[1]
    out = new_channels_last(rows, batch, channels, height, width)
    if out.numel():
        blocks = copy_block(channels)
        grid = (cdiv(height * width, blocks[0]), batch, cdiv(channels, blocks[1]))
        interpolate_rows[grid](
            rows.contiguous(), nearest, out, height * width, rows.shape[0] // batch, C=channels,
            BLOCK_P=blocks[0], BLOCK_C=blocks[1],
        )  # fmt: skip
    return out


@on_its_device
def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate_backward", grad)
    batch, channels, height, width = grad.shape
    out = grad.new_empty(batch * count, channels)
    if out.numel():
        blocks = copy_block(channels)
        starts, order = segments(nearest, count)
        grid = (cdiv(count, blocks[0]), batch, cdiv(channels, blocks[1]))
        sum_segments[grid](
            channels_last(grad), starts, order, out, height * width, count, C=channels,
            BLOCK_P=blocks[0], BLOCK_C=blocks[1],
        )  # fmt: skip
    return out

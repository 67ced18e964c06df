"""Triton kernel of `accel::max_rows`; the contract is the reference's, argument by argument.

A block of windows reads its rows tap by tap and keeps the largest in registers: no gathered copy of the rows exists.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import cdiv, check_dtype, copy_block, on_its_device


@triton.jit(do_not_specialize=["windows", "per_image"])
def largest_rows(
    rows, taps, out, windows, per_image, C: tl.constexpr, T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of windows, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    window = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = window < windows
    mask = inside[:, None] & (channel < C)[None, :]
    columns = rows + image * per_image * C + channel[None, :]
    tap = taps + window
    largest = tl.full((BLOCK_P, BLOCK_C), float("-inf"), dtype=tl.float32)
    for _ in range(T):
        row = tl.load(tap, mask=inside, other=0).to(tl.int64)
        value = tl.load(columns + row[:, None] * C, mask=mask, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, value, propagate_nan=tl.PropagateNan.ALL)
        tap += windows
    where = (image * windows + window)[:, None] * C + channel[None, :]
    tl.store(out + where, largest.to(out.dtype.element_ty), mask=mask)


@on_its_device
def max_rows(rows: Tensor, taps: Tensor, batch: int) -> Tensor:
    """See `accel.kernels.reference.max_rows`."""
    check_dtype("max_rows", rows)
    (count, windows), channels = taps.shape, rows.shape[1]
    out = rows.new_empty(batch * windows, channels)
    if out.numel():
        blocks = copy_block(channels)
        largest_rows[cdiv(windows, blocks[0]), batch, cdiv(channels, blocks[1])](
            rows.contiguous(), taps.contiguous(), out, windows, len(rows) // batch, C=channels, T=count,
            BLOCK_P=blocks[0], BLOCK_C=blocks[1],
        )  # fmt: skip
    return out

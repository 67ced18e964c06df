"""Triton kernels of `accel::active_positions`; the contract is the reference's, argument by argument.

Two passes over the mask, no atomics: the first counts the active positions of every block; in the second a block adds
up the counts before it and writes its positions in order. An inactive position writes a -1 behind the last active one,
in the slot of its own rank, so every element of the output is stored exactly once and nothing has to be cleared.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import cdiv, on_its_device

BLOCK = 1024  # positions a program scans: one warp-level scan of 8 elements a thread with 4 warps
COUNTS_BLOCK = 1024  # counts added per step of the second pass: 2**20 positions


@triton.jit
def _dilated(mask, image, position, height, width, DILATE: tl.constexpr):
    """int32: whether any position in the window around each position is active."""
    y = position // width
    x = position % width
    active = tl.zeros_like(position)
    for dy in tl.static_range(-DILATE, DILATE + 1):
        for dx in tl.static_range(-DILATE, DILATE + 1):
            inside = (y < height) & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            offset = image * (height * width) + position + dy * width + dx
            active |= tl.load(mask + offset, mask=inside, other=0).to(tl.int32)
    return active


@triton.jit(do_not_specialize=["height", "width"])
def count_active(mask, block_counts, height, width, DILATE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: (blocks of one image, images)."""
    image = tl.program_id(1)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    active = _dilated(mask, image.to(tl.int64), position, height, width, DILATE)
    tl.store(block_counts + image * tl.num_programs(0) + tl.program_id(0), tl.sum(active, 0))


@triton.jit(do_not_specialize=["height", "width"])
def place_active(
    mask,
    block_counts,
    positions,
    counts,
    height,
    width,
    DILATE: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNTS_BLOCK: tl.constexpr,
):
    """Grid: (blocks of one image, images)."""
    image = tl.program_id(1)
    blocks = tl.num_programs(0)
    this = image * blocks + tl.program_id(0)
    before = tl.zeros((COUNTS_BLOCK,), dtype=tl.int32)
    all_of_them = tl.zeros((COUNTS_BLOCK,), dtype=tl.int32)
    mine = tl.zeros((COUNTS_BLOCK,), dtype=tl.int32)
    for first in range(0, blocks * tl.num_programs(1), COUNTS_BLOCK):
        block = first + tl.arange(0, COUNTS_BLOCK)
        number = tl.load(block_counts + block, mask=block < blocks * tl.num_programs(1), other=0)
        before += tl.where(block < this, number, 0)
        mine += tl.where(block // blocks == image, number, 0)
        all_of_them += number
    rank = tl.sum(before, 0)
    total = tl.sum(all_of_them, 0)
    if tl.program_id(0) == 0:
        tl.store(counts + image, tl.sum(mine, 0))

    lane = tl.arange(0, BLOCK)
    position = tl.program_id(0) * BLOCK + lane
    active = _dilated(mask, image.to(tl.int64), position, height, width, DILATE)
    ahead = rank + tl.cumsum(active, 0) - active  # active positions ahead of each one
    flat = image * (height * width) + position
    # of the positions ahead, those that are not active have taken as many slots after the total
    slot = tl.where(active > 0, ahead, total + flat - ahead)
    tl.store(positions + slot, tl.where(active > 0, flat, -1), mask=position < height * width)


@on_its_device
def active_positions(mask: Tensor, dilate: int) -> tuple[Tensor, Tensor]:
    """See `accel.kernels.reference.active_positions`."""
    batch, height, width = mask.shape
    positions = torch.empty(mask.numel(), dtype=torch.int32, device=mask.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=mask.device)
    if mask.numel():
        mask = mask.contiguous().view(torch.uint8)
        grid = (cdiv(height * width, BLOCK), batch)
        block_counts = torch.empty(grid[0] * batch, dtype=torch.int32, device=mask.device)
        count_active[grid](mask, block_counts, height, width, DILATE=dilate, BLOCK=BLOCK)
        place_active[grid](
            mask, block_counts, positions, counts, height, width, DILATE=dilate, BLOCK=BLOCK, COUNTS_BLOCK=COUNTS_BLOCK
        )
    return positions, counts

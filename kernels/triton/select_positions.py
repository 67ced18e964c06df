"""Triton kernel of `accel::select_positions`; the contract is the reference's, argument by argument.

One program an image finds the budget-th highest score without sorting, digit by digit: scores become unsigned integers
of the same order, a histogram of their top 8 bits says which digit the sought score has and how many are left to find
below it, and so on for the other three digits. A last walk writes the positions above that score, and as many equal
ones as the budget still holds, in index order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import check_dtype, on_its_device

BLOCK = 1024  # scores per step; from 2048 on, gfx942 spills its masks
DIGITS = 256


@triton.jit
def _ordered(score):
    """float -> uint32 of the same order (sign bit flipped; negative numbers all bits); -0 equals +0."""
    bits = (score.to(tl.float32) + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit(do_not_specialize=["size", "budget"])
def select_highest(score, positions, size, budget, DIGITS: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: (images,)."""
    image = tl.program_id(0)
    scores = score + image.to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    digit = tl.arange(0, DIGITS)
    known = tl.zeros((), dtype=tl.uint32)  # the digits of the sought score found so far, and zeros
    wanted = budget  # how many of the scores that share those digits are to be taken
    for shift in tl.static_range(24, -1, -8):
        tally = tl.zeros((DIGITS,), dtype=tl.int32)
        for first in range(0, size, BLOCK):
            inside = first + lane < size
            key = _ordered(tl.load(scores + first + lane, mask=inside, other=0.0))
            # of a 32-bit number, no digit is known before the first round: a shift by 32 is undefined
            alike = inside if shift == 24 else inside & (key >> (shift + 8) == known >> (shift + 8))
            tally += tl.histogram(((key >> shift) & 255).to(tl.int32), DIGITS, mask=alike)
        at_least = tl.cumsum(tally, 0, reverse=True)
        chosen = tl.sum((at_least >= wanted).to(tl.int32), 0) - 1  # the highest digit that reaches the number
        wanted -= tl.sum(tl.where(digit > chosen, tally, 0), 0)
        known += chosen.to(tl.uint32) << shift

    taken = tl.zeros((), dtype=tl.int32)
    equal_before = tl.zeros((), dtype=tl.int32)
    for first in range(0, size, BLOCK):
        inside = first + lane < size
        key = _ordered(tl.load(scores + first + lane, mask=inside, other=0.0))
        equal = (inside & (key == known)).to(tl.int32)
        rank = equal_before + tl.cumsum(equal, 0) - equal
        take = ((inside & (key > known)) | ((equal > 0) & (rank < wanted))).to(tl.int32)
        slot = image * budget + taken + tl.cumsum(take, 0) - take
        tl.store(positions + slot, image * size + first + lane, mask=take > 0)
        taken += tl.sum(take, 0)
        equal_before += tl.sum(equal, 0)


@on_its_device
def select_positions(score: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """See `accel.kernels.reference.select_positions`."""
    check_dtype("select_positions", score)
    batch, size = score.shape[0], score.shape[1] * score.shape[2]
    positions = torch.empty(batch * budget, dtype=torch.int32, device=score.device)
    if positions.numel():
        select_highest[(batch,)](score.contiguous(), positions, size, budget, DIGITS=DIGITS, BLOCK=BLOCK)
    return positions, torch.full((batch,), budget, dtype=torch.int32, device=score.device)

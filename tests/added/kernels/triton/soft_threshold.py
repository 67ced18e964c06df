"""Triton kernel of `accel::soft_threshold`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import on_its_device

BLOCK = 256


@triton.jit
def shrink(x, out, threshold, size, BLOCK: tl.constexpr):
    """Grid: (blocks,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < size, other=0.0)
    shrunk = tl.maximum(tl.abs(value) - threshold, 0.0)
    tl.store(out + at, tl.where(value < 0, -shrunk, shrunk), mask=at < size)


@on_its_device
def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    shrink[(-(-x.numel() // BLOCK),)](x, out, threshold, x.numel(), BLOCK=BLOCK)
    return out

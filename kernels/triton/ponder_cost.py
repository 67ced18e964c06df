"""Triton kernel of `accel::ponder_cost`; the contract is the reference's, argument by argument.

One program an image adds both maps in a fixed order, rho in float64 as the reference does: the same sum at every run.
The backward spreads one number per image over its positions, which torch does without a kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import on_its_device

BLOCK = 1024  # positions per step: 8 a thread; 4096 float64 and int64 sums would take 230 registers


@triton.jit(do_not_specialize=["positions"])
def sum_ponder(ponder, units, rho, executed, positions, BLOCK: tl.constexpr):
    """Grid: (images,)."""
    image = tl.program_id(0)
    start = image.to(tl.int64) * positions
    cost = tl.zeros((BLOCK,), dtype=tl.float64)
    number = tl.zeros((BLOCK,), dtype=tl.int64)
    for first in range(0, positions, BLOCK):
        position = first + tl.arange(0, BLOCK)
        inside = position < positions
        cost += tl.load(ponder + start + position, mask=inside, other=0.0).to(tl.float64)
        number += tl.load(units + start + position, mask=inside, other=0).to(tl.int64)
    tl.store(rho + image, tl.sum(cost, 0).to(rho.dtype.element_ty))
    tl.store(executed + image, tl.sum(number, 0))


@on_its_device
def ponder_cost(ponder: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """See `accel.kernels.reference.ponder_cost`."""
    batch = len(ponder)
    rho = ponder.new_zeros(batch)
    executed = torch.zeros(batch, dtype=torch.int64, device=ponder.device)
    if ponder.numel():
        sum_ponder[(batch,)](
            ponder.contiguous(), units.contiguous(), rho, executed, ponder.numel() // batch, BLOCK=BLOCK
        )
    return rho, executed

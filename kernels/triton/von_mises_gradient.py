"""The von Mises derivative on a GPU: the quadrature of `accel.kernels.reference.von_mises_gradient`, in float64."""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.reference.special import TAIL_DROP, bessel_gap, tail_nodes
from accel.kernels.reference.von_mises_gradient import NODES

BLOCK = 256


def von_mises_gradient(kappa: Tensor, z: Tensor) -> Tensor:
    """As `accel.kernels.reference.von_mises_gradient`; contiguous tensors of one shape.

    Triton has neither Bessel functions nor the arc sine: 1 - A(kappa) and the ends of the tails come from torch.
    """
    out = torch.empty_like(z)
    if not out.numel():
        return out
    concentration = kappa.double()
    gap = bessel_gap(concentration)
    squared = (z.double().abs().clamp(max=math.pi) / 2).sin().square()
    cut = (squared + TAIL_DROP / (2 * concentration)).clamp(max=1.0)
    end = torch.where(2 * squared < gap, 0.0, 2 * cut.sqrt().asin())
    _kernel[(triton.cdiv(out.numel(), BLOCK),)](
        kappa, z, gap, end, out, _table(z.device), out.numel(), NODES=NODES, PI=math.pi, BLOCK=BLOCK
    )
    return out


@functools.cache
def _table(device: torch.device) -> Tensor:
    nodes, weights = tail_nodes(NODES)
    return torch.tensor([nodes, weights], dtype=torch.float64, device=device)


@triton.jit
def _kernel(
    kappa_ptr,
    z_ptr,
    gap_ptr,
    end_ptr,
    out_ptr,
    table_ptr,
    size,
    NODES: tl.constexpr,
    PI: tl.constexpr,
    BLOCK: tl.constexpr,
):
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kappa = tl.load(kappa_ptr + where, mask=where < size, other=1.0).to(tl.float64)
    z = tl.load(z_ptr + where, mask=where < size, other=0.0).to(tl.float64)
    gap = tl.load(gap_ptr + where, mask=where < size, other=0.5)
    end = tl.load(end_ptr + where, mask=where < size, other=0.0)
    start = tl.minimum(tl.abs(z), PI)
    half = _sin(0.5 * start)
    squared = half * half
    length = end - start
    total = z * 0.0
    for n in range(NODES):
        half = _sin(0.5 * (start + length * tl.load(table_ptr + n)))
        square = half * half
        density = tl.exp(2.0 * kappa * (squared - square))
        total += tl.load(table_ptr + NODES + n) * (gap - 2.0 * square) * density
    value = tl.where(z < 0, -total, total) * length
    value = tl.where((kappa > 0) & (z == z), value, float("nan"))
    tl.store(out_ptr + where, value.to(out_ptr.dtype.element_ty), mask=where < size)


@triton.jit
def _sin(x):
    """sin on [0, pi/2], Taylor series to x^21: the library's keeps a table on the stack for large arguments."""
    q = x * x
    p = 1.0 - q / 420.0
    p = 1.0 - p * q / 342.0
    p = 1.0 - p * q / 272.0
    p = 1.0 - p * q / 210.0
    p = 1.0 - p * q / 156.0
    p = 1.0 - p * q / 110.0
    p = 1.0 - p * q / 72.0
    p = 1.0 - p * q / 42.0
    p = 1.0 - p * q / 20.0
    return x * (1.0 - p * q / 6.0)

"""d z / d kappa of z ~ VonMises(0, kappa) at a fixed quantile: the readable reference.

The implicit gradient -(dF/dkappa) / p (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498) is a quadrature of the score:
F is 1/2 at 0 and 1 at pi, so it equals -int_0^z (cos s - A) e^(kappa (cos s - cos z)) ds, and also the integral of the
same from z to pi; A = I1/I0(kappa). On the side where cos s - A keeps its sign nothing cancels, and a Gauss-Legendre
rule of 24 points reaches 1e-13 for every kappa: inwards the exponent stays below 1, outwards the interval ends where
e^-36 is left. Hill's series (CACM algorithm 518), which other libraries use, stops at 1e-8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.kernels.reference.special import TAIL_DROP, bessel_gap, tail_nodes

NODES = 24


def von_mises_gradient(kappa: Tensor, z: Tensor) -> Tensor:
    """dz/dkappa, elementwise, z in [-pi, pi]; one shape and dtype (float32 or float64). NaN for kappa <= 0 or NaN."""
    dtype, kappa, z = z.dtype, kappa.double(), z.double()
    valid = (kappa > 0) & ~z.isnan()
    kappa, z = torch.where(valid, kappa, 1.0), torch.where(valid, z, 0.0)
    start = torch.where(z < 0, -z, z).clamp(max=math.pi)  # odd in z
    gap = bessel_gap(kappa)
    squared = (start / 2).sin().square()
    inwards = 2 * squared < gap  # cos z > A
    cut = (squared + TAIL_DROP / (2 * kappa)).clamp(max=1.0).detach()  # a constant: what lies beyond is negligible
    end = torch.where(inwards, 0.0, 2 * cut.sqrt().asin())
    total = torch.zeros_like(z)
    for node, weight in zip(*tail_nodes(NODES)):
        square = ((start + (end - start) * node) / 2).sin().square()
        total = total + weight * (gap - 2 * square) * (2 * kappa * (squared - square)).exp()
    value = torch.where(z < 0, -1.0, 1.0) * total * (end - start)
    return torch.where(valid, value, torch.nan).to(dtype)

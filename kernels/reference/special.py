"""What the implicit-gradient references share: digamma without cancellation, tail quadrature nodes, a Bessel ratio."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

TAIL_DROP = 36.0  # a tail is cut where the density has lost a factor e^36 = 4e15


@functools.cache
def tail_nodes(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of the Gauss-Legendre rule of `count` points on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple(0.5 * (nodes + 1)), tuple(0.5 * weights)


@functools.cache
def node_table(count: int) -> Tensor:
    """[count, TAIL_DROP, nodes, weights] as one float64 tensor: what the C core takes."""
    nodes, weights = tail_nodes(count)
    return torch.tensor([count, TAIL_DROP, *nodes, *weights], dtype=torch.float64, device="cpu")


def digamma_less_log(x: Tensor) -> Tensor:
    """psi(x) - log(x) for x > 0, float64: the asymptotic series (DLMF 5.11.2) from 9 on, where the two cancel."""
    inverse_square = 1 / (x * x).clamp(min=81.0)
    series = torch.zeros_like(x)
    for coefficient in (-1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):  # -B_2n / 2n, n = 7 .. 1
        series = series * inverse_square + coefficient
    small = torch.where(x < 9, x, 1.0)
    return torch.where(x < 9, torch.digamma(small) - small.log(), series * inverse_square - 0.5 / x)


@functools.cache
def _bessel_gap_coefficients(count: int) -> tuple[float, ...]:
    """b_1 .. b_count of 1 - I1(k)/I0(k) ~ sum b_n k^-n, from the Riccati equation A' = 1 - A/k - A^2 of A = I1/I0."""
    b = [0.0, 0.5]
    for n in range(1, count):
        b.append(0.5 * (sum(b[i] * b[n + 1 - i] for i in range(1, n + 1)) + (n - 1) * b[n]))
    return tuple(b[1:])


def bessel_gap(kappa: Tensor) -> Tensor:
    """1 - I1(kappa)/I0(kappa), float64, to 1e-14 relative: by its asymptotic series from kappa = 50 on."""
    large = kappa >= 50
    inverse = 1 / torch.where(large, kappa, 50.0)
    series = torch.zeros_like(kappa)
    for coefficient in reversed(_bessel_gap_coefficients(14)):
        series = (series + coefficient) * inverse
    small = torch.where(large, 1.0, kappa)
    return torch.where(large, series, 1 - torch.special.i1e(small) / torch.special.i0e(small))

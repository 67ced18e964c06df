"""Integrals of a normal density over segments, relative to the density at one end, and their inverse.

Relative to that end nothing under- or overflows and nothing cancels, however far out or short the segment is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.kernels.reference.special import TAIL_DROP, tail_nodes

NODES = 24  # Gauss-Legendre: 2e-14 relative for segments over which the density falls by e^36
NEWTON_STEPS = 7  # from the bound below, to rounding for every start and mass (6 needed)


def fall(start: Tensor, length: Tensor) -> Tensor:
    """-log of density(start + length) / density(start), of a standard normal."""
    return length * (start + 0.5 * length)


def moments(start: Tensor, length: Tensor, count: int = 3) -> list[Tensor]:
    """The integrals of t^k exp(-fall(start, t)) over t in [0, length], for k < count; all float64.

    Args:
        start: where the segment begins, in standard deviations; negative where it runs towards the mean.
        length: >= 0 and possibly infinite, at most -start where start < 0.
    """
    outward = start.detach().clamp(min=0)
    cut = 2 * TAIL_DROP / ((outward * outward + 2 * TAIL_DROP).sqrt() + outward)  # fall(start, cut) = TAIL_DROP
    length = torch.where(start < 0, length, torch.minimum(length, cut))
    sums = [torch.zeros_like(length) for _ in range(count)]
    for node, weight in zip(*tail_nodes(NODES)):
        t = length * node
        term = weight * (-fall(start, t)).exp()
        for k in range(count):
            sums[k] = sums[k] + term
            term = term * t if k + 1 < count else term
    return [length * total for total in sums]


def mass(start: Tensor, length: Tensor) -> Tensor:
    """The first of the moments."""
    return moments(start, length, 1)[0]


def length_of(start: Tensor, inner: Tensor, outer: Tensor, longest: Tensor) -> Tensor:
    """The length with mass(start, length) = inner, at most `longest`; no gradient.

    Args:
        start: >= 0.
        inner, outer: the masses up to the end sought and beyond it, relative to the density at `start`; each is given
            since each is the other's rounding error where it is small.
    """
    whole = mills(start)
    decay = torch.where(inner < outer, -(-inner / whole).log1p(), (whole / outer).log()).clamp(1e-300, 800)
    # Two bounds above it. The log of the mass beyond is concave in the length: Newton's steps come down from there.
    length = torch.minimum(decay * whole, 2 * decay / ((start * start + 2 * decay).sqrt() + start))
    for _ in range(NEWTON_STEPS):
        beyond = mills(start + length)
        length = (length + (decay - fall(start, length) - (whole / beyond).log()) * beyond).clamp(min=0)
    near = decay < 1  # there the logarithm of the ratio has lost digits, the mass itself has not
    short = torch.where(near, length, 0.0)
    corrected = short + (inner - mass(start, short)) * fall(start, short).exp()
    length = torch.where(near, corrected.clamp(min=0), length)
    return torch.where(outer > 0, torch.minimum(length, longest), longest)


def mills(start: Tensor) -> Tensor:
    """The mass beyond `start` >= 0 relative to the density there."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(start / math.sqrt(2))

"""Rows and columns at pseudo-random distances (Figurnov et al., "PerforatedCNNs", NIPS 2016, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.masks.contract import Mask, Site, register


@register
class Grid(Mask):
    """The crossings of chosen rows and columns."""

    name = "grid"

    def build(self, keep: float, site: Site) -> Tensor:
        drawn = torch.rand(2, generator=site.generator, dtype=torch.float32, device="cpu")
        offsets = 1 - drawn  # u and v of the paper lie in (0, 1]
        rows = _axis_grid(site.height, keep, float(offsets[0]))
        cols = _axis_grid(site.width, keep, float(offsets[1]))
        return (rows[:, None] * site.width + cols[None, :]).flatten().to(torch.int32)


def _axis_grid(size: int, keep: float, offset: float) -> Tensor:
    """a(i) = ceil(size / K * (i - 1 + u)) for i = 1..K, less 1 for indices from 0 (paper, 3.3; Graham's sequence)."""
    count = max(1, round(size * math.sqrt(keep)))
    steps = torch.arange(count, dtype=torch.float64, device="cpu") + offset
    return (torch.ceil(steps * (size / count)) - 1).long().clamp(0, size - 1)

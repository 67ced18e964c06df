"""The positions that the most pooling windows read (Figurnov et al., "PerforatedCNNs", NIPS 2016, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.masks.contract import Mask, Pooling, Site, highest, noise, register


@register
class MostPooled(Mask):
    """Ties are drawn; where no pooling follows, every position counts the same."""

    name = "pooling"
    reads_pooling = True

    def build(self, keep: float, site: Site) -> Tensor:
        drawn = noise(site)
        if site.pooling is None:
            return highest(drawn, keep)
        return highest(pooling_coverage(site.height, site.width, site.pooling) + 1e-5 * drawn, keep)


def pooling_coverage(height: int, width: int, pooling: Pooling) -> Tensor:
    """A(y, x): how many windows of the pooling layer cover each position; float64 [height, width] (paper, 3.3)."""
    rows, cols = (
        _axis_coverage(size, pooling.kernel[i], pooling.stride[i], pooling.padding[i], pooling.ceil_mode)
        for i, size in enumerate((height, width))
    )
    return rows[:, None] * cols[None, :]


def _axis_coverage(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Tensor:
    spare = size + 2 * padding - kernel
    windows = spare // stride + 1
    if ceil_mode and spare % stride and windows * stride < size + padding:
        windows += 1  # PyTorch's rule: the last, partial window counts only if it starts inside the map
    starts = torch.arange(windows, device="cpu")[:, None] * stride - padding
    where = torch.arange(size, device="cpu")[None, :]
    return ((where >= starts) & (where < starts + kernel)).sum(0).double()

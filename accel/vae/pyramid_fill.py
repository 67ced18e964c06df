"""Hidden pixels filled smoothly from the seen ones around them: where an inpainting model starts from.

The pull-push algorithm of Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pyramid_fill(values: Tensor, hidden: Tensor) -> Tensor:
    """Pictures whose hidden values are averages of the seen ones around, the further away the less is near.

    Args:
        values: floating [N, C, H, W]; what stands in hidden cells changes nothing.
        hidden: bool [N, C, H, W].

    Returns:
        The same shape: seen values as they are, 0 where a channel has none; within the bounds of the seen ones.
    """
    pyramid = [(torch.where(hidden, 0.0, values), (~hidden).to(values))]
    while max(pyramid[-1][0].shape[2:]) > 1:
        pyramid.append(_coarser(*pyramid[-1]))
    found, _ = pyramid.pop()
    for known, weight in reversed(pyramid):
        wider = F.interpolate(found, scale_factor=2, mode="bilinear", align_corners=False)
        height, width = known.shape[2:]
        found = torch.lerp(wider[:, :, :height, :width], known, weight)
    return torch.where(hidden, found, values)


def _coarser(known: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(weighted means of 2 x 2 cells, their weights): one seen cell is as good as four."""
    pad = (0, known.shape[3] % 2, 0, known.shape[2] % 2)
    total = 4 * F.avg_pool2d(F.pad(weight, pad), 2)
    mean = 4 * F.avg_pool2d(F.pad(known * weight, pad), 2) / torch.where(total > 0, total, 1.0)
    return mean, total.clamp(max=1)

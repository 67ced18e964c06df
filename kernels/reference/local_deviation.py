"""Reference of `accel::local_deviation`: how far each pixel is from the mean of its neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_deviation(x: Tensor, channels: int) -> Tensor:
    """[N, H, W], sum over the first channels of |x - mean of the up to four edge neighbours inside the map|.

    Args:
        x: [N, C, H, W]. A pixel without neighbours deviates by 0.
    """
    x = x[:, :channels]
    cross = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=x.dtype, device=x.device)
    taken, height, width = x.shape[1:]
    sums = F.conv2d(x, cross.expand(taken, 1, 3, 3), padding=1, groups=taken)
    counts = F.conv2d(x.new_ones(1, 1, height, width), cross[None, None], padding=1)
    return torch.where(counts[0, 0] > 0, (x - sums / counts.clamp_min(1)).abs().sum(1), 0.0)

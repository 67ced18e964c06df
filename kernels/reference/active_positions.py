"""Reference of `accel::active_positions`: mask -> positions and per-image counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def active_positions(mask: Tensor, dilate: int) -> tuple[Tensor, Tensor]:
    """The positions where a mask is true, after dilating it.

    Args:
        mask: bool [N, H, W].
        dilate: the mask is max-pooled over (2 * dilate + 1) x (2 * dilate + 1) windows first; 0 leaves it alone.

    Returns:
        (positions int32 [N * H * W]: the active flat positions n * H * W + y * W + x ascending, then -1;
        counts int32 [N]: active positions of each image).
    """
    if dilate and mask.numel():
        window = 2 * dilate + 1
        mask = F.max_pool2d(mask.float().unsqueeze(1), window, stride=1, padding=dilate).squeeze(1) > 0
    found = mask.flatten().nonzero().flatten().to(torch.int32)
    positions = F.pad(found, (0, mask.numel() - len(found)), value=-1)
    return positions, mask.flatten(1).sum(1, dtype=torch.int32)

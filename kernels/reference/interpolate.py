"""Reference of `accel::interpolate` and of its adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Fill every position with the row of its stand-in.

    Args:
        rows: [N * P, C], image-major.
        nearest: int32 [H * W], the row (within its image) that stands in for each position.
        batch, size: N and (H, W).

    Returns:
        [N, C, H, W], channels_last.
    """
    height, width = size
    count = len(rows) // max(batch, 1)
    row = torch.arange(batch, device=rows.device)[:, None] * count + nearest
    return rows[row].view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The adjoint: row p of each image gets the sum of `grad` over the positions that p stands in for.

    Args:
        grad: [N, C, H, W], any memory format.
        nearest: int32 [H * W].
        count: P, the rows of one image.

    Returns:
        [N * P, C].
    """
    batch, channels = grad.shape[:2]
    pixels = grad.permute(0, 2, 3, 1).flatten(1, 2)
    rows = grad.new_zeros(batch, count, channels)
    return rows.index_add_(1, nearest, pixels).flatten(0, 1)

"""Reference of `accel::select_positions`: the highest scores of every image."""

from __future__ import annotations

import torch
from torch import Tensor


def select_positions(score: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The `budget` positions of each image with the highest scores; equal scores go to the lower index.

    Args:
        score: [N, H, W], without NaN.
        budget: 0 to H * W.

    Returns:
        (positions int32 [N * budget]: flat positions n * H * W + y * W + x ascending; counts int32 [N], all `budget`).
    """
    batch, height, width = score.shape
    best = score.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :budget]
    first = torch.arange(batch, device=score.device)[:, None] * (height * width)
    positions = (best.sort(dim=1).values + first).flatten().to(torch.int32)
    return positions, torch.full((batch,), budget, dtype=torch.int32, device=score.device)

"""select_positions: a score map and a budget -> the highest positions of every image.

| backward | dtypes   | layouts         | granularity | limits            |
|----------|----------|-----------------|-------------|-------------------|
| none     | floating | score [N, H, W] | position    | N * H * W < 2**31 |
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.positions import INT32_MAX, ActiveSet


def select_positions(score: Tensor, budget: int) -> ActiveSet:
    """The `budget` positions of each image with the highest scores; equal scores go to the lower index.

    Args:
        score: [N, H, W], floating, without NaN; no gradient flows through the choice.
        budget: positions per image, 0 to H * W.

    Returns:
        An ActiveSet with `budget` positions in every image.

    Raises:
        TypeError: the score is not floating.
        ValueError: it is not 3-D, holds 2**31 positions or more, or the budget does not fit the map.
    """
    if not score.is_floating_point():
        raise TypeError(f"select_positions: score must be floating, got {score.dtype}")
    if score.dim() != 3 or score.numel() > INT32_MAX:
        raise ValueError(
            f"select_positions: score must be [N, H, W] of at most {INT32_MAX} positions, got {tuple(score.shape)}"
        )
    batch, height, width = score.shape
    if not 0 <= budget <= height * width:
        raise ValueError(
            f"select_positions: a {height}x{width} map takes a budget of 0 to {height * width}, got {budget}"
        )
    score = score.detach()
    run = implementation("select_positions", score) if is_direct(score) else _SELECT
    positions, counts = run(score, budget)
    return ActiveSet(positions, counts, batch, height, width)


def _fake(score, budget):
    batch = score.shape[0]
    return score.new_empty(batch * budget, dtype=torch.int32), score.new_empty(batch, dtype=torch.int32)


define("select_positions", "(Tensor score, SymInt budget) -> (Tensor, Tensor)", _fake)
_SELECT = torch.ops.accel.select_positions.default

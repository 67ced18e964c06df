"""Reference of `accel::mean_rows`."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_rows(rows: Tensor, taps: Tensor, share: Tensor, zero_point: int, batch: int) -> Tensor:
    """rows uint8 [N * P, C], taps int32 [T, M], share float32 [M] -> uint8 [N * M, C]."""
    if not batch:
        return rows.new_empty(0, rows.shape[1])
    images = rows.view(batch, len(rows) // batch, rows.shape[1]).int() - zero_point
    total = torch.zeros(batch, taps.shape[1], rows.shape[1], dtype=torch.int32, device=rows.device)
    for tap in taps:
        total += images.index_select(1, tap.clamp_min(0)) * (tap >= 0)[:, None]
    means = (total.float() * share[:, None]).round()
    return (means + zero_point).clamp(0, 255).to(torch.uint8).flatten(0, 1)

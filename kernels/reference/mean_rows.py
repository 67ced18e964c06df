"""Reference of `accel::mean_rows`."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_rows(rows: Tensor, taps: Tensor, share: Tensor, zero_point: int, batch: int) -> Tensor:
    """rows uint8 [N * P, C], taps int32 [T, M], share float32 [M] or [T, M] -> uint8 [N * M, C]."""
    if not batch:
        return rows.new_empty(0, rows.shape[1])
    images = rows.view(batch, len(rows) // batch, rows.shape[1]).int() - zero_point
    weighted = share.dim() == 2
    dtype = torch.float32 if weighted else torch.int32
    total = torch.zeros(batch, taps.shape[1], rows.shape[1], dtype=dtype, device=rows.device)
    for t, tap in enumerate(taps):
        read = images.index_select(1, tap.clamp_min(0)) * (tap >= 0)[:, None]
        total += read.float() * share[t, :, None] if weighted else read
    means = total if weighted else total.float() * share[:, None]
    return (means.round() + zero_point).clamp(0, 255).to(torch.uint8).flatten(0, 1)

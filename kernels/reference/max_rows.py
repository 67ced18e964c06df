"""Reference of `accel::max_rows`."""

from __future__ import annotations

import torch
from torch import Tensor


def max_rows(rows: Tensor, taps: Tensor, batch: int) -> Tensor:
    """rows [N * P, C], taps int32 [T, M] -> [N * M, C], the maximum over T; a tap at a time, to spare memory."""
    if not batch:
        return rows.new_empty(0, rows.shape[1])
    images = rows.view(batch, len(rows) // batch, rows.shape[1])
    out = images.index_select(1, taps[0])
    for tap in taps[1:]:
        torch.maximum(out, images.index_select(1, tap), out=out)
    return out.flatten(0, 1)

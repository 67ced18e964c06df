"""Reference of `accel::join_rows`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.reference.sum_rows import rescaled, rows_at


def join_rows(
    parts: Sequence[Tensor],
    taps: Sequence[Tensor | None],
    batch: int,
    multipliers: Sequence[float],
    zeros: Sequence[int],
    *range_: int,
) -> Tensor:
    """parts [N * P_i, C_i], taps int32 [M] or None -> [N * M, the sum of C_i]; rescaled, if by multipliers."""
    if not batch:
        return parts[0].new_empty(0, sum(part.shape[1] for part in parts))
    read = [rows_at(part, tap, batch) for part, tap in zip(parts, taps)]
    if multipliers:
        read = [rescaled([rows], [times], [zero], *range_) for rows, times, zero in zip(read, multipliers, zeros)]
    return torch.cat(read, 2).flatten(0, 1)

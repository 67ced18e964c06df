"""Reference of `accel::sum_rows`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sum_rows(
    first: Tensor,
    second: Tensor,
    taps: Tensor | None,
    other_taps: Tensor | None,
    batch: int,
    multipliers: Sequence[float],
    zeros: Sequence[int],
    *range_: int,
) -> Tensor:
    """first uint8 [N * P, C], second [N * Q, C], taps int32 [M] or None -> uint8 [N * M, C]."""
    if not batch:
        return torch.empty_like(first)
    read = [rows_at(rows, tap, batch) for rows, tap in ((first, taps), (second, other_taps))]
    return rescaled(read, multipliers, zeros, *range_).flatten(0, 1)


def rows_at(rows: Tensor, tap: Tensor | None, batch: int) -> Tensor:
    """[N, M, C], the rows [N * P, C] that are read."""
    image = rows.view(batch, len(rows) // batch, rows.shape[1])
    return image if tap is None else image.index_select(1, tap)


def rescaled(
    parts: Sequence[Tensor], multipliers: Sequence[float], zeros: Sequence[int], out_zero: int, low: int, high: int
) -> Tensor:
    """What `accel.kernels.quantization.Rescaling` says of bytes of one shape."""
    total = torch.zeros((), dtype=torch.float32, device=parts[0].device)
    for part, multiplier, zero in zip(parts, multipliers, zeros):
        total = total + (part.int() - zero).float() * torch.tensor(multiplier, dtype=torch.float32, device=part.device)
    return (total.round() + out_zero).clamp(low, high).to(torch.uint8)

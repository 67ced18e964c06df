"""Reference of `accel::join_rows`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def join_rows(parts: Sequence[Tensor], taps: Sequence[Tensor | None], batch: int) -> Tensor:
    """parts [N * P_i, C_i], taps int32 [M] or None -> [N * M, the sum of C_i]."""
    if not batch:
        return parts[0].new_empty(0, sum(part.shape[1] for part in parts))
    images = [part.view(batch, len(part) // batch, part.shape[1]) for part in parts]
    read = [image if tap is None else image.index_select(1, tap) for image, tap in zip(images, taps)]
    return torch.cat(read, 2).flatten(0, 1)

"""The nearest map: for every position the computed one that stands in for it (Figurnov et al., NIPS 2016, 3.1)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18  # pixels resolved at a time, which bounds the memory to some tens of MB


def nearest_map(positions: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """For every position, the row of `positions` with the least Euclidean distance; ties drawn uniformly, once.

    Args:
        positions: int32 [P], flat index y * width + x, distinct.
    Returns:
        int32 [height * width]; a computed position stands for itself.

    Source: the paper's equation (1) and its rule for ties. The distance transform gives the exact squared distance d2;
    every lattice vector of length d2 that ends on a computed position is a tie, and all of them are found.
    """
    from scipy import ndimage

    row_of = np.full(height * width, -1, dtype=np.int64)
    row_of[positions.numpy()] = np.arange(len(positions))
    row_of = row_of.reshape(height, width)
    found = ndimage.distance_transform_edt(row_of < 0, return_distances=False, return_indices=True)
    y, x = np.indices((height, width), dtype=np.int64)
    squared = ((found[0] - y) ** 2 + (found[1] - x) ** 2).ravel()
    vectors = _vectors_by_length(int(squared.max()), height, width)
    draws = torch.rand(height * width, generator=generator, dtype=torch.float64, device="cpu").numpy()
    nearest = np.empty(height * width, dtype=np.int32)
    for start in range(0, height * width, _CHUNK):
        part = slice(start, start + _CHUNK)
        nearest[part] = _draw_among_ties(row_of, start, squared[part], draws[part], *vectors)
    return torch.from_numpy(nearest)


def _vectors_by_length(largest: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors that fit the map: (dy, dx, starts); those of squared length d2 are at starts[d2] : starts[d2 + 1]."""
    radius = math.isqrt(largest)
    rows, cols = min(radius, height - 1), min(radius, width - 1)
    dy, dx = (axis.ravel() for axis in np.mgrid[-rows : rows + 1, -cols : cols + 1])
    squared = dy**2 + dx**2
    order = np.argsort(squared, kind="stable")
    starts = np.searchsorted(squared[order], np.arange(largest + 2))
    return dy[order], dx[order], starts


def _draw_among_ties(
    row_of: np.ndarray,
    start: int,
    squared: np.ndarray,
    draws: np.ndarray,
    dy: np.ndarray,
    dx: np.ndarray,
    starts: np.ndarray,
) -> np.ndarray:
    """For the pixels start, start + 1, ...: the row of one computed position at distance sqrt(squared), drawn."""
    height, width = row_of.shape
    per_pixel = starts[squared + 1] - starts[squared]
    pixel = np.repeat(np.arange(len(squared)), per_pixel)
    ends = per_pixel.cumsum()
    vector = starts[squared][pixel] + np.arange(ends[-1]) - (ends - per_pixel)[pixel]
    y = (start + pixel) // width + dy[vector]
    x = (start + pixel) % width + dx[vector]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows = np.where(inside, row_of[y.clip(0, height - 1), x.clip(0, width - 1)], -1)
    tied = rows >= 0
    rows, counts = rows[tied], np.bincount(pixel[tied], minlength=len(squared))
    return rows[counts.cumsum() - counts + (draws * counts).astype(np.int64)]

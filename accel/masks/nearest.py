"""The nearest map: for every position the computed one that stands in for it (Figurnov et al., NIPS 2016, 3.1)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18  # pixels resolved at a time, which bounds the memory to some tens of MB
_MARGIN = 3  # distance up to which all vectors are tried, which are 28


def nearest_map(positions: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """For every position, the row of `positions` with the least Euclidean distance; ties drawn uniformly, once.

    Args:
        positions: int32 [P], flat index y * width + x, distinct.
    Returns:
        int32 [height * width]; a computed position stands for itself.

    Source: the paper's equation (1) and its rule for ties. Every vector of the least squared length d2 that ends on a
    computed position is a tie, and all of them are found.
    """
    row_of = np.full(height * width, -1, dtype=np.int32)
    row_of[positions.numpy()] = np.arange(len(positions), dtype=np.int32)
    if len(positions) == height * width:
        return torch.from_numpy(row_of)
    draws = torch.rand(height * width, generator=generator, dtype=torch.float64, device="cpu").numpy()
    padded = np.pad(row_of.reshape(height, width), _MARGIN, constant_values=-1)
    nearest, far = row_of.copy(), []
    for start in range(0, height * width, _CHUNK):
        skipped = start + np.flatnonzero(row_of[start : start + _CHUNK] < 0)
        far.append(_stand_in_nearby(nearest, padded, skipped, draws))
    if len(pixels := np.concatenate(far)):
        _stand_in_far(nearest, row_of.reshape(height, width), pixels, draws)
    return torch.from_numpy(nearest)


def _stand_in_nearby(nearest: np.ndarray, padded: np.ndarray, pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Fill in those of `pixels` that have a computed position no farther than _MARGIN; returns the others.

    One length after the other, all pixels at once: regular masks are done after the first two.

    Args:
        padded: the row of every position, -1 where there is none, with a margin.
    """
    pitch = padded.shape[1]
    y, x = np.divmod(pixels, pitch - 2 * _MARGIN)
    at = (y + _MARGIN) * pitch + x + _MARGIN
    dy, dx, starts = _vectors_by_length(_MARGIN**2, *padded.shape)
    for first, end in itertools.pairwise(starts[1:]):
        if first == end or not len(pixels):
            continue
        tied = padded.take(at + (dy[first:end] * pitch + dx[first:end])[:, None])
        there = tied >= 0
        count = there.sum(0)
        found = count > 0
        before = (draws[pixels] * count).astype(np.int64)  # ties come in the order of the vectors
        which = (there.cumsum(0, dtype=np.int8) <= before).sum(0)[found]
        nearest[pixels[found]] = np.take_along_axis(tied[:, found], which[None], 0)[0]
        at, pixels = at[~found], pixels[~found]
    return pixels


def _stand_in_far(nearest: np.ndarray, row_of: np.ndarray, pixels: np.ndarray, draws: np.ndarray) -> None:
    """Fill in `pixels`, by the distance transform, which gives the exact d2 of each."""
    from scipy import ndimage

    height, width = row_of.shape
    found = ndimage.distance_transform_edt(row_of < 0, return_distances=False, return_indices=True)
    found = found.reshape(2, -1)[:, pixels].astype(np.int64)
    squared = (found[0] - pixels // width) ** 2 + (found[1] - pixels % width) ** 2
    vectors = _vectors_by_length(int(squared.max()), height, width)
    for start in range(0, len(pixels), _CHUNK):
        part = slice(start, start + _CHUNK)
        nearest[pixels[part]] = _draw_among_ties(row_of, pixels[part], squared[part], draws[pixels[part]], *vectors)


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
    pixels: np.ndarray,
    squared: np.ndarray,
    draws: np.ndarray,
    dy: np.ndarray,
    dx: np.ndarray,
    starts: np.ndarray,
) -> np.ndarray:
    """For each of the pixels: the row of one computed position at distance sqrt(squared), drawn."""
    height, width = row_of.shape
    per_pixel = starts[squared + 1] - starts[squared]
    pixel = np.repeat(np.arange(len(squared)), per_pixel)
    ends = per_pixel.cumsum()
    vector = starts[squared][pixel] + np.arange(ends[-1]) - (ends - per_pixel)[pixel]
    y = pixels[pixel] // width + dy[vector]
    x = pixels[pixel] % width + dx[vector]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows = np.where(inside, row_of[y.clip(0, height - 1), x.clip(0, width - 1)], -1)
    tied = rows >= 0
    rows, counts = rows[tied], np.bincount(pixel[tied], minlength=len(squared))
    return rows[counts.cumsum() - counts + (draws * counts).astype(np.int64)]

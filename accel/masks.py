"""Masks: which output positions of a layer are computed, and the exact nearest computed position of every other.

Figurnov et al., "PerforatedCNNs", NIPS 2016, sections 3.1 (interpolation) and 3.3 (masks); the lattices are ours.
Every mask is a function of the keep fraction, the map size and a seeded generator, and keeps at least one position.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.kernels.positions import PositionSet

MASKS = ("uniform", "grid", "pooling", "impact", "iterative_impact", "lattice", "adaptive")
IMPACT_MASKS = ("impact", "iterative_impact")  # the same choice from a map; they differ in when it is measured
ADAPTIVE_BASE = 1 / 4  # the lattice under an adaptive mask; the rest of keep is chosen from each input
LATTICE_KEEPS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
_LATTICE_TOLERANCE = 0.01  # so that 0.33 and 0.67 name the thirds
_CHUNK = 1 << 18  # pixels resolved at a time in `nearest_map`, which bounds its memory to some tens of MB


class Pooling(NamedTuple):
    """The pooling layer that reads a convolution's output; every pair is (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False


def layer_generator(seed: int, layer_name: str, height: int, width: int) -> torch.Generator:
    """The generator for one layer at one output size: the same numbers on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}/{layer_name}/{height}x{width}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def lattice_keep(keep: float) -> float:
    """The lattice fraction that `keep` names; ConfigError where it names none."""
    closest = min((*LATTICE_KEEPS, 1.0), key=lambda fraction: abs(fraction - keep))
    if abs(closest - keep) > _LATTICE_TOLERANCE:
        raise ConfigError(
            f"mask 'lattice' keeps 1/4, 1/3, 1/2, 2/3 or 3/4 of the positions, got keep={keep:g}: "
            f"choose one of these, or mask='grid' or 'uniform'"
        )
    return closest


def build_mask(
    kind: str,
    keep: float,
    height: int,
    width: int,
    *,
    generator: torch.Generator,
    pooling: Pooling | None = None,
    impact: Tensor | None = None,
    shift: int = 0,
) -> PositionSet:
    """The position set of a layer whose output map is `height` x `width`.

    Args:
        kind: one of MASKS. `pooling` keeps the positions that the most pooling windows read, and is `uniform` where no
            pooling follows (`pooling=None`: every position counts the same); the two of IMPACT_MASKS keep the highest
            of `impact`; of `adaptive` this is the static part, the staggered quarter lattice.
        keep: fraction of positions to compute, in (0, 1]. The set's own `.keep` is what it really keeps: uniform,
            pooling and impact keep floor(keep * height * width), the grid round(height * sqrt(keep)) rows and
            round(width * sqrt(keep)) columns; never less than one position.
        generator: CPU generator for the random choices, among them the ties of the nearest map.
        impact: [height, width], the loss change per position; only for IMPACT_MASKS.
        shift: rows by which a lattice is moved down.

    Raises:
        ConfigError: unknown kind, keep outside (0, 1], a lattice that does not exist, a missing or misshapen impact.
    """
    if kind not in MASKS:
        raise ConfigError(f"unknown mask {kind!r}: choose one of {', '.join(MASKS)}")
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is the fraction of positions computed and must lie in (0, 1], got {keep!r}")
    if kind == "grid":
        positions = _grid(keep, height, width, generator)
    elif kind in ("lattice", "adaptive"):
        positions = _lattice(lattice_keep(keep) if kind == "lattice" else ADAPTIVE_BASE, height, width, shift)
    else:
        positions = _highest(_weights(kind, height, width, generator, pooling, impact), keep)
    return PositionSet(positions, nearest_map(positions, height, width, generator), height, width)


def _weights(
    kind: str, height: int, width: int, generator: torch.Generator, pooling: Pooling | None, impact: Tensor | None
) -> Tensor:
    """What each position is worth, float64 [height, width]."""
    if kind in IMPACT_MASKS:
        if impact is None or tuple(impact.shape) != (height, width):
            got = "none" if impact is None else f"one of {'x'.join(map(str, impact.shape))}"
            raise ConfigError(
                f"mask {kind!r} on a {height}x{width} map needs an impact map of that size, got {got}: "
                "pass calibration data to convert_model"
            )
        return impact.double()
    noise = torch.rand(height, width, generator=generator, dtype=torch.float64, device="cpu")
    if kind == "uniform" or pooling is None:
        return noise
    return pooling_coverage(height, width, pooling) + 1e-5 * noise


def _highest(weights: Tensor, keep: float) -> Tensor:
    """The floor(keep * H * W) positions of the highest weight, ascending; equal weights go to the lower index."""
    count = max(1, math.floor(keep * weights.numel() + 1e-9))  # 0.29 * 100 is 28.999999999999996
    order = torch.argsort(weights.flatten(), descending=True, stable=True)
    return order[:count].sort().values.to(torch.int32)


def pooling_coverage(height: int, width: int, pooling: Pooling) -> Tensor:
    """A(y, x): how many windows of the pooling layer cover each position; float64 [height, width] (paper, 3.3)."""
    rows, cols = (
        _axis_coverage(size, pooling.kernel[i], pooling.stride[i], pooling.padding[i], pooling.ceil_mode)
        for i, size in enumerate((height, width))
    )
    return rows[:, None] * cols[None, :]


def _axis_coverage(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Tensor:
    spare = size + 2 * padding - kernel
    windows = spare // stride + 1
    if ceil_mode and spare % stride and windows * stride < size + padding:
        windows += 1  # PyTorch's rule: the last, partial window counts only if it starts inside the map
    starts = torch.arange(windows, device="cpu")[:, None] * stride - padding
    where = torch.arange(size, device="cpu")[None, :]
    return ((where >= starts) & (where < starts + kernel)).sum(0).double()


def _grid(keep: float, height: int, width: int, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(2, generator=generator, dtype=torch.float32, device="cpu")
    offsets = 1 - drawn  # u and v of the paper lie in (0, 1]
    rows = _axis_grid(height, keep, float(offsets[0]))
    cols = _axis_grid(width, keep, float(offsets[1]))
    return (rows[:, None] * width + cols[None, :]).flatten().to(torch.int32)


def _axis_grid(size: int, keep: float, offset: float) -> Tensor:
    """a(i) = ceil(size / K * (i - 1 + u)) for i = 1..K, less 1 for indices from 0 (paper, 3.3; Graham's sequence)."""
    count = max(1, round(size * math.sqrt(keep)))
    steps = torch.arange(count, dtype=torch.float64, device="cpu") + offset
    return (torch.ceil(steps * (size / count)) - 1).long().clamp(0, size - 1)


def _lattice(fraction: float, height: int, width: int, shift: int) -> Tensor:
    """A regular pattern through position (shift, 0), or (shift % height, 0) on lower maps. Every skipped position has a
    computed one at distance 1 or sqrt 2, but for some on the borders."""
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    y, x = torch.meshgrid(rows - shift % height, columns, indexing="ij")
    if fraction == 1:
        kept = torch.ones(height, width, dtype=torch.bool, device="cpu")
    elif fraction == 1 / 2:
        kept = (y + x) % 2 == 0  # the checkerboard
    elif fraction == 1 / 3:
        kept = (y + x) % 3 == 0
    elif fraction == 2 / 3:
        kept = (y + x) % 3 != 2
    elif fraction == 1 / 4:
        kept = _quarter(y, x)
    else:
        kept = ~_quarter(y + 1, x)
    return kept.flatten().nonzero().flatten().to(torch.int32)


def _quarter(y: Tensor, x: Tensor) -> Tensor:
    """Every second column of every second row, shifted by one column in every other of these rows."""
    return (y % 2 == 0) & (x % 2 == (y // 2) % 2)


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

"""Filling skipped positions with weighted sums of computed neighbours: which ones, in which classes, how weighted.

The T nearest computed positions of a skipped one, in the order (distance, dy, dx), are its neighbours. Positions whose
neighbours lie at the same offsets form a class and share weights; the most frequent classes of a position set have
their own, and whatever is left (borders, irregular masks) shares the last. The offsets do not depend on the map's size,
so weights found at one size serve at any other.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache, kept_by_size
from accel.kernels.positions import Neighbors, PositionSet

_CLASSES = 16  # classes with weights of their own, at most
_SHARE = 0.02  # of the skipped positions: a class with fewer has too few samples to fit
_SPARE = 24  # neighbours looked up beyond T, so that ties in distance are all seen before they are cut off


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What a calibration found for one layer, on the CPU.

    Attributes:
        offsets: int16 [K - 1, T, 2], (dy, dx) of the neighbours of each class; the last class has none of its own.
        weights: [K, T, C], constant: [K, C]; see `accel.ops.interpolate`.
        scale, shift: [C], what the convolution's own output is corrected by, before anything is filled in.
        change: what is added to the convolution's weight; None for nothing.
    """

    offsets: Tensor
    weights: Tensor
    constant: Tensor
    scale: Tensor
    shift: Tensor
    change: Tensor | None = None

    def __post_init__(self) -> None:
        classes, taps, channels = self.weights.shape
        shapes = {"offsets": (classes - 1, taps, 2), "constant": (classes, channels)}
        shapes |= {"scale": (channels,), "shift": (channels,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}")

    def neighbors(self, positions: PositionSet) -> Neighbors:
        """The neighbours on a position set of any size, sorted into the classes of this fit."""
        offsets, (classes, count, _) = self.offsets.numpy(), self.weights.shape

        def sort(_: object) -> Neighbors:
            found = find_neighbors(positions, count)
            return sort_into_classes(found.skipped, found.rows, classify(found.offsets, offsets), classes)

        return _lists.get((positions.positions,), (positions.size, classes, count, offsets.tobytes()), sort)

    def tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def with_nearest(self, channels: Tensor) -> Fit:
        """The fit with these channels, bool [C], as in `nearest_fit`; also those where it holds NaN or infinity."""
        tensors = self.tensors()
        del tensors["offsets"]
        for tensor in tensors.values():
            per_channel = tensor.flatten(1) if tensor.dim() == 4 else tensor.movedim(-1, 0).reshape(len(channels), -1)
            channels = channels | ~per_channel.isfinite().all(1)
        if channels.all():
            return nearest_fit(len(channels))
        other = nearest_fit(len(channels), self.weights.shape[1]).tensors()
        change = None if self.change is None else self.change.masked_fill(channels[:, None, None, None], 0.0)
        chosen = {n: torch.where(channels, other[n].to(t), t) for n, t in tensors.items() if n != "change"}
        return Fit(self.offsets, **chosen, change=change)

    @property
    def nearest(self) -> Tensor:
        """bool [C], the channels that are filled in by nearest values, those computed staying as they are."""
        alone = (self.weights[:, 0] == 1) & (self.weights[:, 1:] == 0).all(1) & (self.constant == 0)
        return alone.all(0) & (self.scale == 1) & (self.shift == 0)

    def corrected(self, weight: Tensor) -> Tensor:
        """The convolution's weight, changed and scaled; differentiable."""
        weight = weight if self.change is None else weight + self.change.to(weight)
        return weight * self.scale.to(weight)[:, None, None, None]


def nearest_fit(channels: int, count: int = 1) -> Fit:
    """The nearest computed position's value, in every channel, on a map of any size.

    Args:
        count: T, neighbours of each skipped position; those beyond the nearest have weight 0.
    """
    kind = {"dtype": torch.float32, "device": "cpu"}
    weights = torch.zeros(1, count, channels, **kind)
    weights[:, 0] = 1.0
    return Fit(
        torch.zeros(0, count, 2, dtype=torch.int16, device="cpu"),
        weights,
        torch.zeros(1, channels, **kind),
        torch.ones(channels, **kind),
        torch.zeros(channels, **kind),
    )


class Nearest(NamedTuple):
    """The T nearest computed positions of each of F skipped ones.

    Attributes: skipped [F]; rows [F, T], of the position set; offsets int16 [F, T, 2], (dy, dx); classes int16
    [K - 1, T, 2], the offsets that most skipped positions share, the most frequent first.
    """

    skipped: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray
    classes: np.ndarray


_lists = IdentityCache()
_found: dict[tuple, Nearest] = {}
_KEPT = 64  # of them: a search tries five lattices on the few sizes of a network's maps
_LARGEST_KEPT = 1 << 22  # positions times neighbours: 50 MB


def find_neighbors(positions: PositionSet, count: int) -> Nearest:
    """The nearest T = `count` computed positions of each skipped one.

    A set of fewer than T positions repeats its farthest one. Layers whose sets are equal share what was found: HED's 19
    have five, and looking for the neighbours of each took a quarter of a calibration.
    """
    computed, (height, width) = positions.positions.numpy(), positions.size
    if height * width * count > _LARGEST_KEPT:
        return _find_neighbors(computed, height, width, count)
    key = (height, width, count, computed.tobytes())
    return kept_by_size(_found, key, lambda: _find_neighbors(computed, height, width, count), _KEPT)


def _find_neighbors(computed: np.ndarray, height: int, width: int, count: int) -> Nearest:
    from scipy.spatial import cKDTree

    computed = computed.astype(np.int64)
    skipped = np.setdiff1d(np.arange(height * width), computed)
    points, wanted = (np.stack([flat // width, flat % width], 1) for flat in (computed, skipped))
    looked_up = min(len(points), count + _SPARE)
    rows = cKDTree(points).query(wanted, k=looked_up)[1].reshape(len(wanted), looked_up)
    offsets = points[rows] - wanted[:, None]
    order = np.lexsort((offsets[..., 1], offsets[..., 0], (offsets**2).sum(2)), axis=1)
    order = order[:, np.minimum(np.arange(count), looked_up - 1)]
    offsets = np.take_along_axis(offsets, order[..., None], 1).astype(np.int16)
    return Nearest(skipped, np.take_along_axis(rows, order, 1), offsets, _common(offsets))


def _common(offsets: np.ndarray) -> np.ndarray:
    """int16 [K - 1, T, 2], the offsets shared by most skipped positions, the most frequent first."""
    if not len(offsets):
        return offsets
    found, counts = np.unique(offsets.reshape(len(offsets), -1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_CLASSES]
    order = order[counts[order] >= _SHARE * len(offsets)]
    return found[order].reshape(-1, *offsets.shape[1:])


def classify(offsets: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[F], the class of each skipped position; len(classes) where none fits."""
    kind = np.full(len(offsets), len(classes))
    for k, pattern in enumerate(classes):
        kind[(offsets == pattern).all((1, 2))] = k
    return kind


def sort_into_classes(skipped: np.ndarray, rows: np.ndarray, kind: np.ndarray, classes: int) -> Neighbors:
    """The neighbours of skipped positions of known class."""
    order = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[order], np.arange(classes + 1))
    tensors = (np.ascontiguousarray(array, dtype=np.int32) for array in (skipped[order], rows[order], starts))
    return Neighbors(*map(torch.from_numpy, tensors))


def distance_weights(offsets: np.ndarray, classes: np.ndarray) -> Tensor:
    """float32 [K, T], weights proportional to 1 / distance**2, adding up to one.

    The last class has no offsets of its own: it gets the mean over all skipped positions.
    """

    def weigh(offsets: np.ndarray) -> np.ndarray:
        inverse = 1 / (offsets.astype(np.float64) ** 2).sum(-1)
        return inverse / inverse.sum(-1, keepdims=True)

    if not len(offsets):
        return torch.full((1, offsets.shape[1]), 1 / offsets.shape[1], dtype=torch.float32, device="cpu")
    return torch.from_numpy(np.concatenate([weigh(classes), weigh(offsets).mean(0)[None]])).float()

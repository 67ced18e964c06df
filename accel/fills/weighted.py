"""Sums weighted by distance: the fit that needs no data."""

from __future__ import annotations

import torch

from accel.fills.contract import Fill, register
from accel.fills.sums import Fit, distance_weights, find_neighbors, nearest_fit
from accel.kernels.positions import PositionSet


@register
class Weighted(Fill):
    """The nearest computed positions, weighted by 1 / distance**2."""

    name = "weighted"

    def weigh(self, positions: PositionSet, count: int, channels: int) -> Fit:
        return weighted_by_distance(positions, count, channels)


def weighted_by_distance(positions: PositionSet, count: int, channels: int) -> Fit:
    """Weights proportional to 1 / distance**2, the same for every channel.

    Args:
        count: T, neighbours of each skipped position.
    """
    found = find_neighbors(positions, count)
    weights = distance_weights(found.offsets, found.classes)
    plain = nearest_fit(channels)
    return Fit(
        torch.from_numpy(found.classes.copy()),
        weights[:, :, None].expand(-1, -1, channels).contiguous(),
        plain.constant.expand(len(weights), -1).contiguous(),
        plain.scale,
        plain.shift,
    )

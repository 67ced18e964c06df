"""Means: of all computed positions in a picture, of a few around, and of the calibration data."""

import torch

from accel.fills import Fill, Fit, register
from accel.fills.sums import find_neighbors, nearest_fit


@register
class Mean(Fill):
    """The mean of the computed positions, picture by picture."""

    name = "mean"

    def background(self, rows, positions):
        return rows.mean(1, keepdim=True)


@register
class Even(Fill):
    """The mean of the neighbours."""

    name = "even"

    def weigh(self, positions, count, channels):
        classes = find_neighbors(positions, count).classes
        plain, kinds = nearest_fit(channels), len(classes) + 1
        weights = torch.full((kinds, count, channels), 1 / count)
        return Fit(torch.from_numpy(classes.copy()), weights, torch.zeros(kinds, channels), plain.scale, plain.shift)


@register
class Level(Fill):
    """What the dense network gives on average at the positions counted."""

    name = "level"

    def fit(self, layer, x, target, counted):
        plain = nearest_fit(layer.out_channels)
        level = target.flatten(2)[:, :, counted.to(target.device)].mean((0, 2)).cpu()
        return Fit(plain.offsets, torch.zeros_like(plain.weights), level[None], plain.scale, plain.shift)

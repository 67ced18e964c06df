"""Positions chosen from the input: what a mask with a score computes beside its static set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from accel.kernels.positions import ActiveSet, PositionSet
from accel.kernels.select_positions import select_positions
from accel.nn.geometry import geometry_of


def choose_positions(layer: nn.Conv2d, x: Tensor, lattice: PositionSet) -> ActiveSet:
    """The positions of each image outside the lattice whose input has the highest score.

    Args:
        layer: a perforated convolution; the chosen positions and the lattice make up `layer.config.keep` of the map.
        x: [N, C, H, W], its input.
        lattice: on its output map.
    """
    score = scores(layer, x, lattice).view(-1, *lattice.size)
    return select_positions(score, budget_of(layer, lattice))


def scores(layer: nn.Conv2d, x: Tensor, lattice: PositionSet) -> Tensor:
    """[N, H' * W'], what positions are chosen by; of those on the lattice -inf."""
    score = _under_the_middle(layer, layer.config.masking.score(x), lattice.size)
    return score.flatten(1).index_fill(1, lattice.positions.long(), -torch.inf)


def budget_of(layer: nn.Conv2d, lattice: PositionSet) -> int:
    """How many positions are chosen in each image."""
    return max(0, round(layer.config.keep * lattice.height * lattice.width) - len(lattice))


def _under_the_middle(layer: nn.Conv2d, score: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, H', W'], for every output position the score [N, H, W] of the input pixel under the kernel's middle."""
    now = geometry_of(layer)
    for axis in range(2):
        first = now.dilation[axis] * (now.kernel[axis] - 1) // 2 - now.padding[2 * axis]
        if (first, now.stride[axis], score.shape[axis + 1]) != (0, 1, size[axis]):
            at = first + now.stride[axis] * torch.arange(size[axis], device=score.device)
            score = score.index_select(axis + 1, at.clamp(0, score.shape[axis + 1] - 1))
    return score

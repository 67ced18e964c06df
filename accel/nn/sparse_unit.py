"""A residual unit at active positions only: what SACT saves, where the official code computes densely and masks.

The last convolution runs at the active positions; walking back, every spatial convolution needs its input on the
dilated set (section 3.2 of arXiv 1612.02297 masks the output; which inputs it needs follows). So a basic unit runs its
first 3x3 on the dilated set and its second on the active set, reading the first one's compact rows; a bottleneck runs
its first 1x1 on the dilated set.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from accel.nn.folding import FoldedWeights
from accel.nn.geometry import geometry_of
from accel.nn.residual_units import BranchStep, UnitDescription
from accel.nn.unit_proof import ProvedUnit
from accel.ops import active_positions, masked_conv2d, masked_conv2d_


class SparseUnit:
    """Runs one residual unit at the active positions, equal there to the unit's own dense forward in eval mode.

    Holds no parameters: weights with the batch norm folded in are cached and follow the unit's parameters.
    """

    def __init__(self, proved: ProvedUnit):
        self.proved = proved
        self._folded = [FoldedWeights() for _ in self.description.steps]

    @property
    def description(self) -> UnitDescription:
        return self.proved.description

    def __call__(self, state: Tensor, running: Tensor, in_place: bool = False) -> Tensor:
        """state [N, C, H, W] -> the same with the unit applied where running, bool [N, H, W], is set.

        `in_place`: written to the state itself, which is channels_last.
        """
        steps = self.description.steps
        reaches = _reaches(steps)
        sets = {d: active_positions(running, dilate=d) for d in set(reaches)}
        rows, source = state, None
        for step, folded, reach in zip(steps, self._folded, reaches, strict=True):
            last = step is steps[-1]
            weight, bias = folded.get(step.conv, step.bn)[:2]
            how = {
                "padding": step.padding,
                "dilation": geometry_of(step.conv).dilation,
                "groups": step.conv.groups,
                "activation": self.description.activation if last else step.activation,
                "source": source,
            }
            if last and in_place and source is not None:  # a unit of one convolution would read what it overwrites
                return masked_conv2d_(state, rows, weight, bias, sets[reach], accumulate=True, **how)
            rows = masked_conv2d(rows, weight, bias, sets[reach], residual=state if last else None, **how)
            source = sets[reach]
        return rows

    def executed_macs(self, running: Tensor) -> Tensor:
        """int64 [N]: MACs of the branch when it runs at the positions of `running`, bool [N, H, W]."""
        steps = self.description.steps
        reaches = _reaches(steps)
        counts = {d: _dilate(running, d).flatten(1).sum(1) for d in set(reaches)}
        return sum(counts[d] * step.conv.weight.numel() for d, step in zip(reaches, steps))


def _reaches(steps: tuple[BranchStep, ...]) -> list[int]:
    """How far the set of each step must be dilated, so that the steps behind it find their inputs.

    A position reads as far as its window is padded, in either direction: a unit that is masked keeps its size.
    """
    reaches, needed = [], 0
    for step in reversed(steps):
        reaches.append(needed)
        needed += max(step.padding)
    return reaches[::-1]


def _dilate(mask: Tensor, reach: int) -> Tensor:
    if reach == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0

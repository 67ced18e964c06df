"""The sides that whole-network timings compare: the dense network in both memory formats, and the converted one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

DENSE = ("dense_nchw", "dense_channels_last")


def dense_sides(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """`model` on `x` in NCHW and in channels_last; each side owns a copy of the weights in its format."""
    import torch

    def side(memory_format: torch.memory_format) -> Callable[[], Tensor]:
        net = copy.deepcopy(model).eval().to(memory_format=memory_format)
        given = x.contiguous(memory_format=memory_format)
        return lambda: net(given)

    return dict(zip(DENSE, (side(torch.contiguous_format), side(torch.channels_last))))


def fastest_dense(timings: Mapping) -> str:
    """The name of the dense side with the lower median."""
    return min(DENSE, key=lambda name: timings[name].median_ms)

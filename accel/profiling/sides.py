"""Whole networks as sides of a comparison: the dense forms that a converted one is measured against."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from accel.inputs import Inputs, as_batch
from accel.profiling.latency import Timing

FORMATS = {"dense_nchw": torch.contiguous_format, "dense_channels_last": torch.channels_last}
DENSE = tuple(FORMATS)


def in_format(net: nn.Module, x: Inputs, memory_format: torch.memory_format) -> Callable[[], object]:
    """A side: a copy of `net` with its weights in the memory format, on `x` in the same format."""
    net = copy.deepcopy(net).eval().to(memory_format=memory_format)
    given = as_batch(x).map(functools.partial(_laid_out, memory_format=memory_format))
    return lambda: given.run(net)


def _laid_out(value: object, memory_format: torch.memory_format) -> object:
    picture = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=memory_format) if picture else value


def network_sides(dense: nn.Module, converted: nn.Module, x: Inputs) -> dict[str, Callable[[], object]]:
    """`dense` in both memory formats, and `converted` in the one it computes in (what stays dense in it follows)."""
    sides = {name: in_format(dense, x, memory_format) for name, memory_format in FORMATS.items()}
    return {**sides, "converted": in_format(converted, x, torch.channels_last)}


def fastest(timings: Mapping[str, Timing], names: Iterable[str]) -> str:
    """The side among `names` with the lowest median."""
    return min(names, key=lambda name: timings[name].median_ms)

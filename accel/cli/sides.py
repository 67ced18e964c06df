"""Sides of a comparison: the dense forms of a network, the fastest of several, and the record of their timings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.profiling.latency import Timing

FORMATS = {"dense_nchw": torch.contiguous_format, "dense_channels_last": torch.channels_last}
DENSE = tuple(FORMATS)


def in_format(net: nn.Module, x: Tensor, memory_format: torch.memory_format) -> Callable[[], object]:
    """A side: a copy of `net` with its weights in the memory format, on `x` in the same format."""
    net = copy.deepcopy(net).eval().to(memory_format=memory_format)
    given = x.contiguous(memory_format=memory_format)
    return lambda: net(given)


def network_sides(dense: nn.Module, converted: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """`dense` in both memory formats, and `converted` in the one it computes in (what stays dense in it follows)."""
    sides = {name: in_format(dense, x, memory_format) for name, memory_format in FORMATS.items()}
    return {**sides, "converted": in_format(converted, x, torch.channels_last)}


def fastest(timings: Mapping[str, Timing], names: Iterable[str]) -> str:
    """The side among `names` with the lowest median."""
    return min(names, key=lambda name: timings[name].median_ms)


def medians(timings: Mapping[str, Timing]) -> dict[str, float]:
    """`ms_<side>` -> median, for a row."""
    return {f"ms_{name}": round(timing.median_ms, 4) for name, timing in timings.items()}


def quantiles(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """What a row keeps of every side beyond the median: quantiles in milliseconds, and samples taken."""
    return {
        name: {
            "q10_ms": round(timing.quantile_ms(0.1), 4),
            "q90_ms": round(timing.quantile_ms(0.9), 4),
            "samples": len(timing.samples_ms),
            "calls": timing.calls,
        }
        for name, timing in timings.items()
    }

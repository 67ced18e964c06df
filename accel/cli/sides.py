"""The record of timed sides, for the rows of benchmarks; the sides themselves are in `accel.profiling.sides`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.profiling.latency import Timing


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

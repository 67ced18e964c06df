"""Timing several ways to compute the same thing, fairly: one process, interleaved, warmed up, medians and quantiles."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from accel.errors import ConfigError

_LARGEST_KEPT = (32 << 20) - (64 << 10)  # bytes: glibc keeps freed blocks up to 32 MiB for itself
_SHORTEST_MS = 1.0  # a sample repeats the call until it lasts this long: the clock and the loop cost about 1 us


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds per call. Attributes: samples_ms, one for every round, in order; calls, per sample."""

    samples_ms: tuple[float, ...]
    calls: int = 1

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    def quantile_ms(self, fraction: float) -> float:
        """The sample below which `fraction` of the samples lie, linearly interpolated."""
        return float(np.quantile(self.samples_ms, fraction))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster one side is than another. Attributes: median of the rounds' ratios; low and high, their
    10 % and 90 % quantiles."""

    median: float
    low: float
    high: float


def compare(
    sides: Mapping[str, Callable[[], object]],
    repeats: int = 10,
    warmup: int = 3,
    sample: Callable[[Callable[[], object], int], float] | None = None,
) -> dict[str, Timing]:
    """Time every side `repeats` times, taking turns, so that a disturbance of the machine hits all of them alike.

    Every round starts with another side. On a CUDA machine each sample waits for the device.

    Args:
        sides: name -> the call to time.
        warmup: calls of each side before, untimed (at least one).
        sample: (call, number of calls) -> milliseconds per call; None takes the wall clock, and waits for the device.

    Raises:
        ConfigError: nothing to time, or no repeats.
    """
    if not sides or repeats < 1:
        raise ConfigError(f"timing needs at least one side and one repeat, got {len(sides)} and {repeats}")
    settle_allocator()
    sample = sample or _sample_ms
    calls = {name: _calls_per_sample(sample, call, max(1, warmup)) for name, call in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(sample(sides[name], calls[name]))
    return {name: Timing(tuple(samples[name]), calls[name]) for name in names}


def ratio(slow: Timing, fast: Timing) -> Ratio:
    """How many times faster `fast` is, round by round, for two timings of one `compare`."""
    ratios = [a / b for a, b in zip(slow.samples_ms, fast.samples_ms)]
    low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    return Ratio(float(median), float(low), float(high))


def settle_allocator() -> None:
    """Bring malloc into the state of a process that has run for a while.

    glibc gives large freed blocks back to the system, and every map of a young process is paid for in page faults,
    until it has once freed a block of that size (mallopt(3), M_MMAP_THRESHOLD). A dense ResNet-32 on 64 pictures took
    53 ms before and 31 ms after.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # freed at once


def _calls_per_sample(sample: Callable, call: Callable[[], object], warmup: int) -> int:
    shortest = min(sample(call, 1) for _ in range(warmup))
    return max(1, round(_SHORTEST_MS / max(shortest, 1e-3)))


def _sample_ms(call: Callable[[], object], calls: int) -> float:
    _wait()
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    _wait()
    return (time.perf_counter_ns() - start) / 1e6 / calls


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

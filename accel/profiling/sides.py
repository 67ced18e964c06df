"""Whole networks as sides of a comparison: the dense forms that a converted one is measured against, and the record of
what was timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from accel.inputs import Batch, Inputs, as_batch
from accel.profiling.latency import Timing, compare
from accel.running import copied, evaluated

FORMATS = {"dense_nchw": torch.contiguous_format, "dense_channels_last": torch.channels_last}
DENSE = tuple(FORMATS)


def in_format(net: nn.Module, x: Inputs, memory_format: torch.memory_format) -> functools.partial:
    """A side: a copy of `net` with its weights in the memory format, on `x` in the same format."""
    net = evaluated(copied(net))
    for parameter in net.parameters():
        parameter.data = _laid_out(parameter.data, memory_format)
    return functools.partial(laid_out(x, memory_format).run, net)


def laid_out(x: Inputs, memory_format: torch.memory_format) -> Batch:
    """The inputs of a model, pictures among them in the memory format."""
    return as_batch(x).map(functools.partial(_laid_out, memory_format=memory_format))


def _laid_out(value: object, memory_format: torch.memory_format) -> object:
    picture = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=memory_format) if picture else value


def dense_sides(net: nn.Module, x: Inputs) -> dict[str, functools.partial]:
    """A side for every memory format that `net` runs in: a forward that views its maps as rows needs NCHW.

    Raises:
        RuntimeError: the model's own, where it runs in none.
    """
    sides, failed = {}, None
    with torch.inference_mode():
        for name, memory_format in FORMATS.items():
            side = in_format(net, x, memory_format)
            try:
                side()
            except RuntimeError as error:
                failed = error
            else:
                sides[name] = side
    if not sides:
        raise failed
    return sides


def network_sides(dense: nn.Module, converted: nn.Module, x: Inputs) -> dict[str, Callable[[], object]]:
    """`dense` in every memory format, and `converted` in the one it computes in (what stays dense in it follows)."""
    return {**dense_sides(dense, x), "converted": in_format(converted, x, torch.channels_last)}


def fastest(timings: Mapping[str, Timing], names: Iterable[str]) -> str:
    """The side among `names` with the lowest median; those that could not run were not timed."""
    return min((name for name in names if name in timings), key=lambda name: timings[name].median_ms)


def fastest_form(dense: nn.Module, x: Inputs, repeats: int = 3) -> tuple[str, functools.partial]:
    """(name of the memory format that `dense` is fastest in on x, such as "channels_last"; its side)."""
    sides = dense_sides(dense, x)
    with torch.inference_mode():
        best = fastest(compare(sides, repeats), sides)
    return best.removeprefix("dense_"), sides[best]


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

"""How long models take, and how the time of a run is shared out among the layers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from accel.errors import AccelError
from accel.inputs import Inputs
from accel.profiling.dense_forms import compiled_side
from accel.profiling.latency import Timing, compare
from accel.profiling.memory import peak_activation_bytes
from accel.running import evaluation, observer, replaced_forwards


@dataclasses.dataclass(frozen=True)
class Times:
    """Of sides by name, such as "ms". Attributes: whole, of a call; shares, what layers take of it in every round, ""
    for what is in none of them, the medians of all being 1 together; peak_bytes, the most that activations take."""

    whole: dict[str, Timing]
    shares: dict[str, dict[str, list[float]]]
    peak_bytes: dict[str, int]


def measured_times(
    runs: Mapping[str, functools.partial], names: Sequence[str], repeats: int, compiled_on: Inputs | None = None
) -> Times:
    """Times of runs that take turns, in evaluation and inference mode.

    Args:
        runs: side -> a call of a model, its first argument.
        names: the layers among which time is shared out.
        compiled_on: inputs to time the models compiled by torch on, as further sides, such as "compiled_ms".

    Raises:
        AccelError: torch cannot compile a model.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for run in runs.values():
            stack.enter_context(evaluation(_model_of(run)))
        compiled = {} if compiled_on is None else _compiled(runs, compiled_on)
        return Times(
            compare({**runs, **compiled}, repeats),
            _layer_shares(runs, names, repeats),
            {key: peak_activation_bytes(run) for key, run in runs.items()},
        )


def _compiled(runs: Mapping[str, functools.partial], x: Inputs) -> dict[str, Callable[[], object]]:
    sides = {}
    for key, run in runs.items():
        model = _model_of(run)
        try:
            sides[key.replace("ms", "compiled_ms")] = compiled_side(model, x, reset=not sides)
        except Exception as error:  # of many kinds: dynamo's, its backend's, those of the compiler for C++
            said = " ".join(str(error).split())[:300]
            raise AccelError(f"torch cannot compile {type(model).__name__} ({type(error).__name__}: {said})") from error
    return sides


def _layer_shares(
    runs: Mapping[str, functools.partial], names: Sequence[str], repeats: int
) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {key: {} for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            for name, spent in _timed_run(run, names).items():
                samples[key].setdefault(name, []).append(spent)
    shares = {}
    for key, side in samples.items():
        whole = sum(map(statistics.median, side.values()))
        shares[key] = {name: [spent / whole for spent in times] for name, times in side.items()}
    return shares


def _model_of(run: functools.partial) -> nn.Module:
    return run.args[0]


def _timed_run(run: functools.partial, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds spent during one run in each of the named layers, but not in others within them; "" for the rest."""
    spent: dict[str, float] = {}
    within = [0.0]  # of each call under way, what the layers called in it took

    def timed(name: str, forward: Callable) -> Callable:
        def call(*args, **kwargs):
            start = _now_ms()
            within.append(0.0)
            try:
                return forward(*args, **kwargs)
            finally:
                took = _now_ms() - start
                spent[name] = spent.get(name, 0.0) + took - within.pop()
                within[-1] += took

        return call

    layers = {name: layer for name, layer in _model_of(run).named_modules() if name in names and name}
    watched = {layer: observer(layer.forward, functools.partial(timed, name)) for name, layer in layers.items()}
    with replaced_forwards(watched):
        timed("", run)()
    return spent


def _now_ms() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3

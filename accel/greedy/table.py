"""What every layer costs under every candidate: milliseconds measured inside the network, or multiply-accumulates.

A network in which all layers take the same candidate runs on the example, and the time from the start of each layer to
the start of the next is that layer's: so inputs are real, what a layer hands over (compact rows or a map) and what
reads it are included. The networks take turns.

Unwatched, a network may be faster than its parts: chains of layers then run as one recorded call. So the parts are
scaled to the time of the whole, those of each network by a factor of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from accel.errors import ConfigError
from accel.inputs import Batch
from accel.low_rank import LowRankConv2d
from accel.profiling.latency import compare, settle_allocator
from accel.running import evaluation, observer, replaced_forwards

DENSE = "dense"  # the label of a layer that is left as it is
REPEATS = 9


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes: costs, layer -> label of a candidate (or DENSE) -> cost; rest, the cost of everything else; unit."""

    costs: Mapping[str, Mapping[str, float]]
    rest: float
    unit: str = "ms"

    def price(self, state: Mapping[str, str]) -> float:
        """The cost of the network whose layers have the labels of `state`, the others being dense."""
        return self.rest + sum(costs[state.get(name, DENSE)] for name, costs in self.costs.items())

    def to_dict(self) -> dict:
        return {
            "costs": {name: dict(costs) for name, costs in self.costs.items()},
            "rest": self.rest,
            "unit": self.unit,
        }

    @staticmethod
    def from_dict(data: Mapping) -> Table:
        """The table that `to_dict` wrote. ConfigError: it is none."""
        try:
            costs = {name: {label: float(c) for label, c in row.items()} for name, row in data["costs"].items()}
            return Table(costs, float(data["rest"]), str(data["unit"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"this is no table of a search ({error!r}): measure it again") from error

    def check(self, layers: Mapping[str, Iterable[str]]) -> None:
        """ConfigError for the first layer or candidate that has no cost."""
        for name, labels in layers.items():
            missing = [label for label in (DENSE, *labels) if label not in self.costs.get(name, {})]
            if missing:
                raise ConfigError(f"the table has no cost of layer {name!r} under {missing[0]!r}: measure it again")


def time_layers(
    networks: Mapping[str, nn.Module],
    layers: Mapping[str, Mapping[str, str]],
    example: Batch,
    rounds: Iterable[int] = range(REPEATS + 1),
    repeats: Callable[[float], int] = lambda _: REPEATS,
) -> Table:
    """The measured table.

    Args:
        networks: label -> a network whose layers all take that candidate where they can; DENSE among them.
        layers: name -> label that the layer may take -> label of the network in which it takes as long.
        example: what the networks run on.
        rounds: one run of every network each; medians are kept. The first warms up and does not count.
        repeats: (seconds that all networks took in turn) -> how often they are timed as a whole.
    """
    names = [name for name, module in networks[DENSE].named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    samples: dict[tuple[str, str], list[float]] = {}
    settle_allocator()
    seconds = 0.0
    for turn in rounds:
        begin = time.perf_counter()
        for label, network in networks.items():
            for name, spent in _segments(network, names, example).items():
                samples.setdefault((name, label), []).extend([spent] if turn else [])
        seconds = time.perf_counter() - begin
    medians = {key: statistics.median(values) for key, values in samples.items()}
    for label, whole in _whole_ms(networks, example, repeats(seconds)).items():
        parts = [key for key in medians if key[1] == label]
        factor = whole / sum(medians[key] for key in parts)
        medians.update({key: factor * medians[key] for key in parts})
    costs = {
        name: {label: medians[name, timed] for label, timed in {DENSE: DENSE, **labels}.items()}
        for name, labels in layers.items()
    }
    rest = sum(ms for (name, label), ms in medians.items() if label == DENSE and name not in layers)
    return Table(costs, rest)


@torch.inference_mode()
def _whole_ms(networks: Mapping[str, nn.Module], example: Batch, repeats: int) -> dict[str, float]:
    with contextlib.ExitStack() as modes:
        for network in networks.values():
            modes.enter_context(evaluation(network))
        sides = {label: functools.partial(example.run, net) for label, net in networks.items()}
        timing = compare(sides, repeats, warmup=1)
    return {label: found.median_ms for label, found in timing.items()}


@torch.inference_mode()
def _segments(network: nn.Module, names: Sequence[str], example: Batch) -> dict[str, float]:
    """Milliseconds from the start of each named layer to the start of the next, "" being what comes before them all."""
    marks: list[tuple[str, float]] = [("", _now_ms())]

    def marked(name: str, forward: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            marks.append((name, _now_ms()))
            return forward(*args, **kwargs)

        return run

    modules = {name: _entry(network.get_submodule(name)) for name in names}
    watched = {m: observer(m.forward, functools.partial(marked, name)) for name, m in modules.items()}
    with evaluation(network), replaced_forwards(watched):
        marks[0] = ("", _now_ms())
        example.run(network)
        marks.append(("", _now_ms()))
    spent: dict[str, float] = {}
    for (name, start), (_, end) in itertools.pairwise(marks):
        spent[name] = spent.get(name, 0.0) + end - start
    return spent


def _entry(layer: nn.Module) -> nn.Module:
    """What is called first of a layer: where two stand for one, their container need not be called at all."""
    return layer[0] if isinstance(layer, LowRankConv2d) else layer


def _now_ms() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3


def without_dense(state: Mapping[str, str]) -> dict[str, str]:
    """The state with no word of the layers that stay dense: each has one form, then."""
    return {name: label for name, label in state.items() if label != DENSE}

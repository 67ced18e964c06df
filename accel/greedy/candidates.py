"""What the layers of a search may become: which layers, which configurations, and the networks they make."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from accel.config import MISSING, PRECISIONS, Perforate, Rules
from accel.convert import (
    Conversion,
    build_sets,
    convert_layers,
    convolutions,
    counted_layers,
    left_dense,
    left_in_fp32,
    reached,
    said_of,
    settle_layouts,
    with_pooling,
)
from accel.errors import ConfigError, ConversionError
from accel.fills import CORRECTIONS
from accel.greedy.table import DENSE, Table
from accel.impact import impact_maps
from accel.inputs import Batch, Inputs, as_batch
from accel.kernels.positions import PositionSet
from accel.masks import LATTICE_KEEPS
from accel.nn.inference import install
from accel.nn.perforated import PerforatedConv2d, shallow_copy
from accel.nn.quantized import Quantization, why_not_bytes
from accel.profiling.flops import layer_macs
from accel.running import copied, evaluated, record_calls, run_on

_LINEAR = "a linear layer has one position: it has but eight bits to gain"
_SMALLEST = 0.005  # share of the network's MACs below which a layer is left alone: it cannot repay the search


def default_candidates(seed: int = 0, precision: str = PRECISIONS[0]) -> tuple[Perforate, ...]:
    """The lattices, filled in by the nearest position or by fitted sums, without and with refitted weights, in the
    precision; and every position, by the engine's own form, in fp32 as well.

    Whole layers by the engine count as candidates because it may be faster than torch's convolution.
    """
    filled = ({"interpolate": "nearest"}, *({"interpolate": "fitted", "correct": correct} for correct in CORRECTIONS))
    lattices = ((keep, how) for keep in sorted(LATTICE_KEEPS, reverse=True) for how in filled)
    return (
        *(
            Perforate(mask="lattice", seed=seed, keep=1.0, precision=each)
            for each in dict.fromkeys([PRECISIONS[0], precision])
        ),
        *(Perforate(mask="lattice", seed=seed, keep=keep, precision=precision, **how) for keep, how in lattices),
    )


def label_of(config: Perforate) -> str:
    """A candidate's name in tables and traces."""
    summed = f" {config.neighbors}" if config.filling.sums else ""
    shifted = f" shifted {config.shift}" if config.shift else ""
    corrected = f" {config.correct}" if config.effort > 1 else ""
    precise = f" {config.precision}" if config.in_bytes else ""
    return f"{config.mask} {config.keep:.3g}{shifted} {config.interpolate}{summed}{corrected}{precise}"


@dataclasses.dataclass(frozen=True)
class Space:
    """What a search chooses from.

    Attributes:
        model: the dense network.
        example: what it runs on when it is timed.
        calls: the output shapes of its layers there.
        candidates: layer -> label -> what it turns the layer into; the layers in the model's order.
        fixed: layers that a rule decided, and None for those it leaves dense.
        macs: layer -> dense MACs, of all convolutions and linear layers.
        sets: (layer, label) -> its positions there; kept here, so that all networks of a search share them and what
            is worked out for them.
        left: layer -> why it is left dense without a search.
    """

    model: nn.Module
    example: Batch
    calls: Mapping[str, list[tuple[int, ...]]]
    candidates: Mapping[str, Mapping[str, Conversion]]
    fixed: Mapping[str, Perforate | None]
    macs: Mapping[str, int]
    sets: Mapping[tuple[str, str], PositionSet]
    left: Mapping[str, str]

    def network(self, state: Mapping[str, str]) -> nn.Module:
        """The converted network for timing: it shares the model's parameters, weighted sums stand in for fits, and any
        range for those of bytes."""
        chosen = {name: self.candidates[name][label] for name, label in state.items() if label != DENSE}
        network = shared_copy(self.model)
        timed = {name: _timed_like(conversion) for name, conversion in chosen.items()}
        convert_layers(network, {n: _with_ranges(network.get_submodule(n), made) for n, made in timed.items()})
        install(network)
        build_sets(network, self.calls)
        return network

    def uniform(self, label: str, without: Iterable[str] = ()) -> dict[str, str]:
        """The state in which the layers searched take the candidate where they can, but for those `without`."""
        skipped = {*without, *self.fixed}
        return {**self.start, **{n: label for n, row in self.candidates.items() if label in row and n not in skipped}}

    def corrected(self, state: Mapping[str, str], correct: str) -> dict[str, str]:
        """The state with `correct` in every fit that is searched, where a candidate says so: it takes as long."""
        return {name: self._twin(name, label, correct) for name, label in state.items()}

    def _twin(self, name: str, label: str, correct: str) -> str:
        row = self.candidates[name]
        if label == DENSE or name in self.fixed or not row[label].config.filling.needs_data:
            return label
        twin = label_of(dataclasses.replace(row[label].config, correct=correct))
        return twin if twin in row else label

    def timed_as(self) -> dict[str, dict[str, str]]:
        """layer -> label -> the first label of all that takes as long there."""
        first: dict[Perforate, str] = {}
        configs = {label: made for row in self.candidates.values() for label, made in row.items()}
        for label, made in configs.items():
            first.setdefault(_timed_like(made).config, label)
        return {
            name: {label: first[_timed_like(made).config] for label, made in row.items()}
            for name, row in self.candidates.items()
        }

    def only(self, labels: Iterable[str]) -> Space:
        """The space with these candidates only, and those that rules decided."""
        kept = set(labels)
        rows = {
            name: {label: made for label, made in row.items() if label in kept or name in self.fixed}
            for name, row in self.candidates.items()
        }
        return dataclasses.replace(self, candidates=rows)

    def without(self, names: Iterable[str]) -> Space:
        """The space in which these layers stay dense."""
        fixed, candidates = ({n: v for n, v in row.items() if n not in names} for row in (self.fixed, self.candidates))
        return dataclasses.replace(self, fixed=fixed, candidates=candidates)

    @property
    def start(self) -> dict[str, str]:
        """The state before the search: the layers that a rule decided."""
        return {name: label_of(config) for name, config in self.fixed.items() if config is not None}

    @property
    def layers(self) -> list[str]:
        """Every convolution, and the linear layers in eight bits, in the model's order."""
        return [n for n, layer in self.model.named_modules() if isinstance(layer, nn.Conv2d) or n in self.candidates]

    def kept(self, name: str, label: str) -> float:
        """The fraction of the positions that a candidate's mask really keeps."""
        found = self.sets.get((name, label))
        return self.candidates[name][label].config.keep if found is None else found.keep

    @property
    def searched(self) -> list[str]:
        return [name for name in self.candidates if name not in self.fixed]

    def mac_table(self) -> Table:
        """Executed MACs of every layer under every candidate."""
        costs = {
            name: {DENSE: float(self.macs[name])}
            | {label: self.macs[name] * self.kept(name, label) for label in self.candidates[name]}
            for name in self.candidates
        }
        rest = sum(count for name, count in self.macs.items() if name not in costs)
        return Table(costs, float(rest), "MACs")


def open_space(
    model: nn.Module,
    example_inputs: Inputs,
    calibration: Iterable,
    candidates: Sequence[Perforate],
    rules: Rules | None,
    loss: Callable | None,
) -> Space:
    """The space of a search over every convolution that no rule decides and that has work worth saving.

    Raises:
        ConfigError: a candidate without keep.
        ConversionError: no such convolution.
    """
    configs = {label_of(config): config for config in candidates}
    if any(config.keep is None for config in configs.values()):
        raise ConfigError("a candidate of a search needs keep=")
    if hidden := {*candidates} - {*configs.values()}:
        raise ConfigError(f"two candidates of a search are both called {label_of(hidden.pop())!r}: leave one out")
    layers = convolutions(model)
    calls = record_calls(model, counted_layers(model), example_inputs)
    macs = {row.name: row.dense or 0 for row in layer_macs(model, example_inputs)}
    fixed, left = _settled(model, layers, calls, macs, configs.values(), rules)
    options = {n: _possible(configs, layer) for n, layer in layers.items() if n not in left and n not in fixed}
    if any(config.in_bytes for config in configs.values()) and all(map(why_not_bytes, layers.values())):
        name, layer = next(iter(layers.items()))
        raise ConversionError(f"no layer can compute in eight bits: {name!r} {why_not_bytes(layer)}")
    options = {name: row for name, row in options.items() if row}
    if not options:
        raise ConversionError(f"{type(model).__name__} has no convolution to search over: {left or 'rules decide all'}")
    options |= {name: {label_of(config): config} for name, config in fixed.items() if config is not None}
    options = {name: options[name] for name, _ in model.named_modules() if name in options}
    prepared = evaluated(copied(model))
    run = functools.partial(run_on, example_inputs=example_inputs)
    contiguous = settle_layouts(prepared, calls, run, weights=True)
    made = _conversions(model, layers, options, contiguous, calibration, loss)
    sets = {
        (name, label): _positions(layers[name], name, conversion, calls[name][0])
        for name, row in made.items()
        for label, conversion in row.items()
        if calls[name] and name in layers
    }
    useful = {
        name: {n: c for n, c in row.items() if name in fixed or not sets[name, n].is_full or c.config.keep == 1}
        for name, row in made.items()
    }
    left |= {name: "is too small to leave positions out" for name, row in useful.items() if not row}
    useful = {name: row for name, row in useful.items() if row}
    if not useful.keys() - fixed.keys():
        raise ConversionError(f"{type(model).__name__} has no convolution to search over: {left}")
    return Space(prepared, as_batch(example_inputs), calls, useful, fixed, macs, sets, left)


def _settled(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d],
    calls: Mapping[str, list],
    macs: Mapping[str, int],
    configs: Collection[Perforate],
    rules: Rules | None,
) -> tuple[dict[str, Perforate | None], dict[str, str]]:
    """(what layers are that are not searched, why that is so of those that no rule decides)."""
    fixed = _decided(model, rules)
    undecided = {name: layer for name, layer in layers.items() if name not in fixed}
    left = {name: reason for name, layer in undecided.items() if (reason := _unworthy(name, layer, calls, macs))}
    linears = _linears(model, rules, calls)
    fixed |= {name: config for name, said in linears.items() if (config := _whole_in_bytes(said)) is not None}
    whole = next((config for config in configs if config.in_bytes and config.keep == 1), None)
    if whole is not None:
        fixed |= {name: whole for name in left if calls[name] and _can_be_bytes(layers[name])}
        free = [name for name, said in linears.items() if said is MISSING]
        fixed, left = fixed | dict.fromkeys(free, whole), left | dict.fromkeys(free, _LINEAR)
    return fixed, left


def _decided(model: nn.Module, rules: Rules | None) -> dict[str, Perforate | None]:
    if rules is None:
        return {}
    rules.check_used(reached(model, rules))
    return {name: said for name, said in said_of(model, rules, nn.Conv2d).items() if said is not MISSING}


def _can_be_bytes(layer: nn.Conv2d) -> bool:
    """Whether a layer that is not worth a search goes to eight bits where these are a candidate: those around it then
    hand over bytes."""
    return left_dense(layer) is None and why_not_bytes(layer) is None


def _linears(model: nn.Module, rules: Rules | None, calls: Mapping[str, list]) -> dict[str, object]:
    """What the rules say of the linear layers that can compute in eight bits."""
    able = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and left_in_fp32(layer) is None]
    said = {} if rules is None else said_of(model, rules, nn.Linear)
    return {name: said.get(name, MISSING) for name in able if calls[name]}


def _whole_in_bytes(config: object) -> Perforate | None:
    """What a rule makes of a linear layer, which has one position: nothing, where it does not ask for bytes."""
    asked = isinstance(config, Perforate) and config.in_bytes
    return Perforate(mask="lattice", keep=1.0, precision=config.precision) if asked else None


def _possible(configs: Mapping[str, Perforate], layer: nn.Conv2d) -> dict[str, Perforate]:
    """The candidates that a layer can take."""
    return {n: config for n, config in configs.items() if not config.in_bytes or why_not_bytes(layer) is None}


def _unworthy(name: str, layer: nn.Conv2d, calls: Mapping[str, list], macs: Mapping[str, int]) -> str | None:
    """Why a search leaves the layer dense, or None."""
    if (reason := left_dense(layer)) is not None:
        return reason
    if not calls[name]:
        return "is not called"
    share = macs.get(name, 0) / max(1, sum(macs.values()))
    return f"has {100 * share:.2f} % of the MACs, too few to matter" if share < _SMALLEST else None


def _conversions(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d],
    options: Mapping[str, Mapping[str, Perforate]],
    contiguous: Collection[str],
    calibration: Iterable,
    loss: Callable | None,
) -> dict[str, dict[str, Conversion]]:
    if any(config.masking.iterative for row in options.values() for config in row.values()):
        raise ConfigError("a search measures impact once, on the dense network: give its candidates mask 'impact'")
    weighed = {name: layers[name] for name, row in options.items() if any(map(_is_weighed, row.values()))}
    impacts = impact_maps(model, weighed, calibration, loss) if weighed else {}
    made: dict[str, dict[str, Conversion]] = {name: {} for name in options}
    for label in dict.fromkeys(label for row in options.values() for label in row):
        takers = {name: row[label] for name, row in options.items() if label in row}
        found = {
            n: Conversion(c, impact=impacts.get(n) if _is_weighed(c) else None, contiguous=n in contiguous)
            for n, c in takers.items()
        }
        for name, conversion in with_pooling(model, found).items():
            made[name][label] = conversion
    return made


def _is_weighed(config: Perforate) -> bool:
    return config.masking.needs_data


def _positions(layer: nn.Conv2d, name: str, made: Conversion, shape: tuple[int, ...]) -> PositionSet:
    probe = PerforatedConv2d.adopt(shallow_copy(layer), made.config, name, made.pooling, made.impact)
    return probe.position_set(*shape[-2:])


def _timed_like(conversion: Conversion) -> Conversion:
    """A conversion that takes as long and needs no fit."""
    config = conversion.config
    if not config.filling.needs_data:
        return conversion
    return dataclasses.replace(conversion, config=config.filled_by(config.filling.likeness))


def _with_ranges(layer: nn.Conv2d | nn.Linear, conversion: Conversion) -> Conversion:
    """The conversion with some range, where bytes need one."""
    if not conversion.config.in_bytes:
        return conversion
    is_linear = isinstance(layer, nn.Linear)
    read, given = (layer.in_features, layer.out_features) if is_linear else (layer.in_channels, layer.out_channels)
    scale = torch.tensor(1 / 32, dtype=torch.float64, device="cpu")
    zero = torch.tensor(0, dtype=torch.int64, device="cpu")
    clip = torch.ones(given, dtype=torch.float32, device="cpu")
    mean = torch.zeros(read, dtype=torch.float32, device="cpu")
    reach = None if is_linear else torch.tensor([[-1.0], [1.0]], dtype=torch.float32, device="cpu").repeat(1, given)
    return dataclasses.replace(conversion, quantization=Quantization(scale, zero, clip, mean, reach))


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the very same parameters and buffers: many networks would not fit into memory."""
    return copied(model, (*model.parameters(), *model.buffers()))

"""`accel.search`: which positions to keep in which layer, and how to fill in the others, for the speed asked for.

Figurnov et al., NIPS 2016, section 3.4: in every step the layer and candidate of the least (loss - loss0) / (time0 -
time), always relative to the original network. Their search measured every candidate network whole. Here time adds up
from a table of the layers (`accel.greedy.table`), loss from the increase that each single candidate causes in the
network as it stands (`accel.greedy.losses`), measured anew every few steps; and whether a target is met is decided by
timing the whole network, not by the sum.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from accel.config import Perforate, Rules, as_rules
from accel.convert import Conversion
from accel.errors import ConversionError
from accel.greedy.candidates import Space, default_candidates, open_space
from accel.greedy.journal import Journal, fingerprint
from accel.greedy.losses import Look, Loss, Losses, Track
from accel.greedy.table import DENSE, REPEATS, Table, time_layers
from accel.greedy.trace import FoundRules, Step, save_found
from accel.inputs import Inputs, batches, first_pictures
from accel.profiling.latency import compare, ratio
from accel.profiling.sides import DENSE as DENSE_SIDES
from accel.profiling.sides import FORMATS, fastest, in_format

STEPS_PER_LAYER = 1.0  # accepted steps for each layer searched, until the losses are measured anew
_AHEAD = 4  # candidates of a layer that are tried at a time, the next cheaper ones
_SAME_TIME = 0.05  # a plain filling has to be so much faster than the fitted one of the same mask to be tried
_LOOK_SECONDS = 40.0  # of trying candidates, from which the number of pictures follows
_SECONDS_PER = {"ms": 1e-3, "MACs": 1e-11}  # the latter about that of two cores
_PICTURES = (8, 1024)  # at least, at most
_REFUSALS = 4  # steps that would lose more than max_drop, until the search ends
_CHECK_REPEATS = 7  # interleaved runs of the whole network against the dense ones


def search(
    model: nn.Module,
    *,
    example_inputs: Inputs,
    calibration: Iterable,
    speedup: float | None = None,
    max_drop: float | None = None,
    macs: float | None = None,
    rules: Rules | Mapping | None = None,
    candidates: Sequence[Perforate] | None = None,
    loss: Loss | None = None,
    pictures: int | None = None,
    table: Table | None = None,
    folder: str | pathlib.Path | None = None,
    seed: int = 0,
    track: Track | None = None,
) -> FoundRules:
    """Choose a configuration for every convolution, so that the network meets the target at the least loss.

    Exactly one target. It is deterministic but for what it measures: the same table and losses give the same rules.
    Fitted layers come out with correct="weights", which is not fitted for every candidate: the network made from the
    rules loses less than was measured.

    Args:
        model: dense; left as it is.
        example_inputs: what the network is timed on; mind the batch and picture size that matter to you.
        calibration: re-iterable of inputs, or of tuples (input, labels, ...). With integer labels the loss is their
            cross-entropy, without it is the distance from the dense outputs; see `accel.greedy.losses.Judge`.
        speedup: times faster than the fastest dense form (NCHW or channels_last), the whole network, measured here.
        max_drop: the most that may be lost: share of correct answers; without labels share of top-1 answers changed,
            or mean absolute difference of outputs that are no logits; with `loss`, its increase.
        macs: share of the dense multiply-accumulates to execute, in (0, 1]; then MACs take the place of time in the
            cost and nothing is timed.
        rules: what is decided already, {pattern: Perforate(keep=...) or None}; layers that none matches are searched.
        candidates: configurations with `keep` that a layer may take; see `default_candidates`.
        loss: (outputs, batch) -> summed loss of the batch's pictures, instead of the above.
        pictures: calibration pictures to measure losses on; by default as many as make a look at all candidates take
            about 40 s; the fits of `convert_model` use all that it is given.
        table: latencies measured before; whole networks are then not timed either, its sums decide.
        folder: keeps measurements, to go on after an interruption, and gets rules, trace and plot.
        track: wraps every long loop as (items, what) -> items, to show progress.

    Raises:
        ConfigError: no or several targets, or a journal in `folder` that belongs to another search.
        ConversionError: the target cannot be met; the message says how far the search came.
        DataError: unusable calibration data.
    """
    kind, wanted = Perforate(speedup=speedup, max_drop=max_drop, macs=macs).target
    fixed = None if rules is None else as_rules(rules)
    chosen = default_candidates(seed) if candidates is None else tuple(candidates)
    space = open_space(model, example_inputs, calibration, chosen, fixed, loss)
    folder = None if folder is None else pathlib.Path(folder)
    journal = Journal(None if folder is None else folder / "journal.json", _identity(space, calibration, pictures))
    run = _Search(space, kind, wanted, journal, table, track or (lambda items, _: items))
    run.prepare(calibration, pictures, loss)
    run.descend()
    found = run.finish()
    if folder is not None:
        save_found(found, folder)
    return found


def _identity(space: Space, calibration: Iterable, pictures: int | None) -> dict[str, Any]:
    """What a journal's measurements hold for."""
    first = next(batches(calibration, space.model))
    return {
        "model": fingerprint(space.model),
        "calibration": fingerprint(nn.Module(), *first.tensors),
        "inputs": [list(each.shape) for each in space.example.tensors],
        "threads": torch.get_num_threads(),
        "candidates": {
            name: [made.config.to_dict() for made in row.values()] for name, row in space.candidates.items()
        },
        "pictures": pictures,
    }


class _Search:
    """One search under way: the state is layer -> label, the layers that are missing being dense."""

    def __init__(
        self, space: Space, kind: str, wanted: float, journal: Journal, table: Table | None, track: Track
    ) -> None:
        """The target is `kind`, 'speedup', 'max_drop' or 'macs', with the value `wanted`."""
        self.space, self.kind, self.wanted = space, kind, wanted
        self.journal, self.given, self.track = journal, table, track
        self.steps: list[Step] = []
        self.refused: set[tuple[str, str]] = set()
        self.often = max(1, round(STEPS_PER_LAYER * len(space.searched)))

    def prepare(self, calibration: Iterable, pictures: int | None, loss: Loss | None) -> None:
        """Measure what every step stands on: the table, the dense network's time, and its outputs."""
        self.table = self._table()
        self.table.check(self.space.candidates)
        self.reference = self._reference()
        self.state = {**self.space.start, **self._whole_layers()}
        batch = first_pictures(batches(calibration, self.space.model), pictures or self._affordable())
        at_once = len(self.space.example)
        self.losses = Losses(self.space.model, self.space.candidates, batch, loss, at_once)
        self.correction = 1.0  # measured over predicted speed-up, of the network measured last
        self._look()

    def _table(self) -> Table:
        if self.kind == "macs":
            return self.space.mac_table()
        if self.given is not None:
            return self.given

        def measure() -> dict:
            labels = dict.fromkeys(label for row in self.space.candidates.values() for label in row)
            networks = {DENSE: self.space.network({}), **{label: self.space.uniform(label) for label in labels}}
            rounds = self.track(range(REPEATS + 1), "timing layers")
            return time_layers(networks, self.space.candidates, self.space.example, rounds).to_dict()

        return Table.from_dict(self.journal.get("table", measure))

    def _reference(self) -> float:
        """The cost of the original network in the table's unit: of its fastest form where it is timed."""
        if self.kind == "macs" or self.given is not None:
            return self.table.price({})
        dense = self.journal.get("dense", lambda: self._timed({}))
        return min(dense[name] for name in DENSE_SIDES)

    def _whole_layers(self) -> dict[str, str]:
        """The layers that the engine computes faster than torch, every position: they cost no loss at all."""
        whole = {}
        for name in self.space.searched:
            costs = self.table.costs[name]
            full = [label for label, made in self.space.candidates[name].items() if made.config.keep == 1]
            best = min([DENSE, *full], key=costs.__getitem__)
            if best != DENSE:
                whole[name] = best
        return whole

    def _affordable(self) -> int:
        """As many pictures as a look of `_LOOK_SECONDS` allows, each candidate taking half a run of the network."""
        runs = 0.5 * sum(len(labels) for labels in self._wanted().values())
        seconds = _SECONDS_PER[self.table.unit] * self.table.price({}) / len(self.space.example)
        return int(min(max(_LOOK_SECONDS / (runs * seconds), _PICTURES[0]), _PICTURES[1])) if runs else _PICTURES[0]

    def _wanted(self) -> dict[str, list[str]]:
        """The next cheaper candidates of every layer, dearest first."""
        found = {}
        for name in self.space.searched:
            costs, row = self.table.costs[name], self.space.candidates[name]
            now = costs[self.state.get(name, DENSE)]
            labels = [label for label in row if costs[label] < now and not _is_beaten(label, row, costs)]
            found[name] = sorted(labels, key=lambda label: -costs[label])[:_AHEAD]
        return {name: labels for name, labels in found.items() if labels}

    def _look(self) -> None:
        """Measure the losses around the present state."""
        wanted = self._wanted()
        name = f"look {_key(self.state)}"
        measured = self.journal.get(name, lambda: dataclasses.asdict(self.losses.look(self.state, wanted, self.track)))
        self.base, self.base_state, self.since = Look(**measured), dict(self.state), 0
        if self._is_timed() and self.steps:
            self._correct()

    def _loss(self, state: Mapping[str, str]) -> float:
        """The loss of a state near the one looked at, all increases added up."""
        changed = {name: label for name, label in state.items() if label != self.base_state.get(name, DENSE)}
        return self.base.loss + sum(self.base.extra[name][label] for name, label in changed.items())

    def _options(self) -> list[Step]:
        """Every step that makes the network cheaper."""
        start = self.table.price(self.space.start)
        price = self.table.price(self.state)
        steps = []
        for name, labels in self.base.extra.items():
            costs, before = self.table.costs[name], self.state.get(name, DENSE)
            for label in labels:
                saved = costs[before] - costs[label]
                if saved <= 0 or (name, label) in self.refused:
                    continue
                after = {**self.state, name: label}
                loss, gained = self._loss(after), start - price + saved
                cost = (loss - self.losses.dense_loss) / gained if gained > 0 else float("inf")
                steps.append(Step(name, before, label, cost, loss, price - saved, self.speedup(after)))
        return steps

    def speedup(self, state: Mapping[str, str]) -> float:
        """How many times cheaper than the original, by the table and what the last whole network taught."""
        return self.correction * self.reference / self.table.price(state)

    def descend(self) -> None:
        """Step until the target is met, and then back as far as it stays met."""
        self._step_until_reached()
        if self._is_timed() and self._step_back():
            self._look()
            self._step_until_reached()

    def _step_back(self) -> bool:
        """Take back the last steps that the measured network did not need; whether there were any."""
        count = len(self.steps)
        while self.steps:
            last = self.steps[-1]
            before = {**self.state, last.layer: last.before}
            if self.speedup(before) < self._speedup_wanted():
                break
            self.state = before
            self.steps.pop()
        return len(self.steps) < count

    def _step_until_reached(self) -> None:
        while not self._reached():
            options = self._options() if self.since < self.often else []
            if not options and self.since:
                self._look()
                options = self._options()
            if not options and self.kind == "max_drop":
                return  # every layer is at its cheapest
            if not options:
                raise ConversionError(
                    f"{self.kind}={self.wanted:g} cannot be met: with every layer at its cheapest the "
                    f"network costs 1/{self.speedup(self.state):.2f}; add candidates with a lower keep, or ask for less"
                )
            step = min(options, key=lambda option: option.cost)  # the first among equals
            after = {**self.state, step.layer: step.label}
            if self.kind == "max_drop" and self._drop(after) > self.wanted:
                self.refused.add((step.layer, step.label))
                if len(self.refused) == _REFUSALS:
                    return
                continue
            self.state = after
            self.steps.append(step)
            self.since += 1

    def _reached(self) -> bool:
        if self.kind == "max_drop" or self.speedup(self.state) < self._speedup_wanted():
            return False
        return not self._is_timed() or self._correct() >= self._speedup_wanted()

    def _speedup_wanted(self) -> float:
        wanted = self.wanted if self.kind == "speedup" else 1 / self.wanted  # the cost is MACs then
        return wanted * (1 - 1e-9)

    def _is_timed(self) -> bool:
        """Whether whole networks are timed, rather than costs added up."""
        return self.table.unit == "ms" and self.given is None and self.kind == "speedup"

    def _correct(self) -> float:
        """The speed-up as measured on the whole network, which corrects what the table says of its neighbours."""
        measured = self._timed_speedup()
        self.correction *= measured / self.speedup(self.state)
        return measured

    def _timed_speedup(self) -> float:
        return self.journal.get(f"time {_key(self.state)}", lambda: self._timed(self.state))["speedup"]

    def _timed(self, state: Mapping[str, str]) -> dict[str, float]:
        """Median milliseconds of the dense forms and of the network of a state, and the speed-up."""
        example = self.space.example.inputs
        sides = {name: in_format(self.space.model, example, layout) for name, layout in FORMATS.items()}
        if state:
            sides["converted"] = in_format(self.space.network(state), example, torch.channels_last)
        with torch.inference_mode():
            timing = compare(sides, repeats=_CHECK_REPEATS)
        found = {name: timing[name].median_ms for name in timing}
        if state:
            found["speedup"] = ratio(timing[fastest(timing, DENSE_SIDES)], timing["converted"]).median
        return found

    def _drop(self, state: Mapping[str, str]) -> float:
        name = f"drop {_key(state)}"
        return self.journal.get(name, lambda: self.losses.look(state, {}).drop)

    def finish(self) -> FoundRules:
        """The rules, with all that was measured of the network they make."""
        total = {"loss": self._loss(self.state), "drop": self._drop(self.state), "dense_loss": self.losses.dense_loss}
        if self.table.unit == "ms" and self.given is None:
            total["speedup"] = self._timed_speedup()
        notes = {**self.space.left, **dict.fromkeys(self.space.fixed, "decided by a rule"), **self._reasons()}
        return FoundRules.of(self.space, self.table, self.state, self.steps, notes, total)

    def _reasons(self) -> dict[str, str]:
        """Why layers that were searched stay whole."""
        dearest = max((step.cost for step in self.steps), default=0.0)
        options = {step.layer: step for step in sorted(self._options(), key=lambda step: -step.cost)}
        reasons = {}
        for name in self.space.searched:
            label, costs = self.state.get(name, DENSE), self.table.costs[name]
            if label != DENSE and self.space.kept[name, label] < 1:
                continue
            best = min((other for other in costs if other != label), key=costs.__getitem__)
            if name in options:
                step = options[name]
                said = f"too sensitive: {step.label} costs {step.cost:.3g}, the dearest step taken {dearest:.3g}"
            else:
                said = f"slower than dense: {best} takes {costs[best]:.3g} instead of {costs[label]:.3g}"
            reasons[name] = said if label == DENSE else f"whole, by the engine; {said}"
        return reasons


def _is_beaten(label: str, row: Mapping[str, Conversion], costs: Mapping[str, float]) -> bool:
    """Whether the fitted filling of the same mask takes no longer, so that a plainer one need not be tried."""
    config = row[label].config
    fitted = (
        other
        for other, made in row.items()
        if made.config.interpolate == "fitted" and (made.config.mask, made.config.keep) == (config.mask, config.keep)
    )
    return config.interpolate != "fitted" and any(costs[o] <= (1 + _SAME_TIME) * costs[label] for o in fitted)


def _key(state: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {label}" for name, label in sorted(state.items()))

"""What a search measures, each thing once: the table of the layers, whole networks, and what surrounds them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from accel.config import Perforate
from accel.convert import Conversion
from accel.errors import DataError
from accel.greedy.budget import Budget
from accel.greedy.candidates import Space
from accel.greedy.journal import Journal
from accel.greedy.losses import Look, Loss, Losses, Track
from accel.greedy.record import Record, Target, Tried
from accel.greedy.table import DENSE, REPEATS, Table, time_layers
from accel.inputs import Batch, batches, first_pictures
from accel.profiling.latency import compare, ratio
from accel.profiling.sides import DENSE as DENSE_SIDES
from accel.profiling.sides import FORMATS, fastest, in_format

CHECKS, CONFIRMATIONS = 5, 15  # interleaved runs of a network against the dense one: on the way, and at the end
_AHEAD = 4  # candidates of a layer that a step looks at, the next cheaper ones
_SAME_TIME = 0.05  # a plain filling has to be so much faster than the fitted one of the same mask to be tried
_LOOK_SHARE, _LOOK_SECONDS = 1 / 15, 40.0  # of the time, and at most: trying candidates, from which pictures follow
_WHOLE_SHARE = 1 / 100  # of the time: judging a whole network on further pictures, where its fit takes ten times that
_SECONDS_PER = {"ms": 1e-3, "MACs": 1e-11}  # the latter about that of two cores
_PICTURES = (8, 1024)  # at least, at most
_RECORDED = 3 << 29  # bytes of maps that are recorded, at most
_DENSE_UNTIL = 0.05  # of the time: timing the dense network
_TABLE_UNTIL, _WHOLES_UNTIL = 0.15, 0.25  # timing layer by layer, and then as wholes, for the table
_OF_THE_REST = 0.6  # of the time left that a look may take
_PER_NETWORK = 6  # runs of a network that a table takes at the least
_SLOW = 1.5  # times the dense form's time
_NEAR = 1.1  # a dense form that takes so much longer than the other is not timed again
_CLOSE = 0.04  # to the speed-up asked for: a few runs do not tell on which side a network is
_SURE = 2  # comparisons in which one of them was the fastest; the others are then timed again at the end only


class Measurements:
    """The measurements of one search. A state is layer -> label, the layers that are missing being dense.

    Attributes:
        space, target, budget, track: what is searched, and how.
        table: what every layer costs; None before `prepare`, as are the following.
        losses: what measures quality.
        reference: the cost of the original network in the table's unit, of its fastest form where it is timed.
        record: every network measured whole.
        extra: (layer, label) -> the increase of the loss that was last found.
    """

    def __init__(
        self, space: Space, target: Target, budget: Budget, journal: Journal, table: Table | None, track: Track | None
    ) -> None:
        self.space, self.target, self.budget, self.journal = space, target, budget, journal
        self.given, self.record = table, Record(target)
        self.extra: dict[tuple[str, str], float] = {}
        self._wraps = track or (lambda items, _: items)
        self._correction = 1.0  # measured over predicted speed-up, of the network timed last
        self._fastest: list[str] = []  # of the original's forms, in each comparison

    def track(self, items: Sequence, what: str) -> Iterable:
        return self._wraps(items, f"{what}, {self.budget}")

    def prepare(self, calibration: Iterable, pictures: int | None, loss: Loss | None) -> None:
        """Measure what all else stands on: the table, the dense network's time, and its outputs."""
        self.is_timed = self.given is None and self.target.kind != "macs"
        self.forms = self.journal.get("dense", self._time_dense) if self.is_timed else {}
        self.table = self._table()
        self.table.check(self.space.candidates)
        self.space = self.space.without(self._slow_in_bytes())
        self.reference = min(self.forms.values()) if self.is_timed else self.table.price({})
        self.start = {**self.space.start, **self._whole_layers()}
        count = pictures or self.journal.get("pictures", self._affordable)
        more = 0 if pictures else self.journal.get("more", self._affordable_more)
        batch, at_once = self._pictures(calibration, count, more), len(self.space.example)
        rest = batch.part(count, None) if len(batch) > count else None
        self.losses = Losses(
            self.space.model, self.space.candidates, batch.part(0, count), loss, at_once, self.budget, rest
        )

    def _pictures(self, calibration: Iterable, count: int, more: int) -> Batch:
        """The first ones, and `more` where those join them: calibration data may go on with another size."""
        with contextlib.suppress(DataError):
            return first_pictures(batches(calibration, self.space.model), count + more)
        return first_pictures(batches(calibration, self.space.model), count)

    def _time_dense(self) -> dict[str, float]:
        sides = {name: in_format(self.space.model, self.space.example.inputs, form) for name, form in FORMATS.items()}
        with torch.inference_mode(), self.budget.until(_DENSE_UNTIL):
            begin = self.budget.spent
            for run in sides.values():
                run()
            repeats = self.budget.repeats(self.budget.spent - begin, CHECKS, least=1)
            return {name: timing.median_ms for name, timing in compare(sides, repeats, warmup=1).items()}

    def _table(self) -> Table:
        if self.given is not None:
            return self.given
        if not self.is_timed:
            return self.space.mac_table()
        self.space = self.space.only(self.journal.get("labels", self._labels_in_time))
        return Table.from_dict(self.journal.get("table", self._measure_table))

    def _labels_in_time(self) -> list[str]:
        """Candidates of which there is time to measure a table: first the fitted that keep about what is aimed at."""
        timed = {label: other for row in self.space.timed_as().values() for label, other in row.items()}
        seconds = min(self.forms.values()) / 1e3 * _PER_NETWORK
        room = max(3.0, _WHOLES_UNTIL * self.budget.whole / seconds - 1)
        made: dict[str, Conversion] = {label: c for row in self.space.candidates.values() for label, c in row.items()}
        aim = min(1.0, self._bytes_gain(made) / self.target.speedup) if self.target.speedup > 1 else 0.5

        def wish(label: str) -> tuple:
            config = made[label].config
            share = config.keep * (config.rank if isinstance(config.rank, float) else 1.0)
            return (not config.is_whole, not config.effort, abs(share - aim))

        groups = sorted(dict.fromkeys(timed.values()), key=wish)
        kept = set(groups if math.isinf(room) else groups[: int(room)])
        return [label for label in timed if timed[label] in kept]

    def _bytes_gain(self, made: Mapping[str, Conversion]) -> float:
        """How many times faster the network is in eight bits, or bf16, where these are candidates: what is left to be
        gained by leaving out positions."""
        whole = next((label for label, c in made.items() if c.config.rounds and c.config.is_whole), None)
        if whole is None:
            return 1.0
        network = self.space.network(self.space.uniform(whole))
        side = in_format(network, self.space.example.inputs, torch.channels_last)
        with torch.inference_mode():
            return min(self.forms.values()) / compare({whole: side}, 3, warmup=1)[whole].median_ms

    def _measure_table(self) -> dict:
        timed, budget = self.space.timed_as(), self.budget
        labels = dict.fromkeys(label for row in timed.values() for label in row.values())
        states = {DENSE: {}, **{label: self.space.uniform(label) for label in labels}}
        networks = {label: self.space.network(state) for label, state in states.items()}

        def repeats(seconds: float) -> int:
            with budget.until(_WHOLES_UNTIL):
                return budget.repeats(seconds, REPEATS)

        with budget.until(_TABLE_UNTIL):
            rounds = budget.allows(self.track(range(REPEATS + 1), "timing layers"), least=2)
            return time_layers(networks, timed, self.space.example, rounds, repeats).to_dict()

    def _whole_layers(self) -> dict[str, str]:
        """The layers that the engine computes faster than torch, every position: they cost no loss at all, and in
        eight bits or bf16 next to none."""
        whole = {}
        for name in self.space.searched:
            costs = self.table.costs[name]
            full = [label for label, made in self.space.candidates[name].items() if made.config.is_whole]
            asked = [label for label in full if self.space.candidates[name][label].config.rounds]
            first = [] if self.table.unit == "ms" else asked  # where precisions are not told apart by their cost
            best = min([*first, DENSE, *full], key=costs.__getitem__)
            if best != DENSE:
                whole[name] = best
        return whole

    def _affordable(self) -> int:
        """As many pictures as let the judged half of them pass a look in its share of the time and of memory."""
        trials = sum(min(_AHEAD, len(row)) for row in self.space.candidates.values())
        seconds = self._picture_seconds()
        time = min(_LOOK_SHARE * self.budget.whole, _LOOK_SECONDS) / (0.5 * trials * seconds)
        outputs = sum(math.prod(shape) for shapes in self.space.calls.values() for shape in shapes)
        memory = _RECORDED / (4 * outputs / len(self.space.example))
        return int(min(max(2 * min(time, memory), _PICTURES[0]), _PICTURES[1]))

    def _affordable_more(self) -> int:
        """Pictures that whole networks are judged on beside those, in their share of the time."""
        return int(min(_WHOLE_SHARE * self.budget.whole / self._picture_seconds(), _PICTURES[1]))

    def _picture_seconds(self) -> float:
        """About how long the dense network takes for one picture."""
        return _SECONDS_PER[self.table.unit] * self.table.price({}) / len(self.space.example)

    def near(self, state: Mapping[str, str]) -> dict[str, list[str]]:
        """The next cheaper candidates of every layer, dearest first, for a step."""
        found = {}
        for name in self.space.searched:
            costs, row = self.table.costs[name], self._tried_labels(name)
            now = costs[state.get(name, DENSE)]
            labels = [label for label in row if costs[label] < now and not _is_beaten(label, row, costs)]
            found[name] = sorted(labels, key=lambda label: -costs[label])[:_AHEAD]
        return {name: labels for name, labels in found.items() if labels}

    def around(self, state: Mapping[str, str], reserve: float, cheaper_first: bool) -> dict[str, list[str]]:
        """What every layer may take instead, for an exchange: nearest in cost first, the dearest layers first.

        So many of them as there is time to look at within the part of the budget under way, `reserve` seconds kept. On
        either side of the cost now the nearest comes first, and `cheaper_first` says which side does.
        """
        rows = {}
        for name in sorted(self.space.searched, key=lambda name: -self.table.costs[name][DENSE]):
            costs, now = self.table.costs[name], state.get(name, DENSE)
            row = self._tried_labels(name)
            labels = [label for label in row if label != now and not _is_beaten(label, row, costs)]
            labels += [DENSE] if now != DENSE and self._may_be_dense(name) else []
            cheaper = sorted((o for o in labels if costs[o] < costs[now]), key=lambda o: -costs[o])
            dearer = sorted((o for o in labels if costs[o] >= costs[now]), key=costs.__getitem__)
            sides = (cheaper, dearer) if cheaper_first else (dearer, cheaper)
            rows[name] = [o for pair in itertools.zip_longest(*sides) for o in pair if o is not None]
        turns = [
            (name, label) for turn in itertools.zip_longest(*rows.values()) for name, label in zip(rows, turn) if label
        ]
        wanted: dict[str, list[str]] = {}
        for name, label in turns[: _AHEAD * len(rows)]:
            more = {**wanted, name: [*wanted.get(name, []), label]}
            if self.losses.seconds(state, more) > _OF_THE_REST * (self.budget.left - reserve):
                break
            wanted = more
        return wanted

    def _slow_in_bytes(self) -> list[str]:
        """Layers too small to be searched that eight bits make slow: HED's last, of five channels, takes 1.75 ms for
        0.70. Those that only lose a little let their neighbours hand over bytes."""
        costs, small = self.table.costs, self.space.fixed.keys() & self.space.left.keys()
        return [name for name in small if costs[name][self.space.start[name]] > _SLOW * costs[name][DENSE]]

    def _may_be_dense(self, name: str) -> bool:
        """Whether a layer may go back to what it is in the original: it is not by the engine that it gained most."""
        first = self.start.get(name, DENSE)
        return first == DENSE or (self.table.unit == "ms" and self.space.candidates[name][first].config.rounds)

    def _tried_labels(self, name: str) -> dict[str, Conversion]:
        """The candidates that are looked at one by one: of two that differ in what the fit corrects, the quick one."""
        row, alike = self.space.candidates[name], self.space.corrected
        return {label: made for label, made in row.items() if alike({name: label}, "scale")[name] == label}

    def look(self, state: Mapping[str, str], wanted: Mapping[str, list[str]]) -> Look:
        """The losses around a state, every layer under the `wanted` labels; OutOfTime as of `Losses.look`."""
        name = f"look {key(state)} at {json.dumps(wanted)}"
        if self.journal.has(name):
            measured = Look(**self.journal.get(name))
        else:
            self.budget.check(self.losses.seconds(state, wanted))
            measured = self.losses.look(state, wanted, self.track)
            if measured.whole:
                self.journal.get(name, lambda: dataclasses.asdict(measured))
        self.extra |= {(name, label): more for name, row in measured.extra.items() for label, more in row.items()}
        return measured

    def speedup(self, state: Mapping[str, str]) -> float:
        """How many times cheaper than the original, by the table and what the last whole network taught."""
        return self._correction * self.reference / self.table.price(state)

    def allowed(self) -> float:
        """The price by the table at which the target is met."""
        return self._correction * self.reference / self.target.speedup

    def tried(self, state: Mapping[str, str], origin: str, kind: str, timed: bool = True) -> Tried:
        """Measure a network whole: its loss, and its time where that is asked for and the target is one of time."""
        if (found := self.record.get(state)) is not None and (found.timed or not timed):
            return found
        if all(self._is_exact(name, label) for name, label in state.items()):
            look = Look(self.losses.judged.dense_loss, 0.0, {})  # but for rounding
        else:
            look = Look(**self.journal.get(f"whole {key(state)}", lambda: self._look_at(state)))
        timed = timed or not self.is_timed
        speedup = self.timed_speedup(state) if timed and self.times_decide else self.speedup(state)
        found = Tried(origin, kind, dict(state), look.loss, look.drop, self.table.price(state), speedup, timed)
        self.record.add(found)
        return found

    def _is_exact(self, name: str, label: str) -> bool:
        """Whether a layer loses nothing but by rounding in fp32."""
        if label == DENSE:
            return True
        config = self.space.candidates[name][label].config
        return self.space.kept(name, label) == 1 and config.rank is None and not config.rounds

    def _look_at(self, state: Mapping[str, str]) -> dict:
        self.budget.check(self.losses.seconds(state, {}))
        return dataclasses.asdict(self.losses.measure(state))

    @property
    def times_decide(self) -> bool:
        """Whether networks are timed, and their time decides whether they meet the target."""
        return self.is_timed and not self.target.bounds_loss

    def timed_speedup(self, state: Mapping[str, str], repeats: int = CHECKS) -> float:
        """The speed-up as timed on the whole network; it corrects what the table says of its neighbours."""
        as_fast = self.space.corrected(state, "scale")
        name = f"time {key(as_fast)}" + (" again" if repeats != CHECKS else "")
        found = self.journal.get(name, lambda: self._timed(as_fast, repeats))
        self._correction *= found / self.speedup(state)
        return found

    def _timed(self, state: Mapping[str, str], repeats: int) -> float:
        """Of the original's forms, those that are near the fastest, and of the network of a state, all in turn."""
        least, example = self.reference, self.space.example.inputs
        near = [name for name in DENSE_SIDES if self.forms[name] <= _NEAR * least]
        if repeats == CHECKS and len({*self._fastest}) == 1 and len(self._fastest) >= _SURE:
            near = self._fastest[:1]
        sides = {name: in_format(self.space.model, example, FORMATS[name]) for name in near}
        sides["converted"] = in_format(self.space.network(state), example, torch.channels_last)
        seconds = (len(near) * least + self.table.price(state)) / 1e3
        self.budget.check(3 * seconds)
        with torch.inference_mode():
            found = self._compared(sides, seconds, repeats)
            if repeats < CONFIRMATIONS and self.times_decide and abs(found / self.target.speedup - 1) < _CLOSE:
                found = self._compared(sides, seconds, CONFIRMATIONS)
        return found

    def _compared(self, sides: Mapping[str, Callable], seconds: float, repeats: int) -> float:
        timing = compare(sides, self.budget.repeats(seconds, repeats + 1, least=3) - 1, warmup=1)
        self._fastest.append(fastest(timing, [name for name in sides if name != "converted"]))
        return ratio(timing[self._fastest[-1]], timing["converted"]).median


def _is_beaten(label: str, row: Mapping[str, Conversion], costs: Mapping[str, float]) -> bool:
    """Whether the fitted filling of the same mask takes no longer, so that a plainer one need not be tried."""
    config = row[label].config
    fitted = (
        other for other, made in row.items() if made.config.filling.needs_data and _seen(made.config) == _seen(config)
    )
    return not config.filling.needs_data and any(costs[o] <= (1 + _SAME_TIME) * costs[label] for o in fitted)


def _seen(config: Perforate) -> tuple:
    """Where a layer computes, and with how much of its weight."""
    return config.mask, config.keep, config.rank


def key(state: Mapping[str, str]) -> str:
    """A state's name in the journal."""
    return ", ".join(f"{name}: {label}" for name, label in sorted(state.items()))

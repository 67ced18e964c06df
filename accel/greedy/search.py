"""`accel.search`: which positions and ranks to keep in which layer, and how to fill in the others, for the speed asked
for.

It begins with uniform rules, each measured as a whole network; exchanges of what single layers keep, from the one that
promises most (`accel.greedy.exchange`); then takes the greedy way of the paper, from the original (`descent`), and
exchanges again. Every network that is measured whole is remembered (`record`), and the best of them is what it gives.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from accel.config import PRECISIONS, Perforate, Rules, as_rules
from accel.errors import ConversionError
from accel.greedy.budget import Budget
from accel.greedy.candidates import Space, default_candidates, open_space
from accel.greedy.descent import Descent
from accel.greedy.exchange import Exchanges
from accel.greedy.journal import Journal, fingerprint
from accel.greedy.losses import Loss, Track
from accel.greedy.measure import CONFIRMATIONS, Measurements
from accel.greedy.reasons import reasons, unmet
from accel.greedy.record import Target, Tried
from accel.greedy.table import DENSE, Table, without_dense
from accel.greedy.trace import FoundRules, Step, save_found
from accel.greedy.uniform import Uniform, uniform_rules
from accel.inputs import Inputs, batches, counted
from accel.running import run_eagerly

_UNIFORM, _FAR = 0.4, 0.3  # of the time that is left: uniform rules near the target, and those further from it
_CONFIRM_SHARE = 0.08  # of the time, at most, for timing the result again
_SLOWER = 0.9  # of the speed-up asked for: uniform rules slower than that are not timed
_STEEPNESS = 4  # the loss grows with this power of the speed-up: HED from a half to a quarter, fitted
_NEARBY = 0.2  # logarithm of a speed-up over that asked for, up to which few layers need to change
_CONFIRMED = 3  # networks that are timed again at the end, until no others are looked for
_UNLUCKY = 0.92  # of the speed-up asked for: a network of HED was timed at 2.0 to 2.4 times dense within an hour


@run_eagerly()
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
    precision: str = PRECISIONS[0],
    loss: Loss | None = None,
    pictures: int | None = None,
    table: Table | None = None,
    folder: str | pathlib.Path | None = None,
    seed: int = 0,
    minutes: float | None = 10,
    track: Track | None = None,
) -> FoundRules:
    """Choose a configuration for every convolution, so that the network meets the target at the least loss.

    Exactly one target. The result is the best of all networks that were measured whole, uniform rules among them. It is
    deterministic but for what it measures and for how far it comes in its time: the same table and losses give the same
    rules where the time suffices.

    Args:
        model: dense; left as it is.
        example_inputs: what the network is timed on; mind the batch and picture size that matter to you.
        calibration: batches of inputs, and labels where there are any, see `accel.inputs`. With integer labels the loss
            is their cross-entropy, without it is the distance from the dense outputs; see
            `accel.greedy.losses.Judge`. Where candidates are fitted, every second picture is fitted on, and the loss is
            that of the others.
        speedup: times faster than the fastest dense form (NCHW or channels_last), the whole network, measured here.
        max_drop: the most that may be lost: share of correct answers; without labels share of top-1 answers changed,
            or mean absolute difference of outputs that are no logits; with `loss`, its increase.
        macs: share of the dense multiply-accumulates to execute, in (0, 1]; then MACs take the place of time in the
            cost and nothing is timed.
        rules: what is decided already, {pattern: Perforate(keep=...) or None}; convolutions that none matches are
            searched.
        candidates: configurations with `keep` that a layer may take; see `default_candidates`. Low ranks are among
            those: a layer that gets one becomes two convolutions with parameters of their own.
        precision: of the default candidates, 'fp32', 'bf16' or 'int8'; with the last layers that are too small to
            search are quantized too, and so are linear layers, unless that makes them slow.
        loss: (outputs, batch) -> summed loss of the batch's pictures, instead of the above.
        pictures: calibration pictures to measure losses on; by default as many as the time allows, 8 to 1024, and for
            whole networks more; the fits of `convert_model` use all that it is given.
        table: latencies measured before; whole networks are then not timed either, its sums decide.
        folder: keeps measurements, to go on after an interruption, and gets rules, trace and plot.
        minutes: the time to take, of this very call: one that resumes has it anew. It may end sooner, when there is
            nothing more to gain. With less than a table of all candidates needs, fewer of them are tried. None: no
            limit.
        track: wraps every long loop as (items, what) -> items, to show progress.

    Raises:
        ConfigError: no or several targets, or a journal in `folder` that belongs to another search.
        ConversionError: the target was not met; the message says how far the search came.
        DataError: unusable calibration data.
    """
    target, budget = Target.of(speedup=speedup, max_drop=max_drop, macs=macs), Budget(minutes)
    fixed = None if rules is None else as_rules(rules)
    chosen = default_candidates(seed, precision) if candidates is None else tuple(candidates)
    if candidates is None and macs is not None:  # which do not tell what eight bits save
        chosen = tuple(config for config in chosen if config.precision == precision)
    calibration = counted(calibration, model, example_inputs)
    space = open_space(model, example_inputs, calibration, chosen, fixed, loss)
    folder = None if folder is None else pathlib.Path(folder)
    journal = Journal(None if folder is None else folder / "journal.json", _identity(space, calibration, pictures))
    measured = Measurements(space, target, budget, journal, table, track)
    measured.prepare(calibration, pictures, loss)
    run = _Search(measured)
    run.go()
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
    """One search under way."""

    def __init__(self, measured: Measurements) -> None:
        self.measured, self.target, self.budget = measured, measured.target, measured.budget
        self.record, self.space = measured.record, measured.space
        self.steps: list[Step] = []
        self.exchanges = Exchanges(measured)
        self.uniform: list[Uniform] = []
        self.confirmed: list[Tried] = []

    def go(self) -> None:
        """Measure networks until nothing is to be gained, or the time is over; the record holds them."""
        with self.budget.until(1.0):
            self.measured.tried(self.measured.start, "every position", "whole")
            if not self.target.bounds_loss and self.record.best is not None:
                return  # met without leaving out anything
            reserve = self._seconds_to_confirm()
            with self.budget.until(self._after(_UNIFORM), reserve):
                self._try_uniform()
            if not self.target.bounds_loss and self.record.best is None:
                self.measured.tried(self.exchanges.refit(self._cheapest()), "every layer at its cheapest", "cheapest")
                if self.record.best is None:
                    return
            self.exchanges.correct = self._better_fits()
            kept = reserve + self._seconds_to_adjust()
            with self.budget.until(1.0, kept):
                self._improve(kept)
            self._confirm(reserve)
            if not self.target.bounds_loss:
                self._use_the_rest(reserve)

    def _seconds_to_confirm(self) -> float:
        """What to keep of the time for timing the result once more."""
        if not self.measured.times_decide:
            return 0.0
        return min(2 * CONFIRMATIONS * self.measured.reference / 1e3, _CONFIRM_SHARE * self.budget.whole)

    def _after(self, share: float) -> float:
        """What share of the whole time is over when this one of what is left now will be.

        A table of HED's layers takes a quarter of five minutes on two slow cores: of 0.4 of the whole time nothing was
        left for a rule with refitted weights, and the result lost 1.16 times as much as the best of them.
        """
        begun = self.budget.spent / self.budget.whole
        return begun + (1 - begun) * share

    def _try_uniform(self) -> None:
        """Measure uniform rules, in an order that follows what was measured: the table may be wrong by a quarter."""
        far_until = self._after(_FAR)
        lost, seen = set(), set()
        while (rule := self._next_uniform(seen)) is not None:
            seen.add(rule.origin)
            is_late = self.budget.spent >= far_until * self.budget.whole
            if rule.kind in lost or (rule.far and is_late) or not self._has_time(rule.state):
                continue
            near = self.target.bounds_loss or self.measured.speedup(rule.state) >= _SLOWER * self.target.speedup
            tried = self.measured.tried(rule.state, rule.origin, "uniform", near)
            if self.target.bounds_loss and not self.target.is_met(tried):
                lost.add(rule.kind)  # with a lower keep it would lose more
            self.budget.check()

    def _next_uniform(self, seen: Collection[str]) -> Uniform | None:
        self.uniform = uniform_rules(self.measured, self.target.speedup)
        return next((rule for rule in self.uniform if rule.origin not in seen), None)

    def _better_fits(self) -> str:
        """What fits are to correct: the weights, where that was better, and there was time to find out.

        Where no rule was measured with both, what the best one of each promises decides: HED in 5 minutes at 2x, its
        quarters fitted differently and not in the same layers, went on with the quick fits, and no exchange gained.
        """
        refitted = [tried for tried in self.record if self._refits(tried)]
        pairs = [(tried, self.record.get(self.space.corrected(tried.state, "scale"))) for tried in refitted]
        both = [(tried.loss, scaled.loss) for tried, scaled in pairs if scaled is not None]
        if both:
            return "weights" if any(ours < scaled for ours, scaled in both) else "scale"
        start = self.record.get(self.measured.start)
        others = [tried for tried in self.record if tried is not start and tried not in refitted]
        least, promised = (min(map(self._promise, each), default=math.inf) for each in (others, refitted))
        return "weights" if promised < least else "scale"

    def _refits(self, tried: Tried) -> bool:
        return self.space.corrected(tried.state, "scale") != dict(tried.state)

    def _cheapest(self) -> dict[str, str]:
        costs = self.measured.table.costs
        cheapest = {name: min(costs[name], key=costs[name].__getitem__) for name in self.space.searched}
        return without_dense({**self.measured.start, **cheapest})

    def _improve(self, kept: float) -> None:
        """From the networks measured so far to better ones, with so many seconds kept for what comes then."""
        start, best = self.record.get(self.measured.start), self.record.first
        if self.target.bounds_loss:
            self._descend(best)
            if best is not start:
                self._descend(start)
            return
        with self.budget.until(1.0, kept + self._seconds_to_refit(best)):
            self._mix()
            self.exchanges.run(self._place_to_start(start))
            self._descend(start)
            self.exchanges.run(self.record.first)
        best = self.record.first
        refitted = self.space.corrected(best.state, "weights")
        if self._has_time(refitted):
            self.measured.tried(refitted, f"{best.origin}, weights refitted", "refitted")

    def _seconds_to_refit(self, best: Tried) -> float:
        """What to keep of the time for refitting the weights of the best network, where none was refitted before.

        HED in 5 minutes at 3x, all spent on exchanges, lost 1.11 times as much as a quarter everywhere with refitted
        weights.
        """
        if self.exchanges.correct == "weights":
            return 0.0
        seconds = self.measured.losses.seconds(self.space.corrected(best.state, "weights"), {})
        return seconds if seconds < self.budget.left else 0.0

    def _has_time(self, state: Mapping[str, str], wanted: Mapping | None = None, looks: int = 1) -> bool:
        """Whether so many looks at a state fit into the part of the budget under way."""
        return looks * self.measured.losses.seconds(state, wanted or {}) < self.budget.left

    def _place_to_start(self, start: Tried) -> Tried:
        """The network that promises most, of those as fast as asked for or nearly so, if there is one."""
        others = [tried for tried in self.record if tried is not start]
        near = [each for each in others if abs(math.log(each.speedup / self.target.speedup)) < _NEARBY]
        return min(near or others or [start], key=self._promise)

    def _mix(self) -> None:
        """Of the uniform rule that promises most and the next one of its kind on the other side of the target, one for
        the first layers and one for the others.

        In residual networks layers that keep the same positions lose less than layers of the same keeps in any order.
        The other rule need not be measured: HED in 5 minutes at 2x had no time for both with refitted weights, and with
        nearest filling in one of them lost 1.3 times as much.
        """
        tried = [(rule, found) for rule in self.uniform if (found := self.record.get(rule.state)) is not None]
        if not tried:
            return
        best, network = min(tried, key=lambda each: self._promise(each[1]))
        more = {rule.origin: self.measured.speedup(rule.state) - self.target.speedup for rule in self.uniform}
        is_met = self.target.is_met(network)
        others = [each for each in self.uniform if each.kind == best.kind and (more[each.origin] < 0) == is_met]
        if not others:
            return
        pair = best, min(others, key=lambda each: abs(more[each.origin]))
        for first, last in (pair, pair[::-1]):
            states = [self._mixture(first, last, count) for count in range(1, len(self.space.searched))]
            states = [state for state in states if self.measured.table.price(state) <= self.exchanges.allowed()]
            if states and self._has_time(states[0]):
                dearest = max(states, key=self.measured.table.price)
                self.measured.tried(dearest, f"first {first.origin}, then {last.origin}", "mixture")

    def _mixture(self, first: Uniform, last: Uniform, count: int) -> dict[str, str]:
        early = {*self.space.searched[:count]}
        labels = {name: (first if name in early else last).state.get(name, DENSE) for name in self.space.searched}
        return without_dense({**self.measured.start, **labels})

    def _promise(self, tried: Tried) -> float:
        """The loss that a network may have when it has been brought to the speed-up asked for."""
        lost = max(tried.loss - self.measured.losses.judged.dense_loss, 1e-12)
        return lost * (self.target.speedup / tried.speedup) ** _STEEPNESS

    def _descend(self, start: Tried) -> None:
        plain = self.space.corrected(start.state, "scale")
        if not self._has_time(plain, self.measured.near(plain), 2):
            return
        descent = Descent(self.measured, plain, start.origin, self.exchanges.refit)
        try:
            descent.run()
        finally:
            self.steps += descent.steps

    def _confirm(self, reserve: float) -> None:
        """Time the best network again, and for longer: of many that were timed, the fastest was lucky too, and one that
        loses less and was not fast enough by so little may have been unlucky."""
        if not self.measured.times_decide:
            return
        confirmed = self.confirmed
        while (best := self.record.best) is not None and best not in confirmed:
            again = self._timed_again(best)
            confirmed.append(again)
            if len(confirmed) > _CONFIRMED:
                continue  # to the best of those that are there: what came of it would have to be timed again too
            with self.budget.until(1.0, reserve):
                if not self.target.is_met(again):
                    self.exchanges.adjust(again)
                    self.exchanges.run(self.record.first)
                else:
                    if (near := self._nearly_met(again, confirmed)) is not None:
                        confirmed.append(self._timed_again(near))
                    self.exchanges.adjust(self.record.first)

    def _use_the_rest(self, reserve: float) -> None:
        """Try a mixture that there was no time for, in what was kept for adjusting the result and not needed.

        HED in 5 minutes at 2x ended after 3.8 and lost 1.7 times as much as in 10, whose best network was a mixture.
        """
        with self.budget.until(1.0, reserve):
            self._mix()
        self._confirm(reserve)

    def _timed_again(self, tried: Tried) -> Tried:
        again = dataclasses.replace(tried, speedup=self.measured.timed_speedup(tried.state, CONFIRMATIONS))
        self.record.add(again)
        return again

    def _nearly_met(self, best: Tried, confirmed: Collection[Tried]) -> Tried | None:
        """The network that loses least, less than the best one, of those that were not quite as fast as asked for when
        they were timed first."""
        near = [each for each in self.record if each.timed and not self.target.is_met(each) and each not in confirmed]
        fast = [each for each in near if each.speedup >= _UNLUCKY * self.target.speedup and each.loss < best.loss]
        return min(fast, key=lambda each: each.loss, default=None)

    def _seconds_to_adjust(self) -> float:
        """What to keep of the time for one network more, when the best one was timed again."""
        best = self.record.first if self.measured.times_decide else None
        return 0.0 if best is None else self.measured.losses.seconds(self.exchanges.refit(best.state), {})

    def finish(self) -> FoundRules:
        """The rules, with all that was measured of the network they make.

        Raises:
            ConversionError: no network meets the target.
        """
        best = self.record.best
        if best is None:
            raise ConversionError(unmet(self.measured))
        total = {"loss": best.loss, "drop": best.drop, "dense_loss": self.measured.losses.judged.dense_loss}
        if self.measured.is_timed:
            total["speedup"] = best.speedup if self.measured.times_decide else self.measured.timed_speedup(best.state)
        total |= {"start": best.origin, "minutes": round(self.budget.spent / 60, 3)}
        notes = {
            **dict.fromkeys(self.space.fixed, "decided by a rule"),
            **self.space.left,
            **reasons(self.measured, best),
        }
        return FoundRules.of(self.space, self.measured.table, best, self.steps, list(self.record), notes, total)

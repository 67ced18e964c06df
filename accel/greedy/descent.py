"""Steps from a network to cheaper ones, as in Figurnov et al., NIPS 2016, section 3.4.

In every step the layer and candidate of the least (loss - loss0) / (time0 - time), always relative to the original
network. Their search measured every candidate network whole. Here time adds up from a table of the layers, loss from
the increase that each single candidate causes in the network as it stands, measured anew every few steps; and whether a
target is met is decided by measuring the whole network, not by the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from accel.greedy.measure import Measurements
from accel.greedy.record import Tried
from accel.greedy.table import DENSE
from accel.greedy.trace import Step

STEPS_PER_LAYER = 1.0  # accepted steps for each layer searched, until the losses are measured anew
_REFUSALS = 4  # steps that would lose more than max_drop, until the descent ends


class Descent:
    """One way down. Attributes: state, where it stands; steps, how it came there."""

    def __init__(
        self, measured: Measurements, state: Mapping[str, str], start: str, refit: Callable[[Mapping], dict[str, str]]
    ) -> None:
        """`start` is the name of `state` in the trace; `refit` gives the state that is measured whole, as fast."""
        self.measured, self.target = measured, measured.target
        self.state, self.start, self.refit = dict(state), start, refit
        self.steps: list[Step] = []
        self.refused: set[tuple[str, str]] = set()
        self.often = max(1, round(STEPS_PER_LAYER * len(measured.space.searched)))

    def run(self) -> None:
        """Step until the target is met, then back as far as it stays met; OutOfTime where the budget ends before."""
        self._look()
        self._step_until_reached()
        if self.measured.times_decide and self._step_back():
            self._look()
            self._step_until_reached()

    def _look(self) -> None:
        """Measure the losses around the present state."""
        self.base = self.measured.look(self.state, self.measured.near(self.state))
        self.base_state, self.since = dict(self.state), 0
        if self.measured.times_decide and self.steps:
            self.measured.timed_speedup(self.state)

    def _loss(self, state: Mapping[str, str]) -> float:
        """The loss of a state near the one looked at, all increases added up."""
        changed = {name: label for name, label in state.items() if label != self.base_state.get(name, DENSE)}
        return self.base.loss + sum(self.base.extra[name][label] for name, label in changed.items())

    def _options(self) -> list[Step]:
        """Every step that makes the network cheaper."""
        table = self.measured.table
        start, price = table.price(self.measured.space.start), table.price(self.state)
        steps = []
        for name, labels in self.base.extra.items():
            costs, before = table.costs[name], self.state.get(name, DENSE)
            for label in labels:
                saved = costs[before] - costs[label]
                if saved <= 0 or (name, label) in self.refused:
                    continue
                after = {**self.state, name: label}
                loss, gained = self._loss(after), start - price + saved
                cost = (loss - self.measured.losses.looked.dense_loss) / gained if gained > 0 else float("inf")
                speedup = self.measured.speedup(after)
                steps.append(Step(name, before, label, cost, loss, price - saved, speedup, self.start))
        return steps

    def _step_until_reached(self) -> None:
        while not self._reached():
            options = self._options() if self.since < self.often else []
            if not options and self.since:
                self._look()
                options = self._options()
            if not options:
                return  # every layer is at its cheapest
            step = min(options, key=lambda option: option.cost)  # the first among equals
            after = {**self.state, step.layer: step.label}
            if self.target.bounds_loss and not self.target.is_met(self._tried(after)):
                self.refused.add((step.layer, step.label))
                if len(self.refused) == _REFUSALS:
                    return
                continue
            self.state = after
            self.steps.append(step)
            self.since += 1

    def _reached(self) -> bool:
        self.measured.budget.check()
        if self.target.bounds_loss or self.measured.speedup(self.state) < self.target.speedup * (1 - 1e-9):
            return False
        return self.target.is_met(self._tried(self.state))

    def _tried(self, state: Mapping[str, str]) -> Tried:
        return self.measured.tried(self.refit(state), f"steps from {self.start}", "steps")

    def _step_back(self) -> bool:
        """Take back the last steps that the measured network did not need; whether there were any."""
        count = len(self.steps)
        while self.steps:
            last = self.steps[-1]
            before = {**self.state, last.layer: last.before}
            if self.measured.speedup(before) < self.target.speedup:
                break
            self.state = before
            self.steps.pop()
        return len(self.steps) < count

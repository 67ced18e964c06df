"""Exchanges: what single layers of a network keep, given to those that need it by those that can do without.

They rest on the best division of a price among layers, if what each candidate costs and loses added up: exact, by a
recursion over the layers. The sums hold near the network around which the losses were measured, so few layers change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from accel.greedy.measure import Measurements
from accel.greedy.record import Tried
from accel.greedy.table import DENSE, without_dense

_GRAIN = 4000  # steps of the price; costs are rounded up to them: 60 layers lose 0.75 % of the price on average
_MARGIN = 1.01  # times the speed-up asked for that an exchange aims at: two timings differ by 1 %
_ROUNDS = 8  # of exchanges from one network
_FEW = 3  # layers that make up for the noise of a clock, at first
_TRIES = 4  # networks that are measured after one look
_GAIN = 0.01  # of the loss, less than which ends the exchanges


class Exchanges:
    """From networks that were measured to better ones near them.

    Attributes:
        correct: what fits correct in the networks that are measured whole, see `accel.fills.CORRECTIONS`.
    """

    def __init__(self, measured: Measurements) -> None:
        self.measured, self.target, self.budget = measured, measured.target, measured.budget
        self.record, self.space = measured.record, measured.space
        self.correct = "scale"

    def refit(self, state: Mapping[str, str]) -> dict[str, str]:
        """The state that is measured whole."""
        return self.space.corrected(state, self.correct)

    def allowed(self) -> float:
        """The price that a network may have, by the table."""
        return self.measured.allowed() / (_MARGIN if self.measured.times_decide else 1 - 1e-9)

    def run(self, base: Tried) -> None:
        """Give to the layers that need it what others can do without, as long as the whole network gains by it."""
        origin, most = f"exchanges from {base.origin}", max(2, len(self.space.searched) // 4)
        for _ in range(_ROUNDS):
            plain, wanted = self._neighbourhood(base)
            if not wanted:
                return
            extra = self.measured.look(plain, wanted).extra
            better = self._first_better(base, plain, extra, origin, most)
            if better is None:
                return
            small = self.target.is_met(base) and better.loss > (1 - _GAIN) * base.loss
            base, most = better, 2 * most
            if small:
                return

    def _neighbourhood(self, base: Tried) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The state to look at, and the candidates to try there: with the quick fits, whichever are used in the end.

        A look at as many of HED's candidates takes 1.9 times as long with refitted weights, and suggests none better.
        """
        reserve = self.measured.losses.seconds(self.refit(base.state), {})
        state = self.space.corrected(base.state, "scale")
        cheaper_first = self.measured.table.price(state) > self.allowed()
        return state, self.measured.around(state, reserve, cheaper_first)

    def _first_better(
        self, base: Tried, plain: Mapping[str, str], extra: Mapping, origin: str, most: int
    ) -> Tried | None:
        """The first network that beats the base, of those that one look suggests; each changes fewer layers.

        Few change at first: all 31 layers of ResNet-32 together, at 0.45 of the MACs, lost 0.13 where the sum promised
        a gain.
        """
        table = self.measured.table
        now = {name: plain.get(name, DENSE) for name in extra}
        prices = {
            n: {label: table.costs[n][label] - table.costs[n][now[n]] for label in row} for n, row in extra.items()
        }
        for _ in range(_TRIES):
            allowed = self.allowed() - table.price(plain)
            changes = divide(extra, prices, allowed, most)
            while len(changes) > most:  # so few cannot make it cheap enough
                most *= 2
                changes = divide(extra, prices, allowed, most)
            state = self.refit(without_dense({**plain, **changes}))
            if self.record.get(state) is not None:
                if len(changes) < 2:
                    return None
                most = len(changes) // 2
                continue
            tried = self.measured.tried(state, origin, "exchanges")
            self.budget.check()
            if self.target.rank(tried) < self.target.rank(base):
                return tried
            if self.target.is_met(tried) or not self.target.is_met(base):
                most = max(1, len(changes) // 2)
        return None

    def adjust(self, base: Tried) -> None:
        """A little faster where it is too slow, and better where it is faster than asked for, by what was last seen of
        single layers: another look takes time, which may be over.

        HED in 5 minutes at 2x, its best network timed again at less, fell back on one that lost twice as much; timed
        again at 2.15x, it left half a minute and a tenth of the loss unused.
        """
        state, known = self.space.corrected(base.state, "scale"), {}
        for (name, label), more in self.measured.extra.items():
            known.setdefault(name, {})[label] = more
        extra = {
            name: {label: more - row.get(state.get(name, DENSE), 0.0) for label, more in row.items()}
            for name, row in known.items()
        }
        if extra:
            how = "adjusted" if self.target.is_met(base) else "quickened"
            self._first_better(base, state, extra, f"{base.origin}, {how}", _FEW)


def divide(
    losses: Mapping[str, Mapping[str, float]],
    prices: Mapping[str, Mapping[str, float]],
    allowed: float,
    most: int,
) -> dict[str, str]:
    """layer -> label of the least loss in all, for the layers that change.

    Args:
        losses: layer -> label -> increase of the loss if that layer alone took it.
        prices: the same for the price; either may be negative.
        allowed: increase of the price in all, at most; where it is out of reach, the cheapest labels are taken.
        most: layers that may change.
    """
    options = {name: _options(row, prices[name]) for name, row in losses.items()}
    least = {name: min(price for _, _, price in row) for name, row in options.items()}
    room = allowed - sum(least.values())
    counted = most < len(options)
    table = np.full((most + 1 if counted else 1, _GRAIN + 1), np.inf)
    table[0] = 0.0
    choices = []
    for name, row in options.items():
        steps = [_steps(price - least[name], room) for _, _, price in row]
        table, chosen = _with_layer(table, [loss for _, loss, _ in row], steps, counted)
        choices.append(chosen)
    if room < 0 or not np.isfinite(table.min()):
        return {name: label for name, row in options.items() if (label := min(row, key=lambda each: each[2])[0])}
    return _walk_back(options, least, room, choices, table)


def _options(losses: Mapping[str, float], prices: Mapping[str, float]) -> list[tuple[str | None, float, float]]:
    """(label, loss, price) of what a layer may take; None, to stay as it is, first."""
    return [(None, 0.0, 0.0), *((label, loss, prices[label]) for label, loss in losses.items() if math.isfinite(loss))]


def _steps(price: float, room: float) -> int:
    """A price above a layer's cheapest in steps of the room, rounded up; beyond the room, more than there are."""
    if price <= 0:
        return 0
    return math.ceil(price / room * _GRAIN - 1e-9) if price <= room else _GRAIN + 1


def _with_layer(
    table: np.ndarray, losses: list[float], steps: list[int], counted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[changes, price] -> least loss with one layer more, and which of its options that takes."""
    after, chosen = np.full_like(table, np.inf), np.zeros(table.shape, np.int16)
    for index, (loss, step) in enumerate(zip(losses, steps)):
        if step > _GRAIN:
            continue
        moved = np.full_like(table, np.inf)
        down = 1 if counted and index else 0
        moved[down:, step:] = table[: len(table) - down, : table.shape[1] - step] + loss
        better = moved < after
        after[better], chosen[better] = moved[better], index
    return after, chosen


def _walk_back(
    options: Mapping[str, list], least: Mapping[str, float], room: float, choices: list[np.ndarray], table: np.ndarray
) -> dict[str, str]:
    changes, place = np.unravel_index(int(table.argmin()), table.shape)
    found = {}
    for (name, row), chosen in zip(reversed(options.items()), reversed(choices)):
        label, _, price = row[chosen[changes, place]]
        place -= _steps(price - least[name], room)
        if label is not None:
            found[name] = label
            changes -= 1 if len(table) > 1 else 0
    return dict(reversed(found.items()))

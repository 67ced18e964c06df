"""Every whole network that a search has measured, and which of them meets its target best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from accel.config import Perforate

_SLACK = 1e-9  # rounding of sums


@dataclasses.dataclass(frozen=True)
class Tried:
    """A network measured as a whole.

    Attributes:
        origin: how the search came to it, in words.
        kind: 'whole' (nothing left out), 'uniform', 'mixture', 'cheapest', 'exchanges', 'steps' or 'refitted'.
        state: layer -> label of its candidate; those that are missing are dense.
        loss, drop: on pictures that nothing was fitted to; see `accel.greedy.losses.Judge`.
        price: what the table says it costs.
        speedup: times cheaper than the original; measured where `timed`, else by the table.
        timed: whether the network was timed, or nothing had to be.
    """

    origin: str
    kind: str
    state: Mapping[str, str]
    loss: float
    drop: float
    price: float
    speedup: float
    timed: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """What is asked for: `kind`, 'speedup', 'max_drop' or 'macs', and its value `wanted`."""

    kind: str
    wanted: float

    @staticmethod
    def of(**given: float | None) -> Target:
        """The one target that is not None. ConfigError: none or several, or no sensible value."""
        return Target(*Perforate(**given).target)

    @property
    def bounds_loss(self) -> bool:
        """Whether the loss is bounded and the time to be the least, instead of the other way round."""
        return self.kind == "max_drop"

    @property
    def speedup(self) -> float:
        """Times cheaper that the network has to be, in the unit of the target; 1 where the loss is bounded."""
        return {"speedup": self.wanted, "macs": 1 / self.wanted if self.wanted else 1.0}.get(self.kind, 1.0)

    def is_met(self, tried: Tried) -> bool:
        if not math.isfinite(tried.loss):
            return False
        if self.bounds_loss:
            return tried.drop <= self.wanted
        return tried.timed and tried.speedup >= self.speedup * (1 - _SLACK)

    def rank(self, tried: Tried) -> tuple:
        """Sorts networks, the best first: those that meet the target by what it leaves open, the others by nearness."""
        if self.bounds_loss:
            return (False, tried.price, tried.loss) if self.is_met(tried) else (True, tried.drop)
        return (False, tried.loss, tried.price) if self.is_met(tried) else (True, -tried.speedup)


class Record:
    """The networks measured, in order; one of a state that is measured again takes the place of the first."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._tried: dict[frozenset, Tried] = {}

    def __iter__(self) -> Iterator[Tried]:
        return iter(self._tried.values())

    def add(self, tried: Tried) -> None:
        self._tried[frozenset(tried.state.items())] = tried

    def get(self, state: Mapping[str, str]) -> Tried | None:
        return self._tried.get(frozenset(state.items()))

    @property
    def first(self) -> Tried:
        """The best of those that meet the target, or the one that comes nearest."""
        return min(self, key=self.target.rank)

    @property
    def best(self) -> Tried | None:
        """The best of those that meet the target, if there are any."""
        first = min(self, key=self.target.rank, default=None)
        return first if first is not None and self.target.is_met(first) else None

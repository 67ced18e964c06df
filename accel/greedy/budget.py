"""The time that a search may take: asked for before anything long is begun, and looked at inside it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from accel.errors import ConfigError

_Item = TypeVar("_Item")


class OutOfTime(Exception):
    """The part of a search under way has had its time; what was measured before stands."""


class Budget:
    """Seconds since it was made, against those allowed. Attribute: whole, the latter.

    Args:
        minutes: all that may be spent; None sets no limit.
        clock: seconds of a clock that never goes back; by default that of the machine.

    Raises:
        ConfigError: no positive number of minutes.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] | None = None) -> None:
        number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
        if minutes is not None and not (number and 0 < minutes < math.inf):
            raise ConfigError(
                f"minutes is the time to search and must be above 0, or None for no limit: got {minutes!r}"
            )
        self.minutes = minutes
        self.whole = self._end = math.inf if minutes is None else 60.0 * minutes
        self._clock = clock or time.monotonic
        self._begin = self._clock()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        """Seconds until the end of the part under way; none of it may be left."""
        return self._end - self.spent

    @contextlib.contextmanager
    def until(self, share: float, reserve: float = 0.0) -> Iterator[None]:
        """A part that ends when `share` of the whole time is over, and at the latest `reserve` seconds before its end.

        `OutOfTime` ends the block quietly.
        """
        before = self._end
        self._end = min(before, share * self.whole, self.whole - reserve)
        with contextlib.suppress(OutOfTime):
            try:
                yield
            finally:
                self._end = before

    def check(self, seconds: float = 0.0) -> None:
        """OutOfTime where the part under way has not so many seconds left."""
        if self.left <= seconds:
            raise OutOfTime

    def allows(self, items: Sequence[_Item], least: int) -> Iterable[_Item]:
        """The items for as long as one more, as long as the last one took, fits into the part; `least` in any case."""
        for count, item in enumerate(items):
            begin = self.spent
            yield item
            if count + 1 >= least and self.left < self.spent - begin:
                return

    def repeats(self, seconds: float, most: int, least: int = 3) -> int:
        """How often something of so many seconds may be repeated in the part under way."""
        return most if self.left >= most * seconds else max(least, int(max(self.left, 0.0) / seconds))

    def __str__(self) -> str:
        spent = f"{self.spent / 60:.1f}"
        return f"{spent} min" if self.minutes is None else f"{spent} of {self.minutes:g} min"

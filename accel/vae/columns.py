"""Columns of a table: their kinds, and the numbers that stand for their cells.

A table is a float64 matrix [rows, columns] of values and of class numbers, NaN where a cell is missing; `Column.scaled`
turns its values into the network's units. `accel.vae.frames` makes it of a data frame and puts cells back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel.errors import ConfigError, DataError

NUMERIC = ("real", "nonnegative", "integer", "count")
DISCRETE = ("boolean", "categorical", "ordinal")
KINDS = (*NUMERIC, *DISCRETE, "pass")
MOST_CLASSES = 200  # more are names of rows, as a rule: each class has a network output of its own


@dataclasses.dataclass(frozen=True)
class Column:
    """One column as it was found, or given.

    Attributes:
        name: of the column.
        kind: real, nonnegative, integer, count (integers from 0), boolean, categorical, ordinal, or pass: handed
            through, missing cells and all, and not looked at.
        classes: of a discrete column, in order; class numbers count from 0.
        mean, scale: of the observed values of a numeric column; a constant one has scale 0.
        low, high: bounds of a numeric column that no imputed value oversteps; None where there is none.
        sticky: whether fractional values of the column lie on a bound, as zeros do among amounts.
    """

    name: str
    kind: str
    classes: tuple = ()
    mean: float = 0.0
    scale: float = 1.0
    low: float | None = None
    high: float | None = None
    sticky: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"column {self.name!r} cannot be {self.kind!r}: its kind must be one of {', '.join(KINDS)}"
            )
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"column {self.name!r} needs low < high, got bounds ({self.low:g}, {self.high:g})")

    @property
    def numeric(self) -> bool:
        return self.kind in NUMERIC

    @property
    def discrete(self) -> bool:
        return self.kind in DISCRETE

    @property
    def whole(self) -> bool:
        return self.kind in ("integer", "count")

    @property
    def constant(self) -> bool:
        return self.scale == 0 or len(self.classes) == 1

    @property
    def bounds(self) -> tuple[float, float]:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values in units of the column's deviation from its mean; class numbers as they are."""
        return (values - self.mean) / (self.scale or 1.0) if self.numeric else values

    def unscaled(self, scaled: np.ndarray) -> np.ndarray:
        """The inverse of `scaled`, within the bounds."""
        if not self.numeric:
            return scaled
        return np.clip(scaled * self.scale + self.mean, *self.bounds)

    def __str__(self) -> str:
        if self.discrete:
            shown = ", ".join(map(str, self.classes[:6])) + (", ..." if len(self.classes) > 6 else "")
            return f"{self.name}: {self.kind}, {len(self.classes)} classes ({shown})"
        if self.kind == "pass":
            return f"{self.name}: handed through"
        constant = ", constant" if self.constant else ""
        return f"{self.name}: {self.kind}, mean {self.mean:.4g}, deviation {self.scale:.4g}{constant}"

    def given(self) -> dict[str, Any]:
        """What makes a column of the same kind of other rows."""
        if self.discrete:
            return {"kind": self.kind, "classes": self.classes}
        return {"kind": self.kind, "low": self.low, "high": self.high} if self.numeric else {"kind": self.kind}

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Column:
        return cls(**{**entry, "classes": tuple(entry["classes"])})


def numeric_column(name: str, kind: str, values: np.ndarray, bounds: tuple | None = None) -> Column:
    """A numeric column of the statistics of its values [N], NaN where missing.

    Raises:
        DataError: no value, an infinite one, a value outside the bounds, or a fraction among whole numbers.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        raise _no_value(name)
    low, high = bounds or (None, None)
    if kind in ("nonnegative", "count"):
        low = 0.0 if low is None else max(float(low), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(known.mean()), float(known.std())
    if not (math.isfinite(mean) and math.isfinite(scale)):
        raise DataError(f"the values of column {name!r} are too large for a mean and a deviation: scale it")
    if scale <= 1e-12 * abs(mean):  # the deviation of equal numbers is not always exactly 0
        scale = 0.0
        mean = float(known[0])
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    column = Column(name, kind, (), mean, scale, low, high)
    if not column.whole and np.isin(known, column.bounds).any():
        column = dataclasses.replace(column, sticky=True)
    check_values(column, known)
    return column


def check_values(column: Column, known: np.ndarray) -> None:
    """DataError for observed values that a numeric column cannot hold."""
    if not np.isfinite(known).all():
        raise DataError(
            f"column {column.name!r} holds an infinite value (infinity or inf): replace it, or mark it missing"
        )
    low, high = column.bounds
    outside = known[(known < low) | (known > high)]
    if len(outside):
        raise DataError(
            f"column {column.name!r} is {column.kind} within [{low:g}, {high:g}] and holds {outside[0]:g}: give it "
            "another kind or other bounds"
        )
    if column.whole and len(fractions := known[known != np.round(known)]):
        raise DataError(f"column {column.name!r} holds whole numbers and {fractions[0]:g}: give it kind 'real'")


def found_numeric_kind(values: np.ndarray, whole_type: bool) -> str:
    """The kind of a numeric column nobody gave one: of integers `whole_type`, or floats that may be."""
    known = values[~np.isnan(values)]
    if not np.isfinite(known).all() or not (whole_type or (known == np.round(known)).all()):
        return "real"
    if len(known) and set(np.unique(known)) == {0.0, 1.0}:
        return "boolean"
    return "count" if (known >= 0).all() else "integer"


def discrete_column(name: str, kind: str, classes: Sequence) -> Column:
    """A column of classes.

    Raises:
        DataError: no class, too many, or classes that are neither text, numbers nor truth values.
    """
    plain = tuple(one.item() if isinstance(one, np.generic) else one for one in classes)
    if not plain:
        raise _no_value(name)
    if len(plain) > MOST_CLASSES:
        raise DataError(
            f"column {name!r} holds {len(plain)} different classes, more than {MOST_CLASSES}: merge rare ones, or hand "
            f"it through with columns={{{name!r}: 'pass'}}"
        )
    odd = [one for one in plain if not isinstance(one, (str, int, float, bool))]
    if odd or len({isinstance(one, str) for one in plain}) > 1:
        raise DataError(
            f"column {name!r} mixes types, {' and '.join(sorted({type(one).__name__ for one in plain}))}: its values "
            "must all be text, or all be numbers; convert it"
        )
    return Column(name, kind, plain)


def _no_value(name: str) -> DataError:
    return DataError(
        f"column {name!r} holds no value, so there is nothing to learn it from: leave it out, or hand it through with "
        f"columns={{{name!r}: 'pass'}}"
    )


def describe(columns: Sequence[Column]) -> str:
    """One line a column."""
    return "\n".join(map(str, columns))

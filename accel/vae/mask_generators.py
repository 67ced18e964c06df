"""Masks of what a model is to generate: bool tensors of the shape of the data, True where a cell is hidden.

A generator is called with cells [N, D], NaN where missing, in units of each column's deviation, and a torch.Generator.
Missing cells count as hidden whatever it says.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.errors import ConfigError


class MaskGenerator(abc.ABC):
    """Draws masks; a frozen dataclass of plain values, so that it can be written as JSON."""

    @abc.abstractmethod
    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """bool [N, D], True where hidden."""

    def to_dict(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": type(self).__name__} | {name: _plain(value) for name, value in fields.items()}


def mask_generator(entry: Mapping[str, Any]) -> MaskGenerator:
    """The generator that `to_dict` described.

    Raises:
        ConfigError: there is no such generator.
    """
    values = dict(entry)
    kind = values.pop("kind", None)
    if kind not in GENERATORS:
        raise ConfigError(f"no mask generator is called {kind!r}: known are {', '.join(GENERATORS)}")
    return GENERATORS[kind](**{name: _made(value) for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class MCAR(MaskGenerator):
    """Missing completely at random: every cell is hidden with probability `share`.

    Attributes:
        share: in [0, 1], or a pair (least, most): each row's own is drawn between them.
    """

    share: float | tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        least, most = self.share if isinstance(self.share, Sequence) else (self.share, self.share)
        if not 0 <= least <= most <= 1:
            raise ConfigError(f"MCAR needs a share in [0, 1], or two in order, got {self.share}")

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        least, most = self.share if isinstance(self.share, Sequence) else (self.share, self.share)
        share = least + (most - least) * _uniform(len(cells), 1, like=cells, generator=generator)
        return _uniform(*cells.shape, like=cells, generator=generator) < share


@dataclasses.dataclass(frozen=True)
class MAR(MaskGenerator):
    """Missing at random: whether a cell is hidden depends on the row's values in columns that are never hidden.

    Attributes:
        share: of the cells of the other columns that is hidden, on average over the rows given, in (0, 1).
        drivers: numbers of the columns that decide and stay visible.
        strength: how many logits one deviation of the drivers' mean is worth; 0 is MCAR.
    """

    share: float
    drivers: tuple[int, ...]
    strength: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not self.drivers:
            raise ConfigError(f"MAR needs a share in (0, 1) and a driver, got {self.share} and {self.drivers}")

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        _check_columns(self.drivers, cells.shape[1], "MAR's drivers")
        drivers = list(self.drivers)
        score = self.strength * torch.nan_to_num(cells[:, drivers]).sum(1) / math.sqrt(len(drivers))
        chance = torch.sigmoid(score + _intercept(score, self.share))
        hidden = _uniform(*cells.shape, like=cells, generator=generator) < chance[:, None]
        hidden[:, drivers] = False
        return hidden


@dataclasses.dataclass(frozen=True)
class Monotone(MaskGenerator):
    """Drop-out: once a column is hidden, all after it are; where it begins is drawn, never before the first column.

    Attributes:
        order: numbers of the columns, the last to be hidden first; None: as they stand.
    """

    order: tuple[int, ...] | None = None

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        width = cells.shape[1]
        order = tuple(range(width)) if self.order is None else self.order
        if sorted(order) != list(range(width)):
            raise ConfigError(f"Monotone's order must name each of the {width} columns once, got {order}")
        start = 1 + (_uniform(len(cells), 1, like=cells, generator=generator) * (width - 1)).long()
        rank = torch.empty(width, dtype=torch.long, device=cells.device)
        rank[torch.tensor(order, dtype=torch.long, device=cells.device)] = torch.arange(width, device=cells.device)
        return rank >= start


@dataclasses.dataclass(frozen=True)
class MaskList(MaskGenerator):
    """Masks of a list, such as coalitions, each as often as its weight says.

    Attributes:
        masks: [M][D] truth values, True where hidden.
        weights: M numbers from 0, not all 0; None: all alike.
    """

    masks: tuple[tuple[bool, ...], ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(tuple(bool(cell) for cell in mask) for mask in self.masks))
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if not self.masks or len({len(mask) for mask in self.masks}) != 1:
            raise ConfigError("MaskList needs masks of one length, and at least one")
        _check_weights(self.weights, len(self.masks), "masks")

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        masks = torch.tensor(self.masks, dtype=torch.bool, device=cells.device)
        if masks.shape[1] != cells.shape[1]:
            raise ConfigError(f"MaskList's masks are for {masks.shape[1]} columns, the table has {cells.shape[1]}")
        return masks[_choose(self.weights, len(masks), cells, generator)]


@dataclasses.dataclass(frozen=True)
class Groups(MaskGenerator):
    """Groups of columns are hidden or seen together; columns in no group are groups of their own.

    Attributes:
        groups: numbers of the columns of each group, no column in two.
        base: draws the mask of the groups, in the order of their first columns.
    """

    groups: tuple[tuple[int, ...], ...]
    base: MaskGenerator = dataclasses.field(default_factory=MCAR)

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        grouped = [column for group in self.groups for column in group]
        _check_columns(grouped, cells.shape[1], "Groups")
        alone = [(column,) for column in range(cells.shape[1]) if column not in set(grouped)]
        groups = sorted([*map(tuple, self.groups), *alone], key=min)
        firsts = self.base(cells[:, [min(group) for group in groups]], generator)
        owner = torch.empty(cells.shape[1], dtype=torch.long, device=cells.device)
        for number, group in enumerate(groups):
            owner[list(group)] = number
        return firsts[:, owner]


@dataclasses.dataclass(frozen=True)
class Patterns(MaskGenerator):
    """What other rows of the batch lack, on top of what a row lacks itself: gaps as they come in the table."""

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return cells[torch.randperm(len(cells), generator=generator, device=cells.device)].isnan()


@dataclasses.dataclass(frozen=True)
class Mixture(MaskGenerator):
    """Every row's mask is drawn by one of several generators.

    Attributes:
        generators: of masks.
        weights: how often each; None: all alike.
    """

    generators: tuple[MaskGenerator, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.generators:
            raise ConfigError("Mixture needs a mask generator")
        _check_weights(self.weights, len(self.generators), "generators")

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.stack([one(cells, generator) for one in self.generators])
        chosen = _choose(self.weights, len(drawn), cells, generator)
        return drawn[chosen, torch.arange(len(cells), device=cells.device)]


@dataclasses.dataclass(frozen=True)
class OfTable(MaskGenerator):
    """Masks of some columns of a table, drawn by a generator that numbers all of them; the others count as missing.

    Attributes:
        base: draws masks of the whole table.
        places: numbers of the columns given.
        width: columns of the table.
    """

    base: MaskGenerator
    places: tuple[int, ...]
    width: int

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        whole = cells.new_full((len(cells), self.width), math.nan)
        places = list(self.places)
        whole[:, places] = cells
        return self.base(whole, generator)[:, places]


GENERATORS = {kind.__name__: kind for kind in (MCAR, MAR, Monotone, MaskList, Groups, Patterns, Mixture)}


def _uniform(*shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, dtype=torch.float32, device=like.device, generator=generator)


def _choose(weights: Sequence[float] | None, count: int, cells: Tensor, generator: torch.Generator | None) -> Tensor:
    chances = torch.tensor(weights or [1.0] * count, dtype=torch.float32, device=cells.device)
    return torch.multinomial(chances, len(cells), replacement=True, generator=generator)


def _intercept(score: Tensor, share: float) -> Tensor:
    """What to add to the scores so that the mean of their sigmoids is `share`, by bisection."""
    low, high = -score.max() - 20, -score.min() + 20
    for _ in range(40):
        middle = (low + high) / 2
        above = torch.sigmoid(score + middle).mean() > share
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def _check_columns(columns: Sequence[int], width: int, what: str) -> None:
    if len(set(columns)) != len(columns) or any(not 0 <= column < width for column in columns):
        raise ConfigError(f"{what} must be different column numbers from 0 to {width - 1}, got {list(columns)}")


def _check_weights(weights: Sequence[float] | None, count: int, what: str) -> None:
    if weights is not None and (len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf):
        raise ConfigError(f"{count} {what} need {count} weights from 0, not all 0, got {tuple(weights)}")


def _plain(value: object) -> object:
    if isinstance(value, MaskGenerator):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _made(value: object) -> object:
    if isinstance(value, Mapping):
        return mask_generator(value)
    return tuple(_made(item) for item in value) if isinstance(value, list) else value

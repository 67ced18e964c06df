"""The best division of a price among layers, if what each candidate costs and loses added up.

Exact, by a recursion over the layers. The sums hold near the network around which the losses were measured, so it may
be told to change few layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_GRAIN = 4000  # steps of the price; costs are rounded up to them: 60 layers lose 0.75 % of the price on average


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

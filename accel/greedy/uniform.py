"""Uniform rules, one candidate for all layers: which there are, and in what order a search tries them."""

from __future__ import annotations

import math
from typing import NamedTuple

from accel.greedy.measure import Measurements


class Uniform(NamedTuple):
    """One candidate everywhere, but perhaps in the first layer, or the first and the last.

    Attributes:
        origin: its name.
        state: candidates by layer.
        kind: what else there is to say of it than how much it keeps.
        far: of its kind and on its side of the target, how many are nearer to that.
    """

    origin: str
    state: dict[str, str]
    kind: tuple
    far: int = 0


def uniform_rules(measured: Measurements, speedup: float) -> list[Uniform]:
    """The uniform rules, in the order to try them for this speed-up.

    Of each kind the nearest faster and slower than asked for come first. What needs no fit and what needs a quick one
    come before refitted weights, so that there is something in any case.
    """
    distances = [(math.log(measured.speedup(rule.state) / speedup), rule) for rule in _rules(measured)]
    counts: dict[tuple, int] = {}
    ranked = []
    for distance, rule in sorted(distances, key=lambda each: abs(each[0])):
        slower = distance < 0
        far = counts[rule.kind, slower] = counts.get((rule.kind, slower), -1) + 1
        effort, without, *_ = rule.kind
        rest = bool(far or slower or without)  # all but one of each effort, the quickest effort first
        ranked.append(((far, rest, -effort if rest else effort, rule.kind, slower), rule._replace(far=far)))
    return [rule for _, rule in sorted(ranked, key=lambda each: each[0])]


def _rules(measured: Measurements) -> list[Uniform]:
    searched, candidates = measured.space.searched, measured.space.candidates
    made = {label: row[label].config for row in candidates.values() for label in row}
    found = []
    for label in dict.fromkeys(label for name in searched for label in candidates[name]):
        config = made[label]
        if config.is_whole:
            continue
        for without in dict.fromkeys([(), (searched[0],), (searched[0], searched[-1])]):
            spread = measured.space.alternating if config.shift else measured.space.uniform
            where = "in every other layer" if config.shift else "everywhere"
            origin = f"{label} {where}" + (f" but in {' and '.join(without)}" if without else "")
            kind = (config.effort, len(without), config.mask, config.interpolate, config.rank is not None, config.shift)
            found.append(Uniform(origin, {**measured.start, **spread(label, without)}, kind))
    return found

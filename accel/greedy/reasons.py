"""What a search says of its result in words: why layers stayed whole, and how far it came where there is none."""

from __future__ import annotations

from accel.greedy.measure import Measurements
from accel.greedy.record import Tried
from accel.greedy.table import DENSE


def unmet(measured: Measurements) -> str:
    """Why there is no result, and how far the search came."""
    name = f"{measured.target.kind}={measured.target.wanted:g}"
    if not list(measured.record):
        return f"{name}: there was no time to measure a single network in {measured.budget}; give more minutes"
    far = measured.record.first
    said = f"the network of the least cost that was measured ({far.origin}) costs 1/{far.speedup:.2f}, at a loss of "
    made = [conversion.config for row in measured.space.candidates.values() for conversion in row.values()]
    bytes_left = measured.target.kind == "speedup" and not any(config.in_bytes for config in made)
    more = f"add candidates with a lower keep, {'search with precision=int8, ' * bytes_left}or ask for less"
    if far.kind != "cheapest":
        more = f"give more minutes ({measured.budget} are over), {more}"
    return f"{name} cannot be met: {said}{far.loss:.3g}; {more}"


def reasons(measured: Measurements, best: Tried) -> dict[str, str]:
    """Why layers that were searched stay whole."""
    found = {}
    for name in measured.space.searched:
        label, costs = best.state.get(name, DENSE), measured.table.costs[name]
        if label != DENSE and measured.space.executed(name, label) < 1:
            continue
        cheaper = [other for other in measured.space.candidates[name] if costs[other] < costs[label]]
        extra = {other: measured.extra[name, other] for other in cheaper if (name, other) in measured.extra}
        if not cheaper:
            least = min((other for other in costs if other != label), key=costs.__getitem__)
            said = f"slower than dense: {least} takes {costs[least]:.3g} instead of {costs[label]:.3g}"
        elif best.kind == "whole":
            said = "not needed: the target is met with every position"
        elif extra:
            least = min(extra, key=extra.__getitem__)
            said = f"too sensitive: {least} would add {extra[least]:.3g} to the loss"
        else:
            said = f"too sensitive: nothing else was better than {best.origin}"
        if label != DENSE:
            config = measured.space.candidates[name][label].config
            how = "in eight bits" if config.in_bytes else "in bf16" if config.in_bf16 else "by the engine"
            said = f"whole, {how}; {said}"
        found[name] = said
    return found

"""A profile whose rows stand for several layers: all of a stage, or all that do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accel.errors import ConfigError
from accel.profiling.layers import Profile, derived

BY = ("layer", "op", "stage")
_SUMMED = ("parameters", "dense_macs", "executed_macs", "bytes", "baseline_ms", "ms")


def grouped(profile: Profile, by: str = "layer", depth: int | None = None) -> Profile:
    """The same profile with a row for each group of layers, in the order of their first; the total stays.

    Args:
        by: "layer", its name down to `depth` parts; "stage", the first part of it; "op", what it computes, such as a
            3x3 convolution.

    Raises:
        ConfigError: another way to group, or a depth below 1.
    """
    check_grouping(by, depth)
    if by == "layer" and depth is None:
        return profile
    key = _op if by == "op" else _front(1 if depth is None else depth)
    groups: dict[str, list[dict]] = {}
    for row in profile.rows:
        groups.setdefault(key(row), []).append(row)
    rows = [_sum(name, members) for name, members in groups.items()]
    return Profile(profile.title, [derived(row, profile.total) for row in rows], profile.total)


def check_grouping(by: str, depth: int | None) -> None:
    """Raises what `grouped` would: before anything is measured."""
    if by not in BY:
        raise ConfigError(f"a profile is shown by {', '.join(BY)}, got {by!r}")
    if depth is not None and (depth < 1 or by != "layer"):
        raise ConfigError(f"depth is a number of parts of a layer's name, at least 1, got {depth} by {by}")


def _front(depth: int) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: ".".join(row["layer"].split(".")[:depth])


def _op(row: Mapping[str, Any]) -> str:
    return row["op"] or row["layer"]


def _sum(name: str, members: list[dict]) -> dict:
    if len(members) == 1:
        return {**members[0], "layer": name}
    found = dict.fromkeys(members[0])
    for each in _SUMMED:
        values = [row[each] for row in members if row.get(each) is not None]
        found[each] = sum(values) if values else None
    saves = any(row["keep"] is not None for row in members)
    found["keep"] = found["executed_macs"] / found["dense_macs"] if saves and found["dense_macs"] else None
    precisions = {row.get("precision") for row in members}
    found["precision"] = precisions.pop() if len(precisions) == 1 else None
    return {**found, "layer": name, "shape": f"{len(members)} layers", "op": None}

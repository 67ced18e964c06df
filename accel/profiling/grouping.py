"""A profile as the tree of modules, or with rows that stand for several layers: of a stage, or that do the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from accel.errors import ConfigError
from accel.profiling.flops import spread
from accel.profiling.layers import COUNTED, FUNCTIONAL, Profile, derived
from accel.reports.tables import Column, percent, show_bytes, show_macs, show_rate

BY = ("layer", "op", "stage")
_SUMMED = ("parameters", "dense_macs", "executed_macs", "activations", "bytes", "baseline_ms", "ms")
_SPREAD = ("mean", "deviation", "5%", "50%", "95%")


class Detailed(Profile):
    """All that is known of every row. A column that nothing stands in is not shown."""

    columns = (
        *COUNTED,
        Column("executed_macs", "executed", show_macs),
        *(Column(f"picture_{key}", f"a picture: {key}", show_macs, optional=key not in _SPREAD[:2]) for key in _SPREAD),
        Column("keep", "keep", percent),
        Column("activations", "output", show_bytes, optional=True),
        Column("baseline_ms", "baseline ms", "{:.3f}".format),
        Column("ms", "ms", "{:.3f}".format),
        Column("q10_ms", "10 %", "{:.3f}".format, optional=True),
        Column("q90_ms", "90 %", "{:.3f}".format, optional=True),
        Column("share", "of time", percent),
        Column("gops", "GOP/s", show_rate),
        Column("of_peak", "of peak", percent),
        Column("speedup", "speed-up", "{:.2f}x".format),
        Column("note", "note"),
    )

    def shown(self) -> list[Column]:
        return [column for column in self.columns if any(row.get(column.key) is not None for row in self.rows)]


def grouped(
    profile: Profile, by: str = "layer", depth: int | None = None, counts: Mapping[str, Tensor] | None = None
) -> Detailed:
    """The profile with a row for each group of layers, in the order of their first; the total stays.

    Args:
        by: "layer", its name down to `depth` parts; "stage", the first part of it; "op", what it computes, such as a
            3x3 convolution.
        counts: executed MACs of single images, [images] by layer, of `accel.profiling.flops.macs_of_images`: how they
            differ stands in the rows then.

    Raises:
        ConfigError: another way to group, or a depth below 1.
    """
    check_grouping(by, depth)
    key = _op if by == "op" else _front(1 if by == "stage" else depth)
    groups: dict[str, list[dict]] = {}
    for row in profile.rows:
        groups.setdefault(key(row), []).append(row)
    return _detailed(profile, ((name, name, members) for name, members in groups.items()), counts)


def tree(profile: Profile, depth: int | None = None, counts: Mapping[str, Tensor] | None = None) -> Detailed:
    """The profile as the tree of modules, names indented by how deep they lie in it: each module that holds several
    layers has a row before theirs, their sum. `depth` and `counts` as in `grouped`."""
    check_grouping("layer", depth)
    found = _branches(profile.rows, 0, depth or max(map(len, map(_parts, profile.rows))), "")
    return _detailed(profile, found, counts)


def check_grouping(by: str, depth: int | None) -> None:
    """Raises what `grouped` would: before anything is measured."""
    if by not in BY:
        raise ConfigError(f"a profile is shown by {', '.join(BY)}, got {by!r}")
    if depth is not None and (depth < 1 or by != "layer"):
        raise ConfigError(f"depth is a number of parts of a layer's name, at least 1, got {depth} by {by}")


def _detailed(
    profile: Profile,
    groups: Iterator[tuple[str, str, list[dict]]],
    counts: Mapping[str, Tensor] | None,
) -> Detailed:
    """Of groups (what the row is called, a name for the members, the members)."""
    rows = []
    for shown, name, members in groups:
        row = {**derived(_sum(name, members), profile.total), "layer": shown}
        rows.append(row | _spread(counts or {}, [each["layer"] for each in members]))
    return Detailed(profile.title, rows, profile.total | _spread(counts or {}, [*map(_row_name, counts or {})]))


def _spread(counts: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, float]:
    found = [count for name, count in counts.items() if _row_name(name) in layers]
    return {f"picture_{key}": value for key, value in spread(sum(found)).items() if key in _SPREAD} if found else {}


def _row_name(layer: str) -> str:
    return layer or FUNCTIONAL


def _branches(rows: Sequence[dict], level: int, depth: int, indent: str) -> Iterator[tuple[str, str, list[dict]]]:
    """(indented name, name, members) of all that lies in modules whose names have `level` parts in common."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(_parts(row)[: level + 1]), []).append(row)
    for members in groups.values():
        front = _common([*map(_parts, members)])[:depth]
        name = ".".join(front)
        yield indent + name, name, members
        if len(members) > 1 and len(front) < depth:
            own = [row for row in members if _parts(row) == front]
            yield from ((f"{indent}  {name}, itself", name, [row]) for row in own)
            yield from _branches([row for row in members if _parts(row) != front], len(front), depth, f"{indent}  ")


def _common(paths: Sequence[list[str]]) -> list[str]:
    same = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*paths))
    return [first for first, *_ in same]


def _parts(row: Mapping[str, Any]) -> list[str]:
    return row["layer"].split(".")


def _front(depth: int | None) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: ".".join(_parts(row)[:depth])


def _op(row: Mapping[str, Any]) -> str:
    return row["op"] or row["layer"]


def _sum(name: str, members: list[dict]) -> dict:
    if len(members) == 1:
        return {**members[0], "layer": name}
    found = dict.fromkeys(members[0])
    for each in _SUMMED:
        values = [row[each] for row in members if row.get(each) is not None]
        found[each] = sum(values) if values else None
    samples = [row["samples_ms"] for row in members if row.get("samples_ms")]
    if samples and len({*map(len, samples)}) == 1:
        found["samples_ms"] = [sum(each) for each in zip(*samples)]
    saves = any(row["keep"] is not None for row in members)
    found["keep"] = found["executed_macs"] / found["dense_macs"] if saves and found["dense_macs"] else None
    for each in ("precision", "peak_gops"):
        values = {row.get(each) for row in members}
        found[each] = values.pop() if len(values) == 1 else None
    uncounted = [row["uncounted"] for row in members if row.get("uncounted")]
    note = f"not counted: {', '.join(uncounted)}" if uncounted else None
    return {**found, "layer": name, "shape": f"{len(members)} layers", "op": None, "note": note}

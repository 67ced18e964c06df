"""Benchmark cases of a TOML file: correctness first, then the clock, then the bars the file sets.

A case file names its kind: one module accel/bench/<kind>.py, whose `rows(case, settings)` yields one dict a
measurement. The module may name the columns of the printed table in SHOWN, and have a `draw(rows)` that gives a figure
of all rows in the output, saved beside them, or a `summary(rows)`, rows that are printed below the table. The file
lists `[[case]]` tables, whose missing keys are those of a table `[every]`; a table `[grid]` of lists runs every case
with each combination, which its name then bears: the first list turns slowest, the cases fastest. The file may set
`[[bar]]` tables: column, at_least or at_most, and either `count` (rows that must reach it; all by default) or
`mean = "geometric"`; `where` picks the rows it speaks of.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from accel.errors import ConfigError, fitting
from accel.files import read_toml, write_text

KINDS = (
    *("exactness", "layers", "quantized", "networks", "foreign", "foreign_sact", "rivals", "search", "masked"),
    *("eight_bits", "backward", "nearest", "adaptive", "frontier", "gpu", "gpu_short", "vae_gradients"),
    *("sizes", "leaks", "large", "calls", "halting_gradients", "inpainting", "imputation", "repeats"),
    *("halting_frontier", "halting_continuity", "shape_fcn", "exported", "vae_halting"),
    *("vae_rivals", "vae_latents", "vae_exact", "vae_robust", "vae_topics", "conditional"),
    *("imputation_tables", "imputation_pooling"),
)
STUDIES = ("mc", "distributions", "speed")  # these write figures and tables of their own
ROW_SCHEMA = 1

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a kind of case is told: the seed, whether to take fewer repeats, and when the run began (monotonic)."""

    seed: int = 0
    quick: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def repeats(self) -> int:
        return 3 if self.quick else 15


def read_cases(path: pathlib.Path, only: str | None = None) -> dict[str, Any]:
    """The case file as a dict with `kind`, `case` and maybe `bar`.

    Raises:
        ConfigError: no such file, no TOML, an unknown kind, no case, or no case called `only`.
    """
    file = read_toml(path)
    with fitting(str(path)):
        return _checked(path, file, only)


def _checked(path: pathlib.Path, file: dict[str, Any], only: str | None) -> dict[str, Any]:
    if file.get("kind") not in KINDS:
        raise ConfigError(f"{path} has kind = {file.get('kind')!r}, expected one of {', '.join(KINDS)}")
    cases = file.get("case", [])
    file["case"] = _multiplied(cases, file.get("grid", {})) if all("name" in case for case in cases) else []
    names = [case["name"] for case in file["case"]]
    if not names:
        raise ConfigError(f"{path} needs [[case]] tables, each with a name, and no empty list in [grid]")
    if only is not None and only not in names:
        raise ConfigError(f"{path} has no case {only!r}, only {', '.join(names)}")
    file["case"] = [{**file.get("every", {}), **case} for case in file["case"] if only in (None, case["name"])]
    for bar in file.get("bar", []):
        judge(bar, [{bar["column"]: 1.0, **bar.get("where", {})}])  # what is wrong with it is told before the long work
    return file


def _multiplied(cases: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    found = []
    for values in itertools.product(*grid.values()):
        for case in cases:
            name = ", ".join(map(str, (case["name"], *values)))
            found.append({**dict(zip(grid, values)), **case, "name": name})
    return found


def measure(
    file: Mapping[str, Any],
    settings: Settings,
    *,
    output: pathlib.Path | None = None,
    resume: bool = False,
    watch: Callable[[Iterable], Iterable] = iter,
) -> list[Row]:
    """Run every case; each row is saved as it comes, so an interrupted run keeps what it has, and can be resumed.

    Args:
        file: as `read_cases` gives it.
        output: rows are appended here.
        resume: measure only the cases of which `output` holds no right row; wrong ones go.
        watch: put around the rows, to show how far it is.

    Raises:
        DataError: `output` cannot be written.
    """
    from accel.profiling.machine import machine_record

    kind, machine = load_kind(file["kind"]), machine_record()
    lines = output.read_text(encoding="utf-8").splitlines(True) if output and output.exists() else []
    rows: list[Row] = []
    if resume:
        lines, rows = _right(lines, {case["name"] for case in file["case"]})
    known = {row["case"] for row in rows}
    cases = [case for case in file["case"] if case["name"] not in known]
    for name, row in watch((case["name"], row) for case in cases for row in _rows(kind, case, settings)):
        rows.append({"case": name, **row})
        if output:
            stamp = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            extra = {"schema": ROW_SCHEMA, "kind": file["kind"], "seed": settings.seed, "time": stamp}
            lines.append(json.dumps({**rows[-1], **extra, "machine": machine}) + "\n")
            write_text(output, "".join(lines))
    return rows


def _rows(kind: ModuleType, case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    with fitting(f"the case {case['name']!r}"):
        yield from kind.rows(case, settings)


def _right(lines: Sequence[str], cases: set[str]) -> tuple[list[str], list[Row]]:
    """The lines without those of `cases` that have a wrong row, and the rows of the `cases` that are left."""
    saved = [json.loads(line) for line in lines]
    wrong = cases & {row["case"] for row in saved if not row["correct"]}
    kept = [line for line, row in zip(lines, saved) if row["case"] not in wrong]
    return kept, [row for row in saved if row["case"] in cases - wrong]


def load_kind(name: str) -> ModuleType:
    return importlib.import_module(f"accel.bench.{name}")


def judge(bar: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One line that says whether the rows reach a bar of the case file."""
    column, where = bar["column"], bar.get("where", {})
    asked = (row for row in rows if row.get(column) is not None)
    values = [row[column] for row in asked if all(row.get(key) == value for key, value in where.items())]
    sign, limit = ("at least", bar["at_least"]) if "at_least" in bar else ("at most", bar["at_most"])
    label = f"bar {column}" + "".join(f", {key} {value}" for key, value in where.items())
    if not values:
        return f"{label}: not measured"

    def reaches(value: float) -> bool:
        return value >= limit if sign == "at least" else value <= limit

    if bar.get("mean") == "geometric":
        mean = math.exp(sum(map(math.log, values)) / len(values))
        verdict = "reached" if reaches(mean) else "MISSED"
        return f"{label}: {verdict}, geometric mean of {len(values)} rows {mean:.3f}, wanted {sign} {limit}"
    good, wanted = sum(map(reaches, values)), bar.get("count", len(values))
    verdict = "reached" if good >= wanted else "MISSED"
    worst = min(values) if sign == "at least" else max(values)
    return f"{label}: {verdict}, {good} of {len(values)} rows {sign} {limit} (wanted {wanted}), worst {worst:.3g}"

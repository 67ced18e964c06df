"""`accel bench speed --against DIR`: whether this checkout is as fast as another one of this project.

Both run the same cases in processes that take turns; each pair of processes gives one geometric mean of the ratios of
medians, this one's time over the other's, and the pairs give its 95 % interval (Student's t on the logarithms). Writes
speed.jsonl: a row per case file and one for all of them, and speed_configurations.jsonl: the median ratio of each.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accel.bench import own_times
from accel.bench.compare import interval
from accel.errors import ConfigError, DataError
from accel.files import write_rows

Row = dict[str, Any]
Times = Mapping[str, Mapping[str, float]]

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = tuple(ROOT / "profiles" / "cases" / f"{name}.toml" for name in ("networks", "adaptive", "layer_table"))
PAIRS = 10


def run(out_dir: pathlib.Path, seed: int = 0, quick: bool = False, against: pathlib.Path | None = None) -> list[Row]:
    """Measure both checkouts and return the rows of speed.jsonl; `quick`: two pairs of processes.

    Raises:
        ConfigError: no checkout to compare with, or `against` is none.
        DataError: one of the two does not run the cases.
    """
    if against is None or not (against / "accel" / "__init__.py").is_file():
        raise ConfigError(f"bench speed needs --against FOLDER, another checkout of this project, built; got {against}")
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[Times, Times]] = []
    for turn in range(2 if quick else PAIRS):
        sides = (ROOT, against.resolve()) if turn % 2 else (against.resolve(), ROOT)
        found = {side: times_of(side, repeats=2 if quick else 3) for side in sides}
        pairs.append((found[ROOT], found[against.resolve()]))
        rows = summarize(pairs)
        for name, lines in (("speed", rows), ("speed_configurations", configurations(pairs))):
            write_rows(out_dir / f"{name}.jsonl", lines)
    for row in rows:
        print(f"{row['cases']}: {row['ratio']:.4f} of the other's time, {row['low']:.4f} to {row['high']:.4f} (95 %)")
    return rows


def times_of(checkout: pathlib.Path, repeats: int) -> Times:
    """What one process that runs in the checkout measures, by case file."""
    worker = pathlib.Path(own_times.__file__).read_bytes()
    command = [sys.executable, "-", str(repeats), *map(str, CASES)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, input=worker, cwd=checkout, env=environment, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(f"{checkout} does not run the cases: {' '.join(reason) or f'exit code {done.returncode}'}")
    found = json.loads(done.stdout)
    return {pathlib.Path(path).stem: times for path, times in found.items()}


def summarize(pairs: Sequence[tuple[Times, Times]]) -> list[Row]:
    """A row per case file and one for all: the geometric mean of the ratios, and its 95 % interval over the pairs."""
    files = list(pairs[0][0])
    return [_interval(name, [name], pairs) for name in files] + [_interval("all", files, pairs)]


def _interval(label: str, files: Iterable[str], pairs: Sequence[tuple[Times, Times]]) -> Row:
    logs = [
        statistics.fmean(math.log(ours[file][name] / theirs[file][name]) for file in files for name in ours[file])
        for ours, theirs in pairs
    ]
    count = sum(len(pairs[0][0][file]) for file in files)
    found = {name: round(value, 4) for name, value in zip(("ratio", "low", "high"), interval(logs))}
    return {"cases": label, "configurations": count, "pairs": len(pairs), **found}


def configurations(pairs: Sequence[tuple[Times, Times]]) -> list[Row]:
    """The median over the pairs of every configuration's ratio, the slowest first."""
    rows = [
        {
            "cases": file,
            "configuration": name,
            "ratio": round(statistics.median(ours[file][name] / theirs[file][name] for ours, theirs in pairs), 4),
            "ms": round(statistics.median(ours[file][name] for ours, _ in pairs), 4),
        }
        for file, times in pairs[0][0].items()
        for name in times
    ]
    return sorted(rows, key=lambda row: -row["ratio"])

"""Cases of kind `repeats`: sequence tasks learnt with a cell that may repeat its steps, and with fixed numbers of them.

A case: `recipe`, `set` (changes made to it, as of `accel train --set`), `folder` (of all runs, each in its own, where
an interrupted one is gone on with), `seeds` (how many), `task` and `method` (for the table). Rows, one a case, means
over the seeds: `accuracy`, the share of steps with all answers right, and `lowest` of the seeds; `repeats`, how often
the cell was applied; `ponder`, the ponder cost a step, of ACT N + R (the code of Fojo et al., arXiv 1803.08165, counts
one less); `correlation`, Spearman's of repeats and difficulty; `solved_at`, the first step of training at which the
mean accuracy of the last 100 batches reached `solved`, of the slowest seed.
"""

from __future__ import annotations

import csv
import pathlib
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.zoo.runs import read_recipe

SHOWN = ("case", "method", "accuracy", "lowest", "repeats", "ponder", "correlation", "solved_at", "steps", "seeds")
_BATCHES = 100  # 12,800 examples: a standard error of 0.12 % at 98 %


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    seeds = range(settings.seed, settings.seed + case["seeds"])
    runs = [trained(case, seed) for seed in seeds]
    means = {
        name: round(statistics.fmean(found[name] for _, found in runs), 4)
        for name in ("accuracy", "repeats", "ponder", "correlation")
        if all(name in found for _, found in runs)
    }
    solved = [solved_at(folder / "loss.csv", case["solved"]) for folder, _ in runs]
    yield {
        "task": case["task"],
        "method": case["method"],
        **means,
        "lowest": round(min(found["accuracy"] for _, found in runs), 4),
        "solved_at": None if None in solved else max(solved),
        "steps": read_recipe(pathlib.Path(case["recipe"]), case.get("set", []))["fit"]["steps"],
        "seeds": len(runs),
        "error": 0.0,
        "correct": True,
    }


def solved_at(log: pathlib.Path, share: float) -> int | None:
    """The first step at which the mean of the last batches' accuracies was at least `share`; None: never."""
    recent: list[float] = []
    with log.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            recent = [*recent[1 - _BATCHES :], float(row["accuracy"])]
            if len(recent) == _BATCHES and statistics.fmean(recent) >= share:
                return int(row["step"])
    return None

"""Trainings that benchmark cases need: run by `accel train`, gone on with where they were interrupted."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from accel.errors import DataError, WeightsError
from accel.zoo.runs import RECIPE_FILE, RESULTS_FILE, read_recipe, read_recipe_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
_KEPT = {"schema", "seed"}  # of the files of a run, beside the recipe and what it reaches
_FILLED = {"shape", "intensity"}  # of [vae], where the recipe leaves them to the data


def trained(case: Mapping[str, Any], seed: int) -> tuple[pathlib.Path, dict[str, float]]:
    """(the folder of the run, what it reaches) of the training of a case with one seed.

    It runs in a process of its own, unless its folder says that it has ended.

    Args:
        case: `name`; `recipe`, `set` (a list, as of `accel train --set`), `data` and `weights` (both may be missing);
            `folder` of all runs.

    Raises:
        WeightsError: another run is in the folder.
        DataError: the training failed.
    """
    recipe, changes = pathlib.Path(case["recipe"]), case.get("set", [])
    folder = run_folder(case, case["name"], seed)
    _check(folder, read_recipe(recipe, changes), seed)
    if not (folder / RESULTS_FILE).exists():
        given = [part for change in changes for part in ("--set", change)]
        given += [part for key in ("data", "weights") if key in case for part in (f"--{key}", str(case[key]))]
        own = ["--seed", str(seed), "-o", str(folder), "--quiet"]
        _run([sys.executable, "-m", "accel", "train", str(recipe), *given, *own], folder)
    found = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    return folder, {name: value for name, value in found.items() if name not in _KEPT}


def run_folder(case: Mapping[str, Any], name: str, seed: int) -> pathlib.Path:
    """Where the run of the case called `name` with one seed lies, or will, among those of `case`."""
    return pathlib.Path(case["folder"]) / re.sub(r"\W+", "_", name).strip("_") / f"seed_{seed}"


def recipe_of(case: Mapping[str, Any], name: str, seed: int) -> dict[str, Any]:
    """The recipe that a classifier's run, which has begun, left in its folder."""
    return read_recipe_file(run_folder(case, name, seed) / RECIPE_FILE, "model")


def _check(folder: pathlib.Path, recipe: Mapping[str, Any], seed: int) -> None:
    path = folder / RECIPE_FILE
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    own = {section: _given(table, recipe.get(section)) for section, table in found.items() if section not in _KEPT}
    if own != recipe or found["seed"] != seed:
        raise WeightsError(f"{folder} holds the run of another recipe or seed: remove it, or give another folder")


def _given(table: object, asked: object) -> object:
    """A section without what the run filled in from its data."""
    if not (isinstance(table, Mapping) and isinstance(asked, Mapping)):
        return table
    return {key: value for key, value in table.items() if key in asked or key not in _FILLED}


def _run(command: Sequence[str], folder: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(f"the training of {folder} failed: {' '.join(reason) or f'exit code {done.returncode}'}")

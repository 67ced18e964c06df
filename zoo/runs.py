"""What a run of `accel train` leaves in its folder, and the generative models that ship, trained by a recipe."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from accel import files
from accel.errors import ConfigError, WeightsError

RECIPE_FILE, WEIGHTS_FILE = "recipe.json", "model.safetensors"
RESULTS_FILE, SUMMARY_FILE = "results.json", "summary.json"
SECTIONS = {  # those that a recipe must have, the first of which says what is trained, and those that it may have
    "model": (("model", "data", "fit"), ("adaptive", "teacher")),
    "sequence": (("sequence", "cell", "adaptive", "data", "fit"), ()),
    "segmentation": (("segmentation", "adaptive", "data", "fit"), ()),
    "vae": (("vae", "data", "fit"), ("bound",)),
    "vaeac": (("vaeac", "data", "fit"), ()),
}
_SCHEMA = 1
_NAMED = "zoo:"
_FOLDER = pathlib.Path(__file__).parent


def recipe_path(name: str) -> pathlib.Path:
    return _FOLDER / "recipes" / f"{name}.toml"


def weights_path(name: str) -> pathlib.Path:
    return _FOLDER / "weights" / f"{name}.safetensors"


def read_recipe(path: pathlib.Path, changes: Sequence[str] = ()) -> dict:
    """The sections of a recipe, with `changes` (lines of TOML such as "adaptive.tau=0.02", or a section) made to them.

    Args:
        path: a file, or the name of one in zoo/recipes.

    Raises:
        ConfigError: unreadable, or not the sections of a recipe.
    """
    packaged = recipe_path(path.name)
    is_name = not path.exists() and path.name == str(path) and packaged.is_file()
    recipe = files.read_toml(packaged if is_name else path)
    for change in changes:
        given = files.parse_toml(change, f"--set {change}")
        if not all(isinstance(value, dict) for value in given.values()):
            raise ConfigError(f"--set {change} names no section: give SECTION.KEY=VALUE, such as adaptive.tau=0.02")
        whole = "." not in change.partition("=")[0]  # adaptive={kind="act"} gives the section anew
        recipe.update(
            {section: keys if whole else {**recipe.get(section, {}), **keys} for section, keys in given.items()}
        )
    needed, allowed = SECTIONS[trained_by(recipe)]
    if not set(needed) <= set(recipe) <= {*needed, *allowed}:
        raise ConfigError(
            f"the recipe {path} must have the sections {sorted(needed)}, and may have {sorted(allowed)}, "
            f"got {sorted(recipe)}"
        )
    return recipe


def trained_by(recipe: Mapping) -> str:
    """The section of a recipe that says what is trained."""
    return next((section for section in SECTIONS if section in recipe), "model")


def leave_recipe(folder: pathlib.Path, recipe: Mapping[str, Any], decisive: Sequence[str], seed: int) -> None:
    """Write the recipe of a run that begins or goes on in the folder.

    Args:
        decisive: the sections that make it the same run; the first is what `find_run` asks for.

    Raises:
        WeightsError: a run of another model, data set or seed is there.
    """
    path = folder / RECIPE_FILE
    if path.exists():
        found = read_recipe_file(path, decisive[0])
        differing = [key for key in decisive if found.get(key) != recipe.get(key)]
        if differing:
            raise WeightsError(
                f"{folder} holds a run whose [{differing[0]}] is another than this recipe's: give another folder"
            )
        if found.get("seed", seed) != seed:
            raise WeightsError(f"{folder} holds a run of seed {found['seed']}, not {seed}: give another folder")
    files.write_text(path, json.dumps({"schema": _SCHEMA, **recipe, "seed": seed}, indent=2) + "\n")


def packaged(spec: str, names: Sequence[str]) -> bool:
    """Whether `spec`, such as `zoo:vae_digits`, is one of those that ship."""
    return spec.removeprefix(_NAMED) in names


def find_run(spec: str, names: Sequence[str], section: str) -> tuple[dict[str, Any], pathlib.Path]:
    """(recipe, file of the weights, which may be missing) of a model that ships, or of the folder of a run.

    Args:
        names: of those that ship.
        section: of the recipe, which describes the model.

    Raises:
        WeightsError: the run is damaged, or of another kind of model.
    """
    if packaged(spec, names):
        name = spec.removeprefix(_NAMED)
        return files.read_toml(recipe_path(name)), weights_path(name)
    folder = pathlib.Path(spec)
    return read_recipe_file(folder / RECIPE_FILE, section), folder / WEIGHTS_FILE


def finished(weights: pathlib.Path) -> pathlib.Path:
    """The same path.

    Raises:
        WeightsError: there is no such file.
    """
    if not weights.is_file():
        raise WeightsError(
            f"{weights.parent} holds no {WEIGHTS_FILE}: its training has not ended, run accel train again"
        )
    return weights


def read_recipe_file(path: pathlib.Path, section: str) -> dict[str, Any]:
    """What a run left of its recipe, which has this section and [data].

    Raises:
        WeightsError: it is damaged, or of another version or kind of model.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = record.pop("schema"), record["data"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}): train the model again") from error
    if schema != _SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, this version reads {_SCHEMA}: train the model again")
    if section not in record:
        raise WeightsError(f"{path} describes no [{section}]: that run trained another kind of model")
    return record


def write_results(folder: pathlib.Path, seed: int, results: Mapping[str, float]) -> None:
    """Write what a trained model reaches."""
    files.write_text(folder / RESULTS_FILE, json.dumps({"schema": _SCHEMA, "seed": seed, **results}) + "\n")


def write_summary(folder: pathlib.Path, results: Mapping[int, Mapping[str, float]]) -> str:
    """Write mean and deviation of what the seeds reach; returns them as a line for every quantity.

    The deviation is that of a sample; None of a single seed.
    """
    names = list(next(iter(results.values())))
    record: dict[str, Any] = {"schema": _SCHEMA, "seeds": list(results)}
    lines = []
    for name in names:
        values = [found[name] for found in results.values()]
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        record[name] = {"mean": mean, "deviation": spread, "values": values}
        told = "" if spread is None else f", deviation {spread:.4f}"
        lines.append(f"{name} over seeds {', '.join(map(str, results))}: mean {mean:.4f}{told}")
    files.write_text(folder / SUMMARY_FILE, json.dumps(record, indent=2) + "\n")
    return "\n".join(lines)

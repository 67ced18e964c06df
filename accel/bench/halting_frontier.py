"""Cases of kind `halting_frontier`: adaptive networks trained alike at several budgets, what they and others reach.

A case is a network: `name`, `recipe` and `set` (changes made to it, as of `accel train --set`), `weights` to start
from, `data`, `seeds` (how many), `folder` of all runs, `model` (the dense network, whose MACs are 1) and `batch`. Each
seed is trained in a folder of its own, where an interrupted training is gone on with, and is judged on the pictures
that the recipe holds out of training and on all test pictures, once: its verdicts on each stay in the folder. The row
has means over the seeds: accuracies, the executed share of the dense network's MACs, and of PACT by how many points
relaxed and sampled evaluation lie above the thresholded one. With `noise` (a number of estimates) it says how noisy
PACT's gradient is before and after training, on the first pictures of the test set: `accel.bench.halting_noise`.

A case with `of` and `against` (names of networks) compares them picture by picture, and one with `timed` asks the
clock: see `accel.bench.halting_verdicts`. With --output the networks are drawn, accuracy over MACs.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import accel
from accel.bench import frontier, halting_verdicts
from accel.bench.halting_noise import gradient_noise
from accel.bench.runner import Row, Settings
from accel.bench.trainings import recipe_of, run_folder, trained
from accel.files import write_tensors
from accel.zoo.datasets import LabelledPictures, load_pictures
from accel.zoo.evaluation import verdicts
from accel.zoo.registry import get_model, preprocess
from accel.zoo.runs import WEIGHTS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (
    *("network", "method", "seeds", "accuracy", "deviation", "held_out", "test", "macs_share", "relaxed", "sampled"),
    *("difference", "low", "high", "beyond", "time_share", "over_shallower"),
    *("variance_start", "signal_start", "variance_end", "signal_end"),
)
MODES = ("relaxed", "sampled")  # of PACT, beside the thresholded one


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    if "of" in case:
        yield from halting_verdicts.differences(case, settings)
    elif "timed" in case:
        networks = {name: network_of(case, name, settings.seed) for name in case["timed"]}
        yield from halting_verdicts.times(case, networks, _pictures(case, case["timed"][0], settings.seed)[0], settings)
    else:
        yield _row(case, settings)


def draw(rows: Sequence[Row]) -> Figure:
    """The frontier of the networks' rows, in one panel."""
    return frontier.draw([{**row, "case": "held-out and test pictures"} for row in rows if "macs_share" in row])


def _row(case: Mapping[str, Any], settings: Settings) -> Row:
    seeds = range(settings.seed, settings.seed + case["seeds"])
    found = [judged(case, seed) for seed in seeds]
    macs, dense = torch.stack([one["macs"] for one in found]).double(), int(found[0]["dense_macs"])
    quantiles = torch.quantile(macs.flatten() / dense, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    accuracies = [_share(one["right"]) for one in found]
    held, error = int(found[0]["held_out"]), max(float(one["error"]) for one in found)
    gaps = {mode: [_share(one[mode]) - _share(one["right"]) for one in found] for mode in MODES if mode in found[0]}
    return {
        "network": case["name"],
        "method": halting_verdicts.method_of(case, case["name"], settings.seed),
        "seeds": len(found),
        "accuracy": round(statistics.fmean(accuracies), 5),
        "deviation": round(statistics.stdev(accuracies), 5) if len(accuracies) > 1 else None,
        "held_out": round(statistics.fmean(_share(one["right"][:held]) for one in found), 5) if held else None,
        "test": round(statistics.fmean(_share(one["right"][held:]) for one in found), 5),
        "pictures": macs.shape[1],
        "macs": round(float(macs.mean())),
        "dense_macs": dense,
        "macs_share": round(float(macs.mean()) / dense, 4),
        **{f"share_{name}": round(value, 4) for name, value in zip(("5%", "50%", "95%"), quantiles)},
        **{mode: round(100 * statistics.fmean(values), 3) for mode, values in gaps.items()},
        **(_noise(case, settings.seed) if "noise" in case else {}),
        "error": error,
        "correct": error <= frontier.TOLERANCE,
    }


def _noise(case: Mapping[str, Any], seed: int) -> dict[str, float]:
    start = {**case, "name": f"{case['name']}, start", "set": [*case["set"], "fit.steps=0"]}
    trained(start, seed)
    pictures = load_pictures(pathlib.Path(case["data"]), "test")
    x, labels = preprocess(case["model"], pictures.pictures[: case["batch"]]), pictures.labels[: case["batch"]]
    found = {}
    for when, one in (("start", start), ("end", case)):
        noise = gradient_noise(network_of(one, one["name"], seed), x, labels, case["noise"], seed)
        found |= {f"{name}_{when}": value for name, value in noise.items()}
    return found


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def judged(case: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The verdicts on the network of a case, which is trained and judged first where its folder does not hold them.

    Returns:
        `right` uint8 [N] (thresholded), of PACT `relaxed` and `sampled` alike, `macs` int64 [N] executed, and scalars:
        `dense_macs`, `held_out` (that many pictures come first), `error` (sparse against dense execution).
    """
    trained(case, seed)
    found = halting_verdicts.verdicts_on(case, case["name"], seed)
    if found is None:
        found = _judge(case, seed)
        write_tensors(run_folder(case, case["name"], seed) / halting_verdicts.FILE, found)
    return found


def network_of(case: Mapping[str, Any], name: str, seed: int) -> nn.Module:
    """The network that the case called `name` trained."""
    recipe, folder = recipe_of(case, name, seed), run_folder(case, name, seed)
    return frontier.network(recipe["model"]["name"], str(folder / WEIGHTS_FILE), recipe.get("adaptive"))


def _pictures(case: Mapping[str, Any], name: str, seed: int) -> tuple[LabelledPictures, int]:
    """(the pictures held out of that training, then those for testing; how many are the former)."""
    train, test = (load_pictures(pathlib.Path(case["data"]), split) for split in ("train", "test"))
    held = recipe_of(case, name, seed)["data"].get("held_out", 0)
    return train.held_out(held)[1].and_then(test), held


def _judge(case: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    network, recipe = network_of(case, case["name"], seed), recipe_of(case, case["name"], seed)
    (pictures, held), prepare = _pictures(case, case["name"], seed), functools.partial(preprocess, case["model"])
    adaptive = recipe.get("adaptive")
    plain = accel.revert_model(network) if adaptive else None
    found = verdicts(network, pictures, prepare, case["batch"], dense=plain)
    tensors = {"right": found.right.to(torch.uint8), "macs": found.macs}
    for mode in MODES if adaptive and adaptive["kind"] == "pact" else ():
        torch.manual_seed(seed)
        with accel.evaluate_as(network, mode):
            tensors[mode] = verdicts(network, pictures, prepare, case["batch"], dense=plain).right.to(torch.uint8)
    x = prepare(pictures.pictures[: case["batch"]])
    counts = {"dense_macs": accel.count_macs(get_model(case["model"], "none"), x[:1]), "held_out": held}
    tensors |= {key: torch.tensor(value, dtype=torch.int64) for key, value in counts.items()}
    error = frontier.sparse_error(network, x) if adaptive else 0.0
    return {**tensors, "error": torch.tensor(error, dtype=torch.float64)}

"""Cases of kind `search`: what `accel.search` finds in its minutes, beside the best uniform rule that is as fast.

A case: `model` and `weights` (none: those it brings), `searches` (pairs [speed-up, minutes], longer ones first),
`precision` (fp32), `batch`, `calibrate` (pictures to search and fit on; the others are judged), and one of `images` (a
folder) with `size` [H, W], `data` (a data set without its labels, the first `judge` test pictures) and `shapes` (so
many pictures drawn, with `size`). Paths are relative to the working directory.

Rows, one a search: the minutes asked for and `spent`; `speedup`, `loss` and `drop` of the network that it found, timed
again and judged on pictures that it did not see, as `accel.search` judges them; the `uniform` rule of the least loss
among those at least as fast, to 2 % (timed as fitted on three batches); `relative`, the loss over that rule's; and
`longer`, the loss over that of the first search for the same speed-up, where it is not that itself. `unmet` is what the
search says where nothing is so fast.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings
from accel.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.config import Rules
    from accel.greedy.losses import Judge
    from accel.greedy.trace import FoundRules

SHOWN = (
    "case",
    "wanted",
    "minutes",
    "spent",
    "speedup",
    "loss",
    "drop",
    "start",
    "uniform",
    "relative",
    "longer",
    "unmet",
)
_AS_FAST = 0.98  # of our speed-up that makes a uniform rule as fast: two timings differ by as much


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import accel
    from accel.zoo.registry import get_model

    dense = get_model(case["model"], weights=case["weights"]) if "weights" in case else get_model(case["model"])
    pictures = _pictures(case, settings.seed)
    known, judged = pictures[: case["calibrate"]], pictures[case["calibrate"] :]
    example, calibration = known[: case["batch"]], list(known.split(case["batch"]))
    judges = _judges(dense, judged.split(case["batch"]))
    precision = case.get("precision", "fp32")
    rules = _uniform_rules(dense, example, precision)

    def convert(given: Rules, batches: Sequence[Tensor]) -> nn.Module:
        return accel.convert_model(dense, given, example_inputs=example, calibration=batches)

    @functools.cache
    def uniform_loss(name: str) -> float:
        return _quality(convert(rules[name], calibration), judges)[0]

    uniform = {name: convert(given, calibration[:3]) for name, given in rules.items()}  # as fast, whatever they fit
    longest: dict[float, float] = {}
    for wanted, minutes in case["searches"]:
        asked = {"speedup": wanted, "minutes": minutes, "precision": precision, "seed": settings.seed}
        try:
            found, spent = _searched(dense, example, calibration, asked)
        except ConversionError as error:
            yield {"wanted": wanted, "minutes": minutes, "unmet": str(error), "error": 0.0, "correct": True}
            continue
        network = convert(found, calibration)
        speeds = _speedups(dense, {"ours": network, **uniform}, example, settings.repeats)
        loss, drop = _quality(network, judges)
        rivals = [name for name in uniform if speeds[name] >= _AS_FAST * speeds["ours"]]
        best = min(rivals, key=uniform_loss, default=None)
        longer = {"longer": round(loss / longest[wanted], 3)} if wanted in longest else {}
        longest.setdefault(wanted, loss)
        yield {
            "wanted": wanted,
            "minutes": minutes,
            "spent": round(spent, 3),
            "overrun": round(spent / minutes, 3),
            "speedup": round(speeds["ours"], 3),
            **{"loss": loss, "drop": drop},
            "start": found.chosen.origin,
            "uniform": best,
            **({"uniform_speedup": round(speeds[best], 3), "uniform_loss": uniform_loss(best)} if best else {}),
            **({"relative": round(loss / uniform_loss(best), 4)} if best else {}),
            **longer,
            "tried": len(found.tried),
            "error": 0.0,
            "correct": True,
        }


def _searched(
    dense: nn.Module, example: Tensor, calibration: Sequence[Tensor], asked: Mapping[str, Any]
) -> tuple[FoundRules, float]:
    """(what a search found, the minutes it took)."""
    import accel

    begin = time.monotonic()
    found = accel.search(dense, example_inputs=example, calibration=calibration, **asked)
    return found, (time.monotonic() - begin) / 60


def _pictures(case: Mapping[str, Any], seed: int) -> Tensor:
    import torch

    from accel.zoo.datasets import load_pictures
    from accel.zoo.picture_files import read_folder
    from accel.zoo.registry import preprocess
    from accel.zoo.shapes import draw_shapes, normalise

    if "shapes" in case:
        return normalise(draw_shapes(case["shapes"], case["size"][0], torch.Generator().manual_seed(seed)).images)
    if "images" in case:
        return preprocess(case["model"], read_folder(pathlib.Path(case["images"]), tuple(case["size"])))
    return preprocess(case["model"], load_pictures(pathlib.Path(case["data"]), "test").pictures[: case["judge"]])


def _uniform_rules(dense: nn.Module, example: Tensor, precision: str) -> dict[str, Rules]:
    """Every fitted lattice everywhere; with refitted weights with the first and the last layer whole too."""
    from accel.config import Rules
    from accel.convert import convolutions
    from accel.greedy.candidates import default_candidates, label_of

    first, *_, last = convolutions(dense)
    candidates = [c for c in default_candidates(precision=precision) if c.rank is None and not c.shift]
    whole = next((config for config in candidates if config.in_bytes and config.keep == 1), None)
    found = {}
    for config in candidates:
        if config.filling.needs_data:
            found[label_of(config)] = Rules({"*": config})
        if config.effort > 1:
            found[f"{label_of(config)}, first and last dense"] = Rules({first: whole, last: whole, "*": config})
    return found


def _judges(dense: nn.Module, batches: Iterable[Tensor]) -> list[tuple[Tensor, Judge]]:
    import torch

    from accel.greedy.losses import Judge
    from accel.inputs import Batch

    with torch.inference_mode():
        return [(x, Judge(dense(x), Batch((x,)))) for x in batches]


def _quality(network: nn.Module, judges: Iterable[tuple[Tensor, Judge]]) -> tuple[float, float]:
    """(loss, drop), as `Judge` has them."""
    import torch

    with torch.inference_mode():
        parts = [(len(x), *judge.loss_and_drop(network(x))) for x, judge in judges]
    count, loss, drop = (sum(values) for values in zip(*((n, n * loss, n * drop) for n, loss, drop in parts)))
    return loss / count, drop / count


def _speedups(dense: nn.Module, networks: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Against the faster dense form, each beside these alone, as they run in use: of many networks in turn none finds
    its weights in the caches."""
    import torch

    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, FORMATS, fastest, in_format

    forms, found = {name: in_format(dense, x, form) for name, form in FORMATS.items()}, {}
    for name, network in networks.items():
        with torch.inference_mode():
            timing = compare({**forms, "converted": in_format(network, x, torch.channels_last)}, repeats)
        found[name] = ratio(timing[fastest(timing, DENSE)], timing["converted"]).median
    return found

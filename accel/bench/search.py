"""Cases of kind `search`: what `accel.search` finds in its minutes, beside the best uniform rule that is as fast.

A case: `model` and `weights` (none: those it brings), `searches` (pairs [speed-up, minutes], longer ones first),
`batch`, `calibrate` (pictures to search and fit on; the others are judged), and one of `images` (a folder) with `size`
[H, W], `data` (a data set without its labels, the first `judge` test pictures) and `shapes` (so many pictures drawn,
with `size`). Paths are relative to the working directory.

Rows, one a search: the minutes asked for and `spent`; `speedup` and `loss` of the network that it found, timed again
and judged on pictures that it did not see, as `accel.search` judges them; the `uniform` rule of the least loss among
those at least as fast, to 2 %; `relative`, the loss over that rule's; and `longer`, the loss over that of the first
search for the same speed-up, where it is not that itself.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.config import Rules

SHOWN = ("case", "wanted", "minutes", "spent", "speedup", "loss", "start", "uniform", "relative", "longer")
_AS_FAST = 0.98  # of our speed-up that makes a uniform rule as fast: two timings differ by as much


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    import accel
    from accel.zoo.registry import get_model

    dense = get_model(case["model"], weights=case["weights"]) if "weights" in case else get_model(case["model"])
    pictures = _pictures(case, settings.seed)
    known, judged = pictures[: case["calibrate"]], pictures[case["calibrate"] :]
    example, calibration = known[: case["batch"]], list(known.split(case["batch"]))

    def convert(rules: Rules) -> nn.Module:
        return accel.convert_model(dense, rules, example_inputs=example, calibration=calibration)

    uniform = {name: convert(rules) for name, rules in _uniform_rules(dense, example).items()}
    losses = {name: _loss(dense, network, judged, case["batch"]) for name, network in uniform.items()}
    longest: dict[float, float] = {}
    for wanted, minutes in case["searches"]:
        begin = time.monotonic()
        found = accel.search(
            dense,
            example_inputs=example,
            calibration=calibration,
            speedup=wanted,
            minutes=minutes,
            seed=settings.seed,
        )
        spent = (time.monotonic() - begin) / 60
        network = convert(found)
        loss = _loss(dense, network, judged, case["batch"])
        with torch.inference_mode():
            speeds = _speedups(dense, {"ours": network, **uniform}, example, settings.repeats)
        rivals = [name for name in uniform if speeds[name] >= _AS_FAST * speeds["ours"]]
        best = min(rivals, key=losses.__getitem__, default=None)
        longer = {"longer": round(loss / longest[wanted], 3)} if wanted in longest else {}
        longest.setdefault(wanted, loss)
        yield {
            "wanted": wanted,
            "minutes": minutes,
            "spent": round(spent, 3),
            "overrun": round(spent / minutes, 3),
            "speedup": round(speeds["ours"], 3),
            "loss": loss,
            "start": found.chosen.origin,
            "uniform": best,
            **({"uniform_speedup": round(speeds[best], 3), "uniform_loss": losses[best]} if best else {}),
            **({"relative": round(loss / losses[best], 4)} if best else {}),
            **longer,
            "tried": len(found.tried),
            "error": 0.0,
            "correct": True,
        }


def _pictures(case: Mapping[str, Any], seed: int) -> Tensor:
    import torch

    from accel.zoo.datasets import load_pictures
    from accel.zoo.picture_files import find_images, read_picture
    from accel.zoo.registry import preprocess
    from accel.zoo.shapes import draw_shapes, normalise

    if "shapes" in case:
        return normalise(draw_shapes(case["shapes"], case["size"][0], torch.Generator().manual_seed(seed)).images)
    if "images" in case:
        paths = find_images(pathlib.Path(case["images"]))
        return preprocess(case["model"], torch.stack([read_picture(path, tuple(case["size"])) for path in paths]))
    return preprocess(case["model"], load_pictures(pathlib.Path(case["data"]), "test").pictures[: case["judge"]])


def _uniform_rules(dense: nn.Module, example: Tensor) -> dict[str, Rules]:
    """Every fitted candidate everywhere; with refitted weights with the first and the last layer left dense too."""
    from accel.config import Rules
    from accel.convert import convolutions
    from accel.greedy.candidates import default_candidates, label_of

    first, *_, last = convolutions(dense)
    found = {}
    for config in default_candidates():
        if config.filling.needs_data:
            found[label_of(config)] = Rules({"*": config})
        if config.effort > 1:
            found[f"{label_of(config)}, first and last dense"] = Rules({first: None, last: None, "*": config})
    return found


def _loss(dense: nn.Module, network: nn.Module, pictures: Tensor, batch: int) -> float:
    import torch

    from accel.greedy.losses import Judge
    from accel.inputs import Batch

    with torch.inference_mode():
        parts = [len(part) * Judge(dense(part), Batch((part,))).loss(network(part)) for part in pictures.split(batch)]
    return sum(parts) / len(pictures)


def _speedups(dense: nn.Module, networks: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Against the faster dense form, all of them taking turns."""
    import torch

    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, FORMATS, fastest, in_format

    sides = {name: in_format(dense, x, form) for name, form in FORMATS.items()}
    sides |= {name: in_format(network, x, torch.channels_last) for name, network in networks.items()}
    timing = compare(sides, repeats)
    best = timing[fastest(timing, DENSE)]
    return {name: ratio(best, timing[name]).median for name in networks}

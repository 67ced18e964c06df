"""Cases of kind `shape_fcn`: an FCN whose trunk is adaptive, trained on drawn pictures: does it look at the objects?

A case: `recipe` and `set` (changes made to it, as of `accel train --set`), `folder` of all runs, each in its own, where
an interrupted training is gone on with, `seeds` (how many), `batch` and `compiled` (of the clock). Rows, one a seed:
what the training reached (`correlation` of ponder maps with the objects, Spearman's, mean of held-out pictures, beside
`untrained` heads; `accuracy` of the pixels; `macs_share`), `time_share` of the dense network in its fastest form, and
`over_limit`, by how much that lies over 1.15 times the share of the MACs plus 0.1.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import accel
from accel.bench import frontier
from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.config import VERSION, config_from_dict
from accel.nn.adaptive import dense_execution
from accel.profiling.distances import relative_norm
from accel.zoo.registry import load_weights
from accel.zoo.runs import WEIGHTS_FILE, read_recipe
from accel.zoo.shape_fcn import adaptive_fcn, inputs
from accel.zoo.shapes import draw_shapes

SHOWN = ("case", "seed", "correlation", "untrained", "accuracy", "macs_share", "time_share", "over_limit", "form")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    recipe = read_recipe(pathlib.Path(case["recipe"]), case.get("set", []))
    for seed in range(settings.seed, settings.seed + case["seeds"]):
        folder, found = trained(case, seed)
        net = adaptive_fcn(config_from_dict({"version": VERSION, **recipe["adaptive"]}))
        load_weights(net, folder / WEIGHTS_FILE).eval()
        x = inputs(draw_shapes(case["batch"], recipe["segmentation"]["size"], torch.Generator().manual_seed(seed)))
        with torch.inference_mode():
            out = net(x)
            with dense_execution(net):
                error = relative_norm(out.logits["out"], net(x).logits["out"])
        dense = accel.revert_model(net)
        clock = frontier.time_shares(dense, {"net": net}, {"net"}, x, case["compiled"], settings.repeats)["net"]
        limit = 1.15 * found["macs_share"] + 0.1
        yield {
            "seed": seed,
            **{name: round(value, 4) for name, value in found.items()},
            **clock,
            "over_limit": round(clock["time_share"] - limit, 4),
            "error": error,
            "correct": error <= frontier.TOLERANCE,
        }

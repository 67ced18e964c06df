"""How adaptive networks compare, picture by picture and by the clock: the last cases of kind `halting_frontier`.

`of` and `against` name networks. One of `of` is set beside the frontier of `against` at its own executed MACs: the
frontier's verdict on a picture is that of the two networks whose MACs lie around them, weighed by the distance; beyond
its ends the outermost two are extrapolated, and `beyond` says by what share of the dense network's MACs. Rows, one a
network and one for all: `difference`, in points of accuracy, mean of pictures and of the seeds that all have; `low` and
`high`, its 95 % interval, of a bootstrap that draws pictures and seeds again.

`timed` names networks, whose first seeds take turns with the dense network, each in its fastest form: `time_share`, and
of the adaptive ones `over_shallower`, the points that they lie above the shallower ones at the same time, between those
around (beyond their ends, the outermost).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accel.bench import frontier
from accel.bench.runner import Row, Settings
from accel.bench.trainings import recipe_of, run_folder
from accel.errors import ConfigError
from accel.zoo.datasets import LabelledPictures
from accel.zoo.registry import get_model, preprocess

FILE = "verdicts.safetensors"
PLAIN = ("dense", "shallower")
_DRAWS = 2000


def verdicts_on(case: Mapping[str, Any], name: str, seed: int) -> dict[str, Tensor] | None:
    """What was found of the network called `name`, see `halting_frontier.judged`; None where nothing was yet."""
    path = run_folder(case, name, seed) / FILE
    return load_file(path) if path.exists() else None


def method_of(case: Mapping[str, Any], name: str, seed: int) -> str:
    """pact, sact, act, dense or shallower."""
    recipe = recipe_of(case, name, seed)
    plain = "dense" if recipe["model"]["name"] == case["model"] else "shallower"
    return recipe["adaptive"]["kind"] if "adaptive" in recipe else plain


def differences(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    if len(case["against"]) < 2:
        raise ConfigError(f"case {case['name']!r}: a frontier is of two networks or more, got {case['against']}")
    seeds = _judged_seeds(case, [*case["of"], *case["against"]], settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    everything = []
    for name in case["of"]:
        pairs = [
            difference(verdicts_on(case, name, seed), [verdicts_on(case, rival, seed) for rival in case["against"]])
            for seed in seeds
        ]
        everything.append(torch.stack([found for found, _ in pairs]))
        beyond = max(distance for _, distance in pairs)
        yield {"network": name, **_summary(everything[-1], generator), "beyond": round(beyond, 4)}
    yield {"network": "all", **_summary(torch.stack(everything).mean(0), generator)}


def _judged_seeds(case: Mapping[str, Any], names: Sequence[str], first: int) -> list[int]:
    def missing(seed: int) -> list[str]:
        return [name for name in names if not (run_folder(case, name, seed) / FILE).exists()]

    seeds = range(first, first + case["seeds"])
    found = [seed for seed in seeds if not missing(seed)]
    if not found:
        raise ConfigError(f"case {case['name']!r} compares what was not judged yet: {', '.join(missing(first))}")
    return found


def difference(one: Mapping[str, Tensor], rivals: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, float]:
    """(verdicts of a network less those of the rivals' frontier at its MACs, float64 [N]; how far beyond it)."""
    points = sorted(((_share(rival), rival["right"].double()) for rival in rivals), key=lambda point: point[0])
    share, shares = _share(one), [share for share, _ in points]
    if len(set(shares)) < len(shares):
        raise ConfigError(f"two networks of a frontier execute the same share of the MACs, of {shares}: leave one out")
    beyond = max(0.0, shares[0] - share, share - shares[-1])
    return one["right"].double() - frontier_at(share, points), beyond


def frontier_at(share: float, points: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The verdicts [N] of a frontier at a share of the MACs.

    Args:
        points: (share, verdicts [N]) of two networks or more, by rising share.
    """
    upper = min(max(bisect.bisect([place for place, _ in points], share), 1), len(points) - 1)
    (low, before), (high, after) = points[upper - 1], points[upper]
    return before + (share - low) / (high - low) * (after - before)


def _share(found: Mapping[str, Tensor]) -> float:
    return float(found["macs"].double().mean()) / float(found["dense_macs"])


def _summary(found: Tensor, generator: torch.Generator) -> Row:
    """Of differences [seeds, N]."""
    low, high = bootstrap(found, generator)
    values = {"difference": float(found.mean()), "low": low, "high": high}
    sizes = {"seeds": found.shape[0], "pictures": found.shape[1]}
    return {**{key: round(100 * value, 3) for key, value in values.items()}, **sizes, "error": 0.0, "correct": True}


def bootstrap(found: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % interval of the mean of differences [seeds, N], both drawn again."""
    seeds, count = found.shape
    means = torch.empty(_DRAWS, dtype=torch.float64)
    for k in range(_DRAWS):
        chosen = found[torch.randint(seeds, (seeds,), generator=generator)].mean(0)
        means[k] = chosen[torch.randint(count, (count,), generator=generator)].mean()
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def times(
    case: Mapping[str, Any], networks: Mapping[str, nn.Module], pictures: LabelledPictures, settings: Settings
) -> Iterator[Row]:
    """Rows of the trained networks, by name, on the first of these pictures."""
    methods = {name: method_of(case, name, settings.seed) for name in networks}
    found = {name: verdicts_on(case, name, settings.seed) for name in networks}
    if unjudged := [name for name, one in found.items() if one is None]:
        raise ConfigError(f"case {case['name']!r} times what was not judged yet: {', '.join(unjudged)}")
    x = preprocess(case["model"], pictures.pictures[: case["batch"]])
    sparse = {name for name, method in methods.items() if method not in PLAIN}
    rivals = {name: network for name, network in networks.items() if methods[name] != "dense"}
    dense = get_model(case["model"], weights="none")
    clock = frontier.time_shares(dense, rivals, sparse, x, case["compiled"], settings.repeats)
    points = {name: 100 * float(one["right"].double().mean()) for name, one in found.items()}
    plain = sorted((clock[name]["time_share"], points[name]) for name in rivals if name not in sparse)
    for name in rivals:
        row = {"network": name, "method": methods[name], "batch": len(x), **clock[name]}
        if name in sparse and plain:
            over = points[name] - np.interp(row["time_share"], *zip(*plain))
            row["over_shallower"] = round(float(over), 3)
        yield {**row, "error": 0.0, "correct": True}

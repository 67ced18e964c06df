"""Cases of kind `vae_robust`: VAEs trained on pictures with noise among them, by the robust bound and by its rivals.

A case: `data` (called `pictures_of`), `noise` examples per picture, `width` of both networks' hidden layer, and which
of METHODS. Those are trained alike by `recipe` and `set`, on `clean` pictures a step with the noise beside them, for
`seeds` (how many), each in a folder of its own in `folder`, where an interrupted training is gone on with. `log_alphas`
of the robust bound and `betas` of the beta-ELBO are tried with the first seed; the others take what is best without
clean data: by the trimmed ELBO of `count` other pictures, contaminated as the training set is.

Rows, one a method: `nll`, nats of `count` clean test pictures by `samples` importance samples, as a mean over the
seeds (`nlls`); `gain`, how much lower it is than the ELBO's, with its 95 % interval over the seeds (Student's t of what
each gains); of the robust bound `behind`, how much higher it is than the best rival's; `auroc` of the evidence as an
outlier score on `count` pictures of the training set with their noise, the worst of the seeds. With --output the gains
are drawn, over noise and over width.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.bench.vae_runs import evidence
from accel.errors import ConfigError
from accel.vae import VAE, auroc, choose_log_alpha
from accel.vae.pictures import BitPictures
from accel.zoo.grey_pictures import load_grey
from accel.zoo.runs import RECIPE_FILE, WEIGHTS_FILE, read_recipe_file
from accel.zoo.vaes import load_vae

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS: Mapping[str, tuple[str | None, Sequence[str]]] = {  # the key of a case whose values are tried, what is set
    "ELBO": (None, ['bound={kind="elbo"}']),
    "robust": ("log_alphas", ["bound.log_alpha=VALUE"]),
    "two components": (None, ['bound={kind="elbo"}', 'vae.likelihood="two_component"']),
    "beta-ELBO": ("betas", ['bound={kind="beta",beta=VALUE}']),
}
SHOWN = ("case", "method", "value", "nll", "gain", "gain_low", "gain_high", "behind", "auroc")
_SURE = 0.9  # of the pictures count as surely no noise
_OUTLIER_SAMPLES = 50  # as of VAE.outlier_score


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    seeds = range(settings.seed, settings.seed + case["seeds"])
    found = {method: _reached(case, method, seeds) for method in case["methods"]}
    rivals = [row["nll"] for method, row in found.items() if method not in ("ELBO", "robust")]
    for method, row in found.items():  # after all trainings: an interrupted case leaves no half of its rows
        if method != "ELBO":
            row |= _gain([other - own for own, other in zip(row["nlls"], found["ELBO"]["nlls"])])
        if method == "robust" and rivals:
            row["behind"] = round(row["nll"] - min(rivals), 3)
        yield row


def draw(rows: Sequence[Row]) -> Figure:
    """The gains over the ELBO: of every method over the noise, and of the robust bound over the width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    gains = [row for row in rows if "gain" in row]
    widths = [row["width"] for row in gains]
    usual = max(widths, key=widths.count, default=None)
    _lines(left, [row for row in gains if row["width"] == usual], "noise")
    most = max((row["noise"] for row in gains), default=None)
    _lines(right, [row for row in gains if row["method"] == "robust" and row["noise"] == most], "width")
    left.set(xlabel="noise examples per picture", ylabel="nats gained over the ELBO, 95 % over seeds")
    right.set(xlabel=f"width of the networks, {most:g} noise examples per picture", xscale="log")
    return figure


def _lines(panel: Axes, rows: Sequence[Row], key: str) -> None:
    for name in sorted({(row["pictures_of"], row["method"]) for row in rows}):
        points = [row for row in rows if (row["pictures_of"], row["method"]) == name]
        points.sort(key=lambda row: row[key])
        gains = [row["gain"] for row in points]
        spread = [[gain - row["gain_low"] for gain, row in zip(gains, points)]] * 2
        panel.errorbar([row[key] for row in points], gains, spread, marker="o", capsize=3, label=", ".join(name))
    panel.axhline(0, color="black", linewidth=0.8)
    panel.grid(alpha=0.3)
    if rows:
        panel.legend(fontsize=8)


def _reached(case: Mapping[str, Any], method: str, seeds: Sequence[int]) -> Row:
    key, _ = METHODS[method]
    values = case[key] if key else [None]
    value, trimmed = _chosen(case, method, values, seeds[0]) if len(values) > 1 else (values[0], {})
    vaes = [_trained(case, method, value, seed) for seed in seeds]
    x = _test_pictures(case["data"], case["count"])
    nlls = [-float(evidence(vae, x, case["samples"], seed).mean()) for vae, seed in zip(vaes, seeds)]
    row = {
        "pictures_of": case["pictures_of"],
        "noise": case["noise"],
        "width": case["width"],
        "method": method,
        "value": value,
        "trimmed": {str(tried): round(score, 3) for tried, score in trimmed.items()},
        "seeds": len(seeds),
        "nll": round(statistics.fmean(nlls), 3),
        "nlls": [round(nll, 3) for nll in nlls],
        "error": 0.0,
        "correct": all(map(math.isfinite, nlls)),
    }
    if case["noise"]:
        row["auroc"] = round(min(_auroc(case, vae, seed) for vae, seed in zip(vaes, seeds)), 5)
    return row


def _gain(gains: Sequence[float]) -> Row:
    """The mean of what each seed gains, with its 95 % interval."""
    from scipy.stats import t

    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return {"gain": round(mean, 3)}
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return {"gain": round(mean, 3), "gain_low": round(mean - half, 3), "gain_high": round(mean + half, 3)}


def _trained(case: Mapping[str, Any], method: str, value: float | None, seed: int) -> VAE:
    """The VAE of one training, which runs where its folder does not hold it."""
    size = round(case["clean"] * (1 + case["noise"]))
    own = [f"vae.hidden=[{case['width']}]", f"data.batch={size}", f"data.noise={float(case['noise'])}"]
    own += [change.replace("VALUE", str(value)) for change in METHODS[method][1]]
    name = f"{case['name']} {method}" + ("" if value is None else f" {value}")
    folder, _ = trained({**case, "name": name, "set": [*case["set"], *own]}, seed)
    return load_vae(read_recipe_file(folder / RECIPE_FILE, "vae")["vae"], folder / WEIGHTS_FILE)


def _chosen(
    case: Mapping[str, Any], method: str, values: Sequence[float], seed: int
) -> tuple[float, dict[float, float]]:
    """(the value whose trimmed ELBO is the highest, those of all) on pictures that are judged nowhere, and noise."""
    fits = {value: _trained(case, method, value, seed) for value in values}
    others = BitPictures(_shuffled(case["data"], "test")[-case["count"] :], "static", case["noise"])
    x = others.take(torch.arange(len(others), device="cpu"))
    generator = torch.Generator().manual_seed(seed)
    return choose_log_alpha(fits, x, _SURE / (1 + case["noise"]), generator=generator)


def _auroc(case: Mapping[str, Any], vae: VAE, seed: int) -> float:
    """Of the evidence, of pictures and noise of the training set: outlier scores rank alike, but round to 0 and 1."""
    examples = BitPictures(_shuffled(case["data"], "train"), noise=case["noise"])
    first = len(examples.pictures)
    rows = torch.cat([torch.arange(case["count"]), first + torch.arange(round(case["noise"] * case["count"]))])
    x = examples.take(rows, torch.Generator().manual_seed(seed))
    return auroc(-evidence(vae, x, _OUTLIER_SAMPLES, seed), examples.is_noise(rows))


def _test_pictures(source: str, count: int) -> Tensor:
    """float32 [count, 1, H, W], bits drawn once."""
    pictures = _shuffled(source, "test")
    if len(pictures) < 2 * count:
        raise ConfigError(
            f"{source} has {len(pictures)} test pictures, of which {count} are judged and as many others choose: "
            "lower count"
        )
    return BitPictures(pictures[:count], "static").take(torch.arange(count, device="cpu"))


@functools.lru_cache(maxsize=2)
def _shuffled(source: str, split: str) -> Tensor:
    """The data set in an order of its own, so that its first and last pictures are of every kind."""
    pictures = load_grey(source, split)
    return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0), device="cpu")]

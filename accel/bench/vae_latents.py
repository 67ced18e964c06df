"""Cases of kind `vae_latents`: VAEs that differ in their latents, or in how gradients of those are estimated.

A case: `recipe` and `set` (changes made to it, as of `accel train --set`), `data`, `folder` of all runs, each in its
own, where an interrupted training is gone on with; `pictures` of the test set and importance `samples`; and `against`,
the case it is compared with, if that is another, which comes first. Where it has `draws`, so many gradients of the
encoder are drawn for `batch` test pictures, at the weights that the case `against` reached, alike for all estimators.

Rows, one a case: `nll`, nats, with its standard error, and `behind`, how much higher it is than the other's on the same
pictures; `bound`, the ELBO of the latent itself, whatever was relaxed in training, and `bound_ahead`, how much higher
that is than the other's; `gained`, nats over independent pixels of the data's mean intensity: a row without a gain is
wrong. `variance` is that of the encoder's whole gradient, `variance_ratio` over that of the other case's estimator. A
row is wrong, too, where the mean gradients differ by Z_LIMIT standard errors, which `biased` excuses. With --output,
what the priors draw becomes a figure.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.bench.vae_gradients import DIRECTIONS, Z_LIMIT, moments, worst_z
from accel.bench.vae_runs import evidence, exact_bound, read_run, standard_error
from accel.vae import VAE
from accel.zoo.runs import RECIPE_FILE, WEIGHTS_FILE, read_recipe_file
from accel.zoo.vaes import load_vae

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (
    "case",
    "nll",
    "nll_error",
    "behind",
    "bound",
    "bound_ahead",
    "variance",
    "variance_ratio",
    "worst_z",
    "gained",
)
_BOUND_SAMPLES = 20  # of each of hundreds of pictures: an error of hundredths of a nat
_DRAWN = 64  # pictures of a prior, in rows of eight


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    folder, _ = trained(case, settings.seed)
    vae, x, recipe = read_run(case, case["name"], settings.seed)
    values, bounds = _judged(vae, x, case, settings.seed)
    gained = float(values.mean()) - _independent(x, recipe["vae"]["intensity"])
    row: Row = {
        "latent": recipe["vae"]["latent"]["kind"],
        "dim": recipe["vae"]["latent"]["dim"],
        "estimator": recipe["vae"].get("estimator"),
        "steps": recipe["fit"]["steps"],
        "nll": round(-float(values.mean()), 3),
        "nll_error": round(standard_error(values), 3),
        "bound": round(float(bounds.mean()), 3),
        "gained": round(gained, 3),
        "folder": str(folder),
        "error": 0.0,
        "correct": gained > 0,
    }
    if case.get("against", case["name"]) != case["name"]:
        rival, _, other = read_run(case, case["against"], settings.seed)
        others, other_bounds = _judged(rival, x, case, settings.seed)
        row["behind"] = round(float((others - values).mean()), 3)
        row["behind_error"] = round(standard_error(others - values), 3)
        row["bound_ahead"] = round(float((bounds - other_bounds).mean()), 3)
        row["bound_ahead_error"] = round(standard_error(bounds - other_bounds), 3)
        if "draws" in case:
            sides = [(one, found["bound"].get("num_samples", 1)) for one, found in ((vae, recipe), (rival, other))]
            row |= _noise(*sides, x[: case["batch"]], case["draws"], settings)
            row["correct"] &= case.get("biased", False) or row["worst_z"] < Z_LIMIT
    yield row


def draw(rows: Sequence[Row]) -> Figure:
    """What the priors of the trained VAEs draw, a panel a case, with its negative log-likelihood."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(rows), 3), layout="constrained")
    for panel, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows):
        folder = pathlib.Path(row["folder"])
        vae = load_vae(read_recipe_file(folder / RECIPE_FILE, "vae")["vae"], folder / WEIGHTS_FILE)
        drawn = vae.sample(_DRAWN, torch.Generator().manual_seed(0))[:, 0]
        sheet = drawn.unflatten(0, (-1, 8)).transpose(1, 2).flatten(2).flatten(0, 1)
        panel.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(f"{row['case']}\n-log p(x) {row['nll']:.2f} nats", fontsize=9)
        panel.axis("off")
    return figure


def _judged(vae: VAE, x: Tensor, case: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    return evidence(vae, x, case["samples"], seed), exact_bound(vae, x, _BOUND_SAMPLES, seed)


def _independent(x: Tensor, intensity: float) -> float:
    """Mean log p of pictures whose pixels are independent bits of one probability."""
    chance = torch.full_like(x, intensity)
    return -float(F.binary_cross_entropy(chance, x, reduction="none").double().flatten(1).sum(1).mean())


def _noise(own: tuple[VAE, int], other: tuple[VAE, int], x: Tensor, draws: int, settings: Settings) -> Row:
    """The gradient's variance by the estimators of two VAEs, with their numbers of samples, at the other's weights."""
    own[0].load_state_dict(other[0].state_dict())
    draws = max(20, draws // 10) if settings.quick else draws
    width = sum(parameter.numel() for parameter in own[0].encoder.parameters())
    directions = torch.randn(DIRECTIONS, width, generator=torch.Generator().manual_seed(settings.seed))
    (projected, variance), (others, other_variance) = (
        moments(vae, x, samples, draws, directions, seed)
        for seed, (vae, samples) in enumerate((own, other), settings.seed)
    )
    return {
        "draws": draws,
        "variance": variance,
        "variance_ratio": round(variance / other_variance, 3),
        "worst_z": round(worst_z(projected, others), 2),
    }

"""Trained VAEs of benchmark cases, and what they reach on test pictures whose bits are drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from accel.bench.trainings import run_folder
from accel.mc.sampling import draw
from accel.vae import VAE, log_likelihood
from accel.vae.pictures import BitPictures
from accel.zoo.grey_pictures import load_grey
from accel.zoo.runs import RECIPE_FILE, WEIGHTS_FILE, read_recipe_file
from accel.zoo.vaes import load_vae

_MEMORY = 16 << 20  # bytes of activations at a time: a perceptron's stay in the cache


def read_run(case: Mapping[str, Any], name: str, seed: int) -> tuple[VAE, Tensor, dict[str, Any]]:
    """(the trained VAE of the case called `name`, the first `pictures` of the test set as bits, its recipe)."""
    folder = run_folder(case, name, seed)
    recipe = read_recipe_file(folder / RECIPE_FILE, "vae")
    x = test_bits(case.get("data") or recipe["data"]["name"], case["pictures"])
    return load_vae(recipe["vae"], folder / WEIGHTS_FILE), x, recipe


def test_bits(source: str, count: int) -> Tensor:
    """float32 [n, C, H, W], the first `count` test pictures, or as many as there are."""
    pictures = BitPictures(load_grey(source, "test"), binarise="static")
    return pictures.take(torch.arange(min(count, len(pictures)), device="cpu"))


def evidence(vae: VAE, x: Tensor, samples: int, seed: int) -> Tensor:
    """float64 [N], log p(x) estimated with so many importance samples."""
    generator = torch.Generator().manual_seed(seed)
    return log_likelihood(vae, x, samples, memory=_MEMORY, generator=generator).double()


@torch.no_grad()
def exact_bound(vae: VAE, x: Tensor, samples: int, seed: int) -> Tensor:
    """float64 [N], the ELBO of samples of the posteriors themselves, whatever relaxation the gradients come from."""
    generator = torch.Generator().manual_seed(seed)
    posteriors = vae.posterior(x)
    drawn = [draw(q.expand((samples, len(x))), generator) for q in posteriors]
    return vae.log_weights(x.expand(samples, *x.shape), drawn, posteriors, 2).double().mean(0)


def standard_error(values: Tensor) -> float:
    """Of the mean of [N] values."""
    return float(values.std() / len(values) ** 0.5)

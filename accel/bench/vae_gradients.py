"""Cases of kind `vae_gradients`: how noisy the gradient of a VAE's encoder is, and what it costs, by estimator.

The claim of arXiv 1805.08498 on a VAE of scikit-learn's digits: implicit gradients (ours, and torch's own, which are
right to 0.5 %) against the score function with leave-one-out baselines.

A case: `latent` ("gamma" or "beta"), `dim`, `steps` of training before anything is measured, `batch`, `samples` of the
bound (alike for all, at least 2), `draws` of the gradient. `variance` is that of the encoder's whole gradient, summed
over its parameters. A row is wrong where its mean gradient lies Z_LIMIT standard errors or more from that of ours,
in any of 32 random directions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from accel.bench.runner import Row, Settings
from accel.profiling.latency import compare
from accel.vae import VAE, elbo
from accel.vae.pictures import BitPictures
from accel.zoo.grey_pictures import DIGITS, load_grey
from accel.zoo.vaes import build_vae

SHOWN = ("case", "latent", "estimator", "variance", "times_implicit", "ms", "worst_z")
Z_LIMIT = 5.0  # of 32 directions and two rivals: one in 30,000 by chance
DIRECTIONS = 32
_TORCH = {"gamma": td.Gamma, "beta": td.Beta}


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    draws = max(20, case["draws"] // 10) if settings.quick else case["draws"]
    data = BitPictures(load_grey(DIGITS, "train"))
    generator = torch.Generator().manual_seed(settings.seed)
    sides = _sides(case, data.intensity, settings.seed)
    trained = _train(sides["implicit"], data, case, generator)
    for vae in sides.values():
        vae.load_state_dict(trained)
    x = data.take(torch.arange(case["batch"]), generator)
    width = sum(parameter.numel() for parameter in sides["implicit"].encoder.parameters())
    directions = torch.randn(DIRECTIONS, width, generator=generator)
    found = {name: moments(vae, x, case["samples"], draws, directions, settings.seed) for name, vae in sides.items()}
    runs = {
        name: functools.partial(_gradient, vae, x, case["samples"], torch.Generator().manual_seed(0))
        for name, vae in sides.items()
    }
    timing = compare(runs, repeats=settings.repeats)
    for name, (projected, variance) in found.items():
        z = worst_z(projected, found["implicit"][0]) if name != "implicit" else 0.0
        yield {
            "latent": f"{case['latent']} of {case['dim']}",
            "estimator": name,
            "samples": case["samples"],
            "draws": draws,
            "variance": variance,
            "times_implicit": round(variance / found["implicit"][1], 3),
            "ms": round(timing[name].median_ms, 3),
            "worst_z": round(z, 2),
            "correct": z < Z_LIMIT,
            "error": z,
        }


def _sides(case: Mapping[str, Any], intensity: float, seed: int) -> dict[str, VAE]:
    """The same VAE with each way to its gradient."""
    table = {"shape": [1, 8, 8], "intensity": intensity, "latent": {"kind": case["latent"], "dim": case["dim"]}}

    def made(**options: Any) -> VAE:
        torch.manual_seed(seed)
        return build_vae({**table, **options})

    rival = made()
    rival.latents[0].family = rival.latents[0].prior_family = _TORCH[case["latent"]]
    return {"implicit": made(), "torch": rival, "score": made(estimator="leave_one_out")}


def _train(vae: VAE, data: BitPictures, case: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for _ in range(case["steps"]):
        rows = torch.randint(len(data), (case["batch"],), generator=generator)
        optimizer.zero_grad()
        (-elbo(vae, data.take(rows, generator), generator=generator).mean()).backward()
        optimizer.step()
    return vae.state_dict()


def _gradient(vae: VAE, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """The encoder's whole gradient of the mean bound, one vector."""
    bound = elbo(vae, x, samples, generator=generator).mean()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(bound, list(vae.encoder.parameters()))])


def moments(vae: VAE, x: Tensor, samples: int, draws: int, directions: Tensor, seed: int) -> tuple[Tensor, float]:
    """(gradients along the directions [draws, directions], the variance summed over the parameters)."""
    generator = torch.Generator().manual_seed(seed + 1)
    projected, mean, squares = [], torch.zeros(directions.shape[1], dtype=torch.float64), 0.0
    for count in range(1, draws + 1):
        gradient = _gradient(vae, x, samples, generator).double()
        projected.append(directions.double() @ gradient)
        before = gradient - mean
        mean = mean + before / count
        squares += float(before @ (gradient - mean))
    return torch.stack(projected), squares / (draws - 1)


def worst_z(first: Tensor, second: Tensor) -> float:
    errors = torch.hypot(*((part.std(0) / len(part) ** 0.5) for part in (first, second)))
    return float(((first.mean(0) - second.mean(0)) / errors).abs().max())

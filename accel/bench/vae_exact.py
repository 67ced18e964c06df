"""Cases of kind `vae_exact`: bounds of a linear-Gaussian model beside its exact likelihood.

z ~ N(0, I), x | z ~ N(W z + b, s^2 I), so that x ~ N(b, W W' + s^2 I); q has the exact posterior's mean times `slack`,
and the exact marginal deviations. A case: `latents`, `values` (of x), `scale` (s), `slack`, `examples`, drawn from the
model, `repeats` of each bound, `num_samples` (of IWAE, rising), and of the estimated likelihood `samples` and
`estimates`.

Rows: the ELBO, each IWAE and the estimate, mean over examples in nats and its standard error over the repeats; `gap` to
the exact mean, and `gap_z`, the same in standard errors; of bounds `rise` over the row before and `rise_z`. What is
estimated is p(x), not its log: that `gap_z` is of the mean of the estimates over p(x), which should be 1. A row is
wrong where a bound lies Z_LIMIT standard errors above the exact value or below the bound before it, or the estimate as
far off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from accel.bench.runner import Row, Settings
from accel.bench.vae_runs import evidence, standard_error
from accel.mc.sampling import draw as draw_from
from accel.vae import VAE, elbo, iwae, likelihoods
from accel.vae.latents import LEAST, normal

SHOWN = ("case", "quantity", "nats", "nats_error", "gap", "gap_z", "rise", "rise_z")
Z_LIMIT = 4.0


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    vae, marginal = _model(case, torch.Generator().manual_seed(settings.seed))
    x = draw_from(marginal.expand((case["examples"],)), torch.Generator().manual_seed(settings.seed + 1))
    exact = marginal.log_prob(x).double()
    before: Tensor | None = None
    for place, (name, bound) in enumerate(_bounds(vae, case["num_samples"]).items(), settings.seed + 2):
        means = _repeated(bound, x, case["repeats"], torch.Generator().manual_seed(place))
        row = {**_row(name, means), "gap": round(float(exact.mean() - means.mean()), 5)}
        row["gap_z"] = float(exact.mean() - means.mean()) / standard_error(means)
        if before is not None:
            error = (standard_error(means) ** 2 + standard_error(before) ** 2) ** 0.5
            row["rise"] = round(float(means.mean() - before.mean()), 5)
            row["rise_z"] = float(means.mean() - before.mean()) / error
        before = means
        yield {**row, "error": 0.0, "correct": min(row["gap_z"], row.get("rise_z", 0.0)) > -Z_LIMIT}
    found = torch.stack(
        [evidence(vae, x, case["samples"], settings.seed + number) for number in range(case["estimates"])]
    )
    over = (found - exact).exp().mean(1)
    z = abs(float(over.mean()) - 1) / standard_error(over)
    row = _row(f"importance sampling, {case['samples']}", found.mean(1))
    yield {**row, "gap": round(float((exact - found).mean()), 5), "gap_z": z, "error": 0.0, "correct": z < Z_LIMIT}


def _row(name: str, values: Tensor) -> Row:
    return {"quantity": name, "nats": round(float(values.mean()), 5), "nats_error": standard_error(values)}


def _bounds(vae: VAE, num_samples: list[int]) -> dict[str, Callable[[Tensor, torch.Generator], Tensor]]:
    found: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "ELBO": lambda x, generator: elbo(vae, x, generator=generator)
    }
    for count in num_samples:
        found[f"IWAE-{count}"] = lambda x, generator, count=count: iwae(vae, x, count, generator=generator)
    return found


@torch.no_grad()
def _repeated(
    bound: Callable[[Tensor, torch.Generator], Tensor], x: Tensor, repeats: int, generator: torch.Generator
) -> Tensor:
    """float64 [repeats], means over the examples."""
    return torch.stack([bound(x, generator).double().mean() for _ in range(repeats)])


@torch.no_grad()
def _model(case: Mapping[str, Any], generator: torch.Generator) -> tuple[VAE, MultivariateNormal]:
    """(the VAE, the exact distribution of x)."""
    latents, values = case["latents"], case["values"]
    likelihood = likelihoods.Normal(scale=case["scale"], learned=False)
    variance = float(likelihood.scale) ** 2
    decoder, encoder = nn.Linear(latents, values), nn.Linear(values, 2 * latents)
    decoder.weight.copy_(torch.randn(values, latents, generator=generator) / latents**0.5)
    decoder.bias.copy_(torch.randn(values, generator=generator))
    weight = decoder.weight.clone()
    covariance = torch.linalg.inv(torch.eye(latents) + weight.T @ weight / variance)
    rows = case["slack"] * covariance @ weight.T / variance
    encoder.weight.zero_()
    encoder.weight[0::2] = rows  # the mean and the raw deviation of each coordinate follow each other
    encoder.bias[0::2] = -rows @ decoder.bias
    encoder.bias[1::2] = torch.log(torch.expm1(covariance.diagonal().sqrt() - LEAST))
    marginal = MultivariateNormal(decoder.bias.clone(), weight @ weight.T + variance * torch.eye(values))
    return VAE(encoder, decoder, normal(latents), likelihood), marginal

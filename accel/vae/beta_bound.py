"""The beta-ELBO, the usual robust rival of the robust bound: a divergence that unlikely examples hardly move."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import ConfigError
from accel.mc import expectation
from accel.vae.bounds import check_samples, known_divergence
from accel.vae.likelihoods import Bernoulli
from accel.vae.model import VAE


def beta_elbo(
    vae: VAE, x: Tensor, beta: float, num_samples: int = 1, *, generator: torch.Generator | None = None
) -> Tensor:
    """[N], the ELBO whose log p(x | z) is replaced by minus a beta-divergence's cross entropy (Akrami et al. 2020,
    arXiv 1905.09961; of pictures as a whole, not pixel by pixel):

        E [(p(x | z)^beta - 1) / beta - (sum_x' p(x' | z)^(1 + beta) - 1) / (1 + beta)] - KL(q || p)

    It is no bound of log p(x); as beta falls to 0 it becomes the ELBO. An example's likelihood counts p(x | z)^beta
    times as much as there, its KL divergence in full: beta is of the size of one over the nats of an example.

    Args:
        x: [N, ...], bits.
        beta: above 0.

    Raises:
        ConfigError: beta not above 0, no samples, several latents or one whose KL divergence has no closed form, or a
            likelihood other than Bernoulli, of which the sum over all x' is known.
        DataError: data outside the likelihood's support.
    """
    check_samples(num_samples)
    check_beta(beta)
    if type(vae.likelihood) is not Bernoulli:
        raise ConfigError(f"beta_elbo is of the likelihood Bernoulli, got {type(vae.likelihood).__name__}")
    posteriors = vae.posterior(x)
    divergence = known_divergence(posteriors[0], vae.latents[0].prior()) if len(posteriors) == 1 else None
    if divergence is None:
        raise ConfigError("beta_elbo takes one latent, whose divergence from its prior has a closed form")

    def cost(z: Tensor) -> Tensor:
        output = vae.decode([z])
        likely = vae.likelihood.log_prob(output, x.expand(len(z), *x.shape), 2)
        cells = torch.logaddexp(F.logsigmoid(output) * (1 + beta), F.logsigmoid(-output) * (1 + beta))
        whole = cells.flatten(2).sum(-1)
        return (likely * beta).expm1() / beta - whole.expm1() / (1 + beta)

    (estimator,) = vae.estimators(posteriors)
    return expectation(cost, posteriors[0], num_samples, estimator, generator=generator) - divergence


def check_beta(beta: float) -> None:
    """ConfigError unless beta is a number above 0."""
    if not 0 < beta < math.inf:
        raise ConfigError(f"beta of the beta-ELBO must be a number above 0, such as 0.002, got {beta}")

"""The bound of a VAE whose decoder decides how long it computes: halting variables as further latents of it.

With z the latents and n how many units of the decoder run (PACT, Figurnov, Sobolev, Vetrov 2017, arXiv 1712.00386),

    E_q(z|x) E_q(n|z) [log p(x | z, n) - tau n] - KL(q(z | x) || p(z))

is, but for the constant of the prior p(n) ~ exp(-tau n), a lower bound of log p(x): variational optimisation leaves out
the entropy of q(n | z), which is never negative. n is, as in `accel.expected_loss`, a mean over the positions of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.mc.sampling import draw
from accel.nn.expected import expected_loss
from accel.vae.bounds import check_samples, known_divergence
from accel.vae.model import VAE


def halting_elbo(vae: VAE, x: Tensor, num_samples: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
    """The mean of the bound over the examples, a scalar in nats; halting decisions have the gradient of the estimator
    that the decoder's PACT names, the latents a pathwise one.

    Args:
        x: [N, ...].
        num_samples: of z; each draws its own decisions.

    Raises:
        DataError: data outside the likelihood's support.
        ConfigError: no samples, or a latent without pathwise gradients.
        ConversionError: a decoder without PACT stages.
    """
    check_samples(num_samples)
    posteriors = vae.posterior(x)
    for latent, q in zip(vae.latents, posteriors):
        if not q.has_rsample:
            raise ConfigError(f"halting_elbo needs latents with pathwise gradients, and {latent.kind} has none")
    samples = [draw(q.expand((num_samples, len(x))), generator, True) for q in posteriors]
    repeated = x.expand(num_samples, *x.shape).flatten(0, 1)

    def negative(outputs: Tensor) -> Tensor:
        return -vae.likelihood.log_prob(outputs, repeated, 1)

    spent = expected_loss(vae.decoder, vae.features(samples).flatten(0, 1), negative, generator=generator)
    divergence = torch.zeros_like(spent)
    for latent, q, z in zip(vae.latents, posteriors, samples):
        known = known_divergence(q, latent.prior())
        divergence = divergence + (known if known is not None else q.log_prob(z) - latent.prior().log_prob(z)).mean()
    return -spent - divergence

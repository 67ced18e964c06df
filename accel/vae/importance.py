"""log p(x) of a VAE, estimated by importance sampling under a memory budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.mc.sampling import draw
from accel.profiling.memory import peak_activation_bytes
from accel.vae.bounds import check_samples
from accel.vae.model import VAE

MEMORY = 256 << 20  # bytes of activations at a time


@torch.no_grad()
def log_likelihood(
    vae: VAE,
    x: Tensor,
    num_samples: int,
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[N], log p(x) estimated by importance sampling from q: log 1/K sum_k exp T_k, in expectation a lower bound.

    Args:
        num_samples: K; 5000 are customary for tables.
        memory: bytes that the activations of the encoder, and those of the decoder, may take at a time; one example
            with one sample is the least.

    Raises:
        DataError: data outside the likelihood's support.
        ConfigError: no samples.
    """
    check_samples(num_samples)
    vae.likelihood.check(x)
    if not len(x):
        return x.new_zeros(0)
    samples = [draw(q, generator)[None] for q in vae.posterior(x[:1])]
    decoded = memory // max(1, peak_activation_bytes(lambda: vae.log_conditional(x[None, :1], samples, 2)))
    encoded = memory // max(1, peak_activation_bytes(lambda: vae.encode(x[:1])))
    chunks = x.split(max(1, min(decoded, encoded)))
    return torch.cat([_estimate(vae, data, num_samples, max(1, decoded // len(data)), generator) for data in chunks])


def _estimate(vae: VAE, x: Tensor, num_samples: int, at_once: int, generator: torch.Generator | None) -> Tensor:
    posteriors = vae.posterior(x)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    for start in range(0, num_samples, at_once):
        count = min(at_once, num_samples - start)
        samples = [draw(q.expand((count, len(x))), generator) for q in posteriors]
        weights = vae.log_weights(x.expand(count, *x.shape), samples, posteriors, 2)
        total = torch.logaddexp(total, weights.double().logsumexp(0))
    return (total - math.log(num_samples)).to(weights.dtype)

"""Models small enough to know the answer."""

import math

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from accel.vae import VAE, latents, likelihoods


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_gaussian(exact_posterior=False):
    """(vae, log p): z ~ N(0, I2), x | z ~ N(W z + b, 0.6^2 I3), with a rough or the exact mean of the posterior."""
    torch.manual_seed(1)
    decoder = nn.Linear(2, 3)
    nn.init.normal_(decoder.weight)
    nn.init.normal_(decoder.bias)
    likelihood = likelihoods.Normal(scale=0.6)
    scale = float(likelihood.scale.detach())
    weight = decoder.weight.detach()
    precision = torch.eye(2) + weight.T @ weight / scale**2
    means = torch.linalg.solve(precision, weight.T) / scale**2
    encoder = nn.Linear(3, 4)  # loc and raw scale of each coordinate follow each other
    with torch.no_grad():
        rows = means if exact_posterior else 0.7 * means + 0.1
        encoder.weight.copy_(torch.stack([rows[0], torch.zeros(3), rows[1], torch.zeros(3)]))
        deviations = precision.inverse().diagonal().sqrt()
        loc = -rows @ decoder.bias
        raw = torch.log(torch.expm1(deviations - latents.LEAST))
        encoder.bias.copy_(torch.stack([loc[0], raw[0], loc[1], raw[1]]))
    covariance = weight @ weight.T + scale**2 * torch.eye(3)
    marginal = MultivariateNormal(decoder.bias.detach(), covariance)
    return VAE(encoder, decoder, latents.normal(2), likelihood), marginal.log_prob


def one_layer(bits=3, latent=None, **options):
    """x of three bits from some bits by one layer, and back: everything can be enumerated."""
    torch.manual_seed(3)
    latent = latent or latents.bernoulli(bits)
    parts = latent if isinstance(latent, list) else [latent]
    encoder = nn.Linear(3, sum(part.num_parameters for part in parts))
    decoder = nn.Linear(sum(part.num_features for part in parts), 3)
    nn.init.normal_(decoder.weight)
    return VAE(encoder, decoder, latent, likelihoods.Bernoulli(), **options)


def all_bits(count):
    return torch.tensor([[k >> i & 1 for i in range(count)] for k in range(2**count)], dtype=torch.float32)


def enumerated(vae, x, bits):
    """(log p(x, z) - log q(z | x), log q(z | x)), both [2^bits, N]."""
    states = all_bits(bits)[:, None].expand(-1, len(x), -1)
    posteriors = vae.posterior(x)
    weights = vae.log_weights(x.expand(len(states), *x.shape), [states], posteriors, 2)
    return weights, posteriors[0].log_prob(states)


def standard_error(values):
    return values.std(0) / math.sqrt(len(values))

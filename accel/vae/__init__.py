"""Variational autoencoders with any latent that has a gradient: bounds, robust bounds, likelihood estimates.

>>> vae = VAE(encoder, decoder, latents.normal(50), likelihoods.Bernoulli())
>>> loss = -robust_elbo(vae, x, log_alpha=-200.0).mean()
>>> log_likelihood(vae, x, num_samples=5000)

Bounds are plain functions of a VAE and a batch; they return nats per example.
"""

from accel.vae.bounds import divergence, elbo, iwae, robust_elbo
from accel.vae.importance import log_likelihood
from accel.vae.model import VAE
from accel.vae.robust import annealed_log_alpha, auroc, choose_log_alpha, trimmed_mean

__all__ = [
    "VAE",
    "annealed_log_alpha",
    "auroc",
    "choose_log_alpha",
    "divergence",
    "elbo",
    "iwae",
    "log_likelihood",
    "robust_elbo",
    "trimmed_mean",
]

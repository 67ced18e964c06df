"""Variational autoencoders with any latent that has a gradient: bounds, robust bounds, likelihood estimates;
imputation.

>>> vae = VAE(encoder, decoder, latents.normal(50), likelihoods.Bernoulli())
>>> loss = -robust_elbo(vae, x, log_alpha=-200.0).mean()
>>> log_likelihood(vae, x, num_samples=5000)

Bounds are plain functions of a VAE and a batch; they return nats per example.

>>> frames = Imputer(random_state=0).fit(df).impute(df, num_imputations=10)

>>> pictures = inpaint(vaeac, x, hidden, num_samples=4)

Imputer needs the extra `impute` (pandas and scikit-learn) and is loaded on first use.
"""

from accel.vae.beta_bound import beta_elbo
from accel.vae.bounds import divergence, elbo, iwae, robust_elbo
from accel.vae.halting_bound import halting_elbo
from accel.vae.importance import log_likelihood
from accel.vae.inpainting import Inpainting, inpaint
from accel.vae.mask_generators import MAR, MCAR, Groups, MaskGenerator, MaskList, Mixture, Monotone, Patterns
from accel.vae.model import VAE
from accel.vae.picture_masks import PICTURE_MASKS
from accel.vae.picture_networks import picture_vaeac
from accel.vae.pooling import pool
from accel.vae.robust import annealed_log_alpha, auroc, choose_log_alpha, trimmed_mean
from accel.vae.vaeac import VAEAC

__all__ = [
    "MAR",
    "MCAR",
    "PICTURE_MASKS",
    "VAE",
    "VAEAC",
    "Groups",
    "Imputer",
    "Inpainting",
    "MaskGenerator",
    "MaskList",
    "Mixture",
    "Monotone",
    "Patterns",
    "annealed_log_alpha",
    "auroc",
    "beta_elbo",
    "choose_log_alpha",
    "divergence",
    "elbo",
    "halting_elbo",
    "inpaint",
    "iwae",
    "log_likelihood",
    "picture_vaeac",
    "pool",
    "robust_elbo",
    "trimmed_mean",
]


def __getattr__(name: str):
    if name != "Imputer":
        raise AttributeError(f"module 'accel.vae' has no attribute {name!r}")
    try:
        from accel.vae.imputer import Imputer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"accel.vae.Imputer needs {error.name}: pip install 'skimconv[impute]'", name=error.name
        ) from error
    return Imputer

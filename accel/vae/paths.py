"""Ways through the latent space: between two points, and around the torus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.vae.latents import Latent
from accel.vae.model import VAE, Samples


def between(vae: VAE, start: Samples, end: Samples, steps: int) -> list[Tensor]:
    """Samples of every latent on the way from `start` to `end`, both [N, *event]: [steps, N, *event], both ends among
    them. Straight lines, which stay inside the supports; angles go the shorter way round.

    Raises:
        ConfigError: fewer than two steps, or a discrete latent, between whose values there is nothing.
    """
    if steps < 2:
        raise ConfigError(f"a way has two ends: give at least 2 steps, got {steps}")
    return [_between(latent, a, b, steps) for latent, a, b in zip(vae.latents, start, end)]


def _between(latent: Latent, start: Tensor, end: Tensor, steps: int) -> Tensor:
    if latent.discrete:
        raise ConfigError(f"there is no way between values of the discrete latent {latent.kind}: take a continuous one")
    share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, *[1] * start.dim())
    if latent.periodic:
        return wrapped(start + share * wrapped(end - start))
    return start + share * (end - start)


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def has_torus(vae: VAE) -> bool:
    """Whether the latents are two angles or more."""
    return len(vae.latents) == 1 and vae.latents[0].periodic and vae.latents[0].sites > 1


def torus(vae: VAE, size: int) -> Tensor:
    """Means of x [size, size, ...] over all values of the first two angles, the others 0; rows are the first angle.

    Raises:
        ConfigError: the VAE has other latents than angles, or only one.
    """
    if not has_torus(vae):
        kinds = ", ".join(latent.kind for latent in vae.latents)
        raise ConfigError(f"a torus needs one latent of two angles or more, this VAE has {kinds}")
    angles = wrapped(torch.arange(size, device=vae.log_alpha.device) * (2 * math.pi / size))
    z = torch.zeros(size, size, vae.latents[0].sites, dtype=vae.log_alpha.dtype, device=vae.log_alpha.device)
    z[..., 0], z[..., 1] = angles[:, None], angles
    with torch.no_grad():
        return vae.likelihood.mean(vae.decode([z]))

"""A VAE and the bound it is trained by, as one module: what a data-parallel wrapper can call."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from accel.config import PACT
from accel.errors import ConfigError
from accel.vae.beta_bound import beta_elbo, check_beta
from accel.vae.bounds import GRADIENTS, ROBUST, check_samples, elbo, iwae, robust_elbo
from accel.vae.halting_bound import halting_elbo
from accel.vae.model import VAE
from accel.vae.robust import annealed_log_alpha

BOUNDS = ("elbo", "iwae", "robust", "beta", "halting")
_GRADIENTS = {"elbo": ("plain", "stl"), "iwae": GRADIENTS}  # the others: plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """Which bound is trained. Attributes: kind, one of BOUNDS ("halting": of decoders with PACT stages; "beta": the
    beta-ELBO); num_samples; gradient, as in `elbo` and `iwae`; of the robust bound variant, log_alpha, where it starts,
    and in how many steps it rises from there; beta of the beta-ELBO.

    Raises:
        ConfigError: an unknown kind, gradient or variant, no sample, a robust bound without log_alpha, a beta-ELBO
            without beta, or one of these for another bound.
    """

    kind: str = "elbo"
    num_samples: int = 1
    gradient: str = "plain"
    variant: str = "expected"
    log_alpha: float = -math.inf
    log_alpha_start: float = -math.inf
    anneal_steps: int = 0
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        for name, known in (("kind", BOUNDS), ("gradient", _GRADIENTS.get(self.kind, ("plain",))), ("variant", ROBUST)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"the {name} of a bound {self.kind} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        annealed = self.anneal_steps != 0 or self.log_alpha_start != -math.inf
        if (self.kind == "robust") != math.isfinite(self.log_alpha) or (annealed and self.kind != "robust"):
            raise ConfigError(
                f"log_alpha is a finite number of nats for the robust bound, and for no other: got {self.log_alpha} "
                f"for {self.kind}"
            )
        if self.kind == "beta":
            check_beta(self.beta)
        elif self.beta:
            raise ConfigError(f"beta is of the bound beta, and of no other: got {self.beta} for {self.kind}")
        annealed_log_alpha(0, self.anneal_steps, self.log_alpha, self.log_alpha_start)

    def log_alpha_at(self, step: int) -> float:
        return annealed_log_alpha(step, self.anneal_steps, self.log_alpha, self.log_alpha_start)

    def __call__(self, vae: VAE, x: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
        """[N] nats, the bound of each example at a training step; "halting" gives their mean, a scalar."""
        if self.kind == "halting":
            return halting_elbo(vae, x, self.num_samples, generator=generator)
        if self.kind == "elbo":
            return elbo(vae, x, self.num_samples, gradient=self.gradient, generator=generator)
        if self.kind == "iwae":
            return iwae(vae, x, self.num_samples, gradient=self.gradient, generator=generator)
        if self.kind == "beta":
            return beta_elbo(vae, x, self.beta, self.num_samples, generator=generator)
        alpha = self.log_alpha_at(step)
        return robust_elbo(vae, x, alpha, self.num_samples, variant=self.variant, generator=generator)


class Objective(nn.Module):
    """`forward(x, step, generator)` -> the loss, minus the mean bound. The VAE's `log_alpha` is set for its scores.

    Raises:
        ConfigError: a decoder with PACT stages and another bound than "halting", or the other way round.
    """

    def __init__(self, vae: VAE, bound: Bound) -> None:
        super().__init__()
        decides = any(isinstance(getattr(module, "config", None), PACT) for module in vae.decoder.modules())
        if decides != (bound.kind == "halting"):
            raise ConfigError(
                f"a decoder with{'' if decides else 'out'} PACT stages is not trained by the bound {bound.kind!r}: "
                'take "halting" for one that has them, and for no other'
            )
        self.vae, self.bound = vae, bound
        vae.log_alpha.fill_(bound.log_alpha)

    def forward(self, x: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
        return -self.bound(self.vae, x, step, generator).mean()

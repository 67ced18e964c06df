"""Relaxations of Bernoulli and one-hot categorical variables: Concrete (Gumbel-softmax) and straight-through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical
from torch.nn import functional as F

from .cost import Cost
from .discrete import finite_logits
from .sampling import draw, exponential, uniform


class BinaryRelaxation:
    """``b = [z > 0]`` with ``z = logits + logistic noise``; soft version ``sigmoid(z / temperature)``."""

    event_ndim = 0

    @staticmethod
    def latent(logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return logits + torch.logit(uniform(logits, generator))

    @staticmethod
    def hard(z: Tensor) -> Tensor:
        return (z > 0).to(z)

    @staticmethod
    def soft(z: Tensor, temperature: Tensor | float) -> Tensor:
        return torch.sigmoid(z / temperature)

    @staticmethod
    def mean(logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    @staticmethod
    def conditional(logits: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
        """z given ``hard(z) = b``, reparameterized in the logits (REBAR, Tucker et al. 2017, appendix)."""
        sign = 2 * b - 1
        return sign * F.softplus(torch.logit(uniform(logits, generator)) + F.softplus(sign * logits))


class OneHotRelaxation:
    """``b = one_hot(argmax z)`` with ``z = logits + Gumbel noise``; soft version ``softmax(z / temperature)``."""

    event_ndim = 1

    @staticmethod
    def latent(logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return logits - exponential(logits, generator).log()

    @staticmethod
    def hard(z: Tensor) -> Tensor:
        return F.one_hot(z.argmax(-1), z.shape[-1]).to(z)

    @staticmethod
    def soft(z: Tensor, temperature: Tensor | float) -> Tensor:
        return torch.softmax(z / temperature, -1)

    @staticmethod
    def mean(logits: Tensor) -> Tensor:
        return torch.softmax(logits, -1)

    @staticmethod
    def conditional(logits: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
        """z given ``hard(z) = b``: the maximum is a standard Gumbel, the others are truncated below it."""
        noise = exponential(logits, generator)
        top = (noise * b).sum(-1, keepdim=True)
        below = torch.logaddexp(noise.log() - F.log_softmax(logits, -1), top.log())
        return -torch.where(b > 0, top.log(), below)


def relaxation(q: Distribution, estimator: str) -> type[BinaryRelaxation] | type[OneHotRelaxation]:
    """The relaxation of q.

    Raises:
        ValueError: q is neither Bernoulli nor OneHotCategorical.
    """
    if isinstance(q, Bernoulli):
        return BinaryRelaxation
    if isinstance(q, OneHotCategorical):
        return OneHotRelaxation
    raise ValueError(
        f"{estimator} needs a Bernoulli or a OneHotCategorical, got {type(q).__name__}; an index-valued Categorical "
        "cannot be relaxed: use OneHotCategorical, or ScoreFunction, MeasureValued or Enumerate"
    )


@dataclass(frozen=True)
class Concrete:
    """Biased: f at a relaxed sample (Concrete, Maddison et al. 2017; Gumbel-softmax, Jang et al. 2017).

    The value is that of the relaxed expectation; bias falls and variance grows as the temperature goes to 0.

    Args:
        temperature: above 0.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample relaxed costs ``[N, *c]`` with their gradient."""
        family = relaxation(q, "Concrete")
        z = family.latent(finite_logits(q, "Concrete"), generator)
        return cost.through(family.soft(z, self.temperature), "Concrete")


@dataclass(frozen=True)
class StraightThrough:
    """Biased: f at the discrete sample, its gradient passed on as if the sample were the relaxed one.

    Args:
        temperature: that of the relaxed sample (straight-through Gumbel-softmax, Jang et al. 2017); None passes the
            gradient to the probabilities themselves (Bengio et al. 2013).
    """

    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None:
            check_temperature(self.temperature)

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample costs ``[N, *c]`` at discrete samples, with the straight-through gradient."""
        family = relaxation(q, "StraightThrough")
        if self.temperature is None:
            hard, soft = draw(q, generator), q.probs
        else:
            z = family.latent(finite_logits(q, "StraightThrough"), generator)
            hard, soft = family.hard(z.detach()), family.soft(z, self.temperature)
        return cost.through(hard + (soft - soft.detach()), "StraightThrough")


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless the temperature is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; for discrete samples use StraightThrough")

"""DisARM and ARM: antithetic estimators for binary variables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from .cost import Cost
from .discrete import finite_logits
from .rows import attach, sum_to, widen
from .sampling import uniform


@dataclass(frozen=True)
class DisARM:
    """``(f(b) - f(b')) / 2 * (b - b') * max(p, 1 - p)`` per logit, for an antithetic pair b, b' (Dong et al. 2020).

    Bernoulli only, values of f only. One sample is one pair: f is evaluated twice per sample.

    Raises (on use):
        ValueError: q is not a Bernoulli, or a probability that requires a gradient is 0 or 1.
    """

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-pair mean costs ``[N, *c]`` whose gradient is the estimator."""
        name = type(self).__name__
        if not isinstance(q, Bernoulli):
            raise ValueError(
                f"{name} is for Bernoulli variables, got {type(q).__name__}; use REBAR, MeasureValued or ScoreFunction"
            )
        logits = finite_logits(q, name)
        probs = logits.detach().sigmoid()
        noise = uniform(probs, generator)
        first, second = (noise > 1 - probs).to(probs), (noise < probs).to(probs)
        costs = cost(torch.cat((first, second)))
        left, right = costs.chunk(2)
        half = widen((left - right).detach() / 2, probs.dim())
        gradient = half * self._weight(noise, probs, first, second)
        return attach((left + right) / 2, sum_to(gradient * logits, left.dim()))

    @staticmethod
    def _weight(_noise: Tensor, probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (first - second) * torch.maximum(probs, 1 - probs)


@dataclass(frozen=True)
class ARM(DisARM):
    """``(f(b) - f(b')) * (u - 1/2)`` per logit, of DisARM's pairs and the noise u behind them (Yin and Zhou 2019).

    DisARM is its mean given the pair and never varies more: this is for comparisons. Arguments and errors alike.
    """

    @staticmethod
    def _weight(noise: Tensor, _probs: Tensor, _first: Tensor, _second: Tensor) -> Tensor:
        return 2 * noise - 1

"""DisARM: the antithetic estimator for binary variables."""

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
        if not isinstance(q, Bernoulli):
            raise ValueError(
                f"DisARM is for Bernoulli variables, got {type(q).__name__}; use REBAR, MeasureValued or ScoreFunction"
            )
        logits = finite_logits(q, "DisARM")
        probs = logits.detach().sigmoid()
        noise = uniform(probs, generator)
        first, second = (noise > 1 - probs).to(probs), (noise < probs).to(probs)
        costs = cost(torch.cat((first, second)))
        left, right = costs.chunk(2)
        half = widen((left - right).detach() / 2, probs.dim())
        gradient = half * (first - second) * torch.maximum(probs, 1 - probs)
        return attach((left + right) / 2, sum_to(gradient * logits, left.dim()))

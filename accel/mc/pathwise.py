"""The pathwise (reparameterization) estimator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from .cost import Cost
from .sampling import draw


@dataclass(frozen=True)
class Pathwise:
    """``mean_n grad f(x_n(theta))`` through ``q.rsample`` (JMLR 21(132) 2020, section 5), explicit or implicit.

    Raises (on use):
        ValueError: q has no ``rsample``, or f returned a value detached from its input.
    """

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample costs ``[N, *c]`` whose gradient is the estimator."""
        if not q.has_rsample:
            remedy = (
                "ScoreFunction, MeasureValued, Enumerate (finite supports) or Concrete (relaxed)"
                if getattr(q.support, "is_discrete", False)
                else "the distribution of that name in accel.distributions, ScoreFunction or MeasureValued"
            )
            raise ValueError(f"Pathwise needs a reparameterized q, and {type(q).__name__} has no rsample; use {remedy}")
        return cost.through(draw(q, generator, reparameterized=True), "Pathwise")

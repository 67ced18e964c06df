"""Exact expectations over finite supports."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.distributions import Distribution

from .cost import Cost
from .discrete import probability


@dataclass(frozen=True)
class Enumerate:
    """``sum_x q(x) f(x)`` over every joint state, value and gradient exact. Needs q with a finite support.

    Latents that share one cost are enumerated jointly; f is tried on one state first, so factorised costs
    ``[N, *c]`` keep the number of states small.

    Args:
        max_states: largest number of joint states to evaluate at once.

    Raises (on use):
        ValueError: infinite support, more than ``max_states`` joint states, or a Binomial at probability 0 or 1.
    """

    max_states: int = 65536
    exact = True

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """The exact expectation ``[1, *c]`` as the only row."""
        if not q.has_enumerate_support:
            raise ValueError(f"Enumerate needs a finite support, {type(q).__name__} has none; use ScoreFunction")
        support = q.enumerate_support(expand=True)
        with torch.no_grad():
            ndim = cost(support[0]).dim()
        sites = prod(q.batch_shape[ndim:])
        count = support.shape[0] ** sites
        if count > self.max_states:
            raise ValueError(
                f"Enumerate: {support.shape[0]}^{sites} joint states exceed max_states={self.max_states}; return "
                "factorised costs, raise max_states, or use ScoreFunction, MeasureValued or DisARM"
            )
        states = _joint_states(support, ndim, len(q.batch_shape), count)
        weights = probability(q, states)
        weights = weights if weights.dim() == ndim + 1 else weights.flatten(ndim + 1).prod(-1)
        costs = cost(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return (weights * costs).sum(0)


def _joint_states(support: Tensor, ndim: int, batch_ndim: int, count: int) -> Tensor:
    """All combinations ``[count, *batch, *event]`` over the batch dimensions from ``ndim`` on."""
    size, shape = support.shape[0], support.shape[1:]
    sites = prod(shape[ndim:batch_ndim])
    radix = size ** torch.arange(sites, device=support.device)
    digits = torch.arange(count, device=support.device)[:, None] // radix % size
    flat = support.reshape(size, prod(shape[:ndim]), sites, prod(shape[batch_ndim:]))
    picked = flat[digits, :, torch.arange(sites, device=support.device)]
    return picked.movedim(1, 2).reshape(count, *shape)

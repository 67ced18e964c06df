"""The measure-valued (weak-derivative) estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import pi, prod, sqrt

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from .cost import Cost
from .rows import attach, sum_to, widen
from .sampling import double_sided_maxwell, normal, rayleigh, uniform
from .weak_derivatives import weak_derivatives


@dataclass(frozen=True)
class MeasureValued:
    """``c (E_plus f - E_minus f)`` per parameter (JMLR 21(132) 2020, section 6). Needs values of f only.

    Each latent is replaced, one at a time, by the two samples of its weak derivative: up to 2 evaluations of f per
    parameter and sample (``weak_derivatives`` lists what is supported; MultivariateNormal is done in whitened
    coordinates). Latents under different entries of factorised costs ``[N, *c]`` are replaced together.

    Args:
        coupled: draw the two samples from common noise; False draws them independently.
        memory: bytes of samples handed to f in one call (at least the N samples of one replaced latent).

    Raises (on use):
        ValueError: no weak derivative is known for q or one of its parameters.
    """

    coupled: bool = True
    memory: int = 2**26

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample costs ``[N, *c]`` whose gradient is the estimator."""
        if isinstance(q, MultivariateNormal):
            return self._gaussian_rows(cost, q, generator)
        base, triples = weak_derivatives(q, generator)
        if not self.coupled:
            _, others = weak_derivatives(q, generator)
            triples = [replace(triple, minus=other.minus) for triple, other in zip(triples, others)]
        costs = cost(base)
        surrogate = torch.zeros_like(costs)
        for triple in triples:
            if triple.parameter.requires_grad:
                difference = self._one_by_one(cost, base, costs, triple.plus, q)
                difference = difference - self._one_by_one(cost, base, costs, triple.minus, q)
                surrogate = surrogate + sum_to(triple.constant * difference * triple.parameter, costs.dim())
        return attach(costs, surrogate)

    def _one_by_one(self, cost: Cost, base: Tensor, costs: Tensor, points: Tensor, q: Distribution) -> Tensor:
        """Costs ``[N, *batch]`` where entry i sees ``base`` with its i-th latent taken from ``points``."""
        if points is base:
            return widen(costs.detach(), len(q.batch_shape)).expand(q.batch_shape)
        return replaced_costs(cost, base, points, costs.shape, len(q.batch_shape), self.memory).reshape(q.batch_shape)

    def _gaussian_rows(self, cost: Cost, q: MultivariateNormal, generator: torch.Generator | None) -> Tensor:
        """Full covariance, in ``x = loc + L e``: weak derivatives of a standard normal in each coordinate of e.

        With ``d_i`` the location derivative in e_i, moving L by ``L A`` changes the expectation by
        ``sum_ij A_ij E[e_j d_i]`` for i != j, and the diagonal of A acts as the scale of e_i.
        """
        loc, tril = q.loc.detach(), q.scale_tril.detach()
        weibull, maxwell = rayleigh(loc, generator), double_sided_maxwell(loc, generator)
        base = uniform(loc, generator) * maxwell
        negative = weibull if self.coupled else rayleigh(loc, generator)
        narrow = base if self.coupled else normal(loc, generator)

        def whitened(e: Tensor) -> Tensor:
            return cost(loc[:1] + (tril[:1] @ e.unsqueeze(-1)).squeeze(-1))  # all rows of q are alike

        def at(points: Tensor) -> Tensor:
            return replaced_costs(whitened, base, points, costs.shape, loc.dim(), self.memory).reshape(loc.shape)

        costs = whitened(base)

        location = (at(weibull) - at(-negative)) / sqrt(2 * pi)
        surrogate = (location * torch.linalg.solve_triangular(tril, q.loc.unsqueeze(-1), upper=False).squeeze(-1)).sum(
            -1
        )
        if q.scale_tril.requires_grad:
            moved = location.unsqueeze(-1) * base.unsqueeze(-2)
            moved = moved.tril(-1) + torch.diag_embed(at(maxwell) - at(narrow))
            relative = torch.linalg.solve_triangular(tril, q.scale_tril.tril(), upper=False)
            surrogate = surrogate + (moved * relative).sum((-2, -1))
        return attach(costs, sum_to(surrogate, costs.dim()))


@torch.no_grad()
def replaced_costs(
    cost: Callable[[Tensor], Tensor], base: Tensor, points: Tensor, cost_shape: torch.Size, batch_ndim: int, memory: int
) -> Tensor:
    """Costs with the latents under each cost entry replaced one at a time.

    Args:
        base, points: samples ``[N, *c, *rest, *event]``, with ``batch_ndim`` dimensions before the event.
        cost_shape: ``[N, *c]``.
        memory: bytes of samples per call of the cost.

    Returns:
        ``[N, *c, prod(rest)]``: entry i is the cost with latent i of its group taken from ``points``.
    """
    shape, ndim = base.shape, len(cost_shape)
    sites = prod(shape[ndim:batch_ndim])
    grouped = (*cost_shape, sites, *shape[batch_ndim:])
    base, points = base.reshape(grouped), points.reshape(grouped)
    chunk = max(1, memory // (base.numel() * base.element_size()))
    parts = []
    for start in range(0, sites, chunk):
        chosen = torch.arange(start, min(start + chunk, sites), device=base.device)
        here = torch.arange(sites, device=base.device) == chosen[:, None]
        here = here.reshape(len(chosen), *(1,) * ndim, sites, *(1,) * (len(grouped) - ndim - 1))
        moved = torch.where(here, points, base).reshape(-1, *shape[1:])
        parts.append(cost(moved).reshape(len(chosen), *cost_shape))
    return torch.cat(parts).movedim(0, -1)

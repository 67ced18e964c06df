"""Control variates: functions with a known mean, subtracted from an estimator at the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from .cost import Cost
from .rows import attach, expand_rows, parameter, sum_to, with_leaves

Control = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ControlVariate:
    """Any function h with a known expectation (JMLR 21(132) 2020, section 7.4).

    The gradient estimator of f becomes ``G_f - beta (G_h - grad E h)`` at the same noise, unbiased for every beta.

    Args:
        function: ``h(x, q)``, costs of the same shape as those of f. Where h contains parameters of q, take them from
            this ``q``: the explicit dependence is then differentiated along with the samples (the third term of the
            delta method).
        mean: ``E_q h`` as a differentiable function of q, of the shape of one cost per row or broadcastable to it.
        coefficient: beta; None fits one for each parameter tensor, ``sum Cov(G_f, G_h) / sum Var(G_h)``, by regression
            on fresh samples (the same samples would bias the estimator).
        fresh_samples: how many of them.
    """

    function: Callable[[Tensor, Distribution], Tensor]
    mean: Callable[[Distribution], Tensor]
    coefficient: float | None = None
    fresh_samples: int = 25

    def __post_init__(self) -> None:
        _check_fresh(self.fresh_samples)

    def bind(self, cost: Cost, q: Distribution) -> tuple[Control, Tensor]:
        """h as a function of the samples, and its mean."""
        return lambda x: self.function(x, q), self.mean(q)


@dataclass(frozen=True)
class DeltaMethod:
    """The second-order Taylor expansion of f at the mean of q as control variate; f twice differentiable.

    The expansion point is held fixed while differentiating. By the product rule this equals the moving expansion with
    its explicit-parameter term taken in closed form, so nothing of that term is left to sample. For a quadratic f
    and beta = 1 the estimator is exact.

    Needs q with independent univariate latents and a known mean and variance. ``coefficient`` and ``fresh_samples``
    as in ``ControlVariate``.
    """

    coefficient: float | None = None
    fresh_samples: int = 25

    def __post_init__(self) -> None:
        _check_fresh(self.fresh_samples)

    def bind(self, cost: Cost, q: Distribution) -> tuple[Control, Tensor]:
        """The expansion as a function of the samples, and its mean."""
        if q.event_shape:
            raise ValueError(
                f"DeltaMethod needs independent univariate latents, {type(q).__name__} has event shape "
                f"{tuple(q.event_shape)}; pass a ControlVariate with your own function and mean"
            )
        center = q.mean.detach()[:1]  # all rows of q are alike
        value, slope, _ = _taylor(cost, center, torch.zeros_like(center))
        ndim = value.dim()

        def expansion(x: Tensor) -> Tensor:
            offset = x - center
            fixed = offset.detach()
            _, _, curved = _taylor(cost, center, fixed)
            linear = sum_to((slope + curved) * offset, ndim)
            return value + linear - sum_to(curved * fixed, ndim) / 2

        curvature = _hessian_diagonal(cost, center, ndim)
        return expansion, value + sum_to(slope * (q.mean - center) + curvature * q.variance / 2, ndim)


def _taylor(cost: Cost, center: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, gradient and Hessian times ``directions`` at ``center``, one row per direction, all detached."""
    with torch.enable_grad():
        x = center.expand_as(directions).detach().requires_grad_()
        costs = cost.through(x, "DeltaMethod")
        slope = torch.autograd.grad(costs.sum(), x, create_graph=True)[0]
        curved = torch.zeros_like(slope)
        if slope.requires_grad:  # a linear cost has no second derivative to ask for
            found = torch.autograd.grad((slope * directions).sum(), x, allow_unused=True)[0]
            curved = curved if found is None else found
    return costs.detach(), slope.detach(), curved.detach()


def _hessian_diagonal(cost: Cost, center: Tensor, ndim: int) -> Tensor:
    """Second derivatives of each cost in the latents under it, ``[1, *batch]``."""
    grouped = center.flatten(ndim) if center.dim() > ndim else center.unsqueeze(-1)
    basis = torch.eye(grouped.shape[-1], dtype=center.dtype, device=center.device)
    basis = basis.reshape(-1, *(1,) * (ndim - 1), grouped.shape[-1]).expand(-1, *grouped.shape[1:])
    _, _, curved = _taylor(cost, center, basis.reshape(-1, *center.shape[1:]))
    return (curved.reshape(basis.shape) * basis).sum(0).reshape(center.shape)


def _check_fresh(fresh_samples: int) -> None:
    if fresh_samples < 2:
        raise ValueError(f"fresh_samples must be at least 2 to fit a coefficient, got {fresh_samples}")


def sample_jacobians(
    rows: Callable[[Distribution], Tensor], q: Distribution, names: tuple[str, ...], num_samples: int
) -> dict[str, Tensor]:
    """Gradient of every row of ``rows(q with num_samples rows)``: name -> ``[num_samples, *parameter]``."""
    with torch.enable_grad():
        leafed, leaves = with_leaves(expand_rows(q, num_samples), names)
        total = rows(leafed).sum()
        if total.requires_grad:
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        else:
            found = (None,) * len(leaves)
    pairs = zip(leaves.items(), found)
    return {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs}


def controlled_rows(
    rows: Callable[[Cost, Distribution, int], Tensor],
    plain_rows: Callable[[Cost, Distribution, int], Tensor],
    control: ControlVariate | DeltaMethod,
    cost: Cost,
    q: Distribution,
    names: tuple[str, ...],
    seeds: tuple[int, int],
) -> Callable[[Distribution], Tensor]:
    """An estimator with its control variate: maps q with rows to ``[N, *c]``, whose gradient is the corrected one.

    Args:
        rows, plain_rows: the estimator, with and without its baseline, given (cost, q with rows, seed).
        seeds: of the noise shared by f and h, and of that of the regression.
    """

    def zero_mean(count: int, seed: int) -> dict[str, Tensor]:
        def difference(expanded: Distribution) -> Tensor:
            function, mean = control.bind(cost, expanded)
            return plain_rows(Cost(function, cost.batch_shape), expanded, seed) - mean

        return sample_jacobians(difference, q, names, count)

    def coefficients() -> dict[str, Tensor | float]:
        if control.coefficient is not None:
            return dict.fromkeys(names, control.coefficient)
        count, seed = control.fresh_samples, seeds[1]
        target = sample_jacobians(lambda expanded: plain_rows(cost, expanded, seed), q, names, count)
        return {name: _regression(target[name], h) for name, h in zero_mean(count, seed).items()}

    def corrected(expanded: Distribution) -> Tensor:
        result = rows(cost, expanded, seeds[0])
        beta = coefficients()
        for name, h in zero_mean(result.shape[0], seeds[0]).items():
            result = attach(result, -sum_to(beta[name] * h * parameter(expanded, name), result.dim()))
        return result

    return corrected


def _regression(target: Tensor, control: Tensor) -> Tensor:
    target, control = target - target.mean(0), control - control.mean(0)
    variance = control.square().sum()
    return torch.where(variance > 0, (target * control).sum() / variance, 0.0)

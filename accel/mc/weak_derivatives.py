"""Weak derivatives ``d q(x; theta) / d theta = c (p_plus(x) - p_minus(x))``, one entry per distribution.

Mohamed et al., JMLR 21(132) 2020, section 6 and Table 1 (Bernoulli, Poisson, Normal, Exponential, Gamma, Weibull, and
Uniform(0, theta) of section 6.3); the entries for Categorical, Binomial, Geometric, Laplace and the lower bound of a
Uniform follow from differentiating the density. An entry draws one base sample of q and, for each parameter, a coupled
pair of samples; ``minus`` or ``plus`` may be the base sample itself, which then costs no further evaluation of f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor
from torch import distributions as td

from .sampling import double_sided_maxwell, draw, exponential, random_sign, rayleigh, uniform

Generator = torch.Generator | None


@dataclass(frozen=True)
class Triple:
    """Constant and sample pair of one parameter.

    Attributes:
        parameter: the graph tensor the derivative is taken in, ``[*batch]``.
        constant: c, broadcastable to ``[*batch]``.
        plus, minus: samples of the two measures, ``[*batch, *event]``.
    """

    parameter: Tensor
    constant: Tensor | float
    plus: Tensor
    minus: Tensor


Draws = tuple[Tensor, list[Triple]]


def _bernoulli(q: td.Bernoulli, generator: Generator) -> Draws:
    base = draw(q, generator)
    return base, [Triple(q.probs, 1.0, torch.ones_like(base), torch.zeros_like(base))]


def _categorical(q: td.Categorical, generator: Generator) -> Draws:
    """For normalised probabilities, ``d q / d p_i = delta_i - q``: the minus part is q, hence the base sample."""
    base = draw(q, generator)
    probs = q.probs
    states = torch.arange(probs.shape[-1], device=base.device)
    return base, [Triple(probs[..., i], 1.0, states[i].expand_as(base), base) for i in range(len(states))]


def _one_hot(q: td.OneHotCategorical, generator: Generator) -> Draws:
    base = draw(q, generator)
    probs = q.probs
    states = torch.eye(probs.shape[-1], dtype=base.dtype, device=base.device)
    return base, [Triple(probs[..., i], 1.0, states[i].expand_as(base), base) for i in range(len(states))]


def _binomial(q: td.Binomial, generator: Generator) -> Draws:
    base, count = draw(q, generator), q.total_count
    fewer = draw(td.Binomial((count - 1).clamp(min=0), probs=q.probs.detach(), validate_args=False), generator)
    return base, [Triple(q.probs, count, torch.minimum(fewer + 1, count), fewer)]


def _geometric(q: td.Geometric, generator: Generator) -> Draws:
    """torch counts the failures, from 0: ``(1/p) E[f(X) - f(X + X' + 1)]``."""
    base, other = draw(q, generator), draw(q, generator)
    return base, [Triple(q.probs, 1 / q.probs.detach(), base, base + other + 1)]


def _poisson(q: td.Poisson, generator: Generator) -> Draws:
    base = draw(q, generator)
    return base, [Triple(q.rate, 1.0, base + 1, base)]


def _normal(q: td.Normal, generator: Generator) -> Draws:
    """The base sample is the minus part of the scale: a uniform times a double-sided Maxwell variate is N(0, 1)."""
    loc, scale = q.loc.detach(), q.scale.detach()
    weibull, maxwell = rayleigh(loc, generator), double_sided_maxwell(loc, generator)
    base = loc + scale * uniform(loc, generator) * maxwell
    return base, [
        Triple(q.loc, 1 / (scale * sqrt(2 * pi)), loc + scale * weibull, loc - scale * weibull),
        Triple(q.scale, 1 / scale, loc + scale * maxwell, base),
    ]


def _exponential(q: td.Exponential, generator: Generator) -> Draws:
    rate = q.rate.detach()
    base = exponential(rate, generator) / rate
    return base, [Triple(q.rate, 1 / rate, base, base + exponential(rate, generator) / rate)]


def _gamma(q: td.Gamma, generator: Generator) -> Draws:
    _refuse(q, "concentration")
    base, rate = draw(q, generator), q.rate.detach()
    later = base + exponential(rate, generator) / rate
    return base, [Triple(q.rate, q.concentration / rate, base, later)]


def _weibull(q: td.Weibull, generator: Generator) -> Draws:
    """With ``theta = scale^-concentration``, x^concentration is Exponential(theta); autograd links theta to scale."""
    _refuse(q, "concentration")
    power = q.concentration
    theta = q.scale**-power
    rate = theta.detach()
    first = exponential(rate, generator) / rate
    second = first + exponential(rate, generator) / rate
    base = first ** (1 / power)
    return base, [Triple(theta, 1 / rate, base, second ** (1 / power))]


def _laplace(q: td.Laplace, generator: Generator) -> Draws:
    loc, scale = q.loc.detach(), q.scale.detach()
    first, second = exponential(loc, generator), exponential(loc, generator)
    sign = random_sign(loc, generator)
    base = loc + sign * scale * first
    return base, [
        Triple(q.loc, 0.5 / scale, loc + scale * first, loc - scale * first),
        Triple(q.scale, 1 / scale, loc + sign * scale * (first + second), base),
    ]


def _uniform(q: td.Uniform, generator: Generator) -> Draws:
    base, low, high = draw(q, generator), q.low.detach(), q.high.detach()
    density = 1 / (high - low)
    return base, [Triple(q.high, density, high, base), Triple(q.low, density, base, low)]


def _refuse(q: td.Distribution, name: str) -> None:
    if getattr(q, name).requires_grad:
        raise ValueError(
            f"MeasureValued has no weak derivative in the {name} of a {type(q).__name__}; detach it, or use Pathwise "
            "or ScoreFunction for this parameter"
        )


TABLE: dict[type[td.Distribution], Callable[[td.Distribution, Generator], Draws]] = {
    td.Bernoulli: _bernoulli,
    td.Categorical: _categorical,
    td.OneHotCategorical: _one_hot,
    td.Binomial: _binomial,
    td.Geometric: _geometric,
    td.Poisson: _poisson,
    td.Normal: _normal,
    td.Exponential: _exponential,
    td.Gamma: _gamma,
    td.Weibull: _weibull,
    td.Laplace: _laplace,
    td.Uniform: _uniform,
}


def weak_derivatives(q: td.Distribution, generator: Generator) -> Draws:
    """Base sample of q and the triples of its parameters.

    Raises:
        ValueError: no weak derivative is known for q, or for one of its parameters that requires a gradient.
    """
    for family in type(q).__mro__:
        if family in TABLE:
            return TABLE[family](q, generator)
    known = ", ".join(family.__name__ for family in TABLE)
    raise ValueError(
        f"MeasureValued knows no weak derivative of {type(q).__name__}; it knows {known} and MultivariateNormal; "
        "use Pathwise or ScoreFunction"
    )

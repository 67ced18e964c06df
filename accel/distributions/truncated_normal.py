"""The normal distribution truncated to an interval, accurate in the far tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from accel.distributions.implicit import GeneratorSampling, reparameterize

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class TruncatedNormal(GeneratorSampling, Distribution):
    """Normal(loc, scale) conditioned on low <= z <= high, bounds possibly infinite.

    Samples are differentiable in all four parameters, to second order and beyond. Work is done in float64 on the logs
    of tail probabilities, so an interval 30 standard deviations away is as good as one around the mean. float32 or
    float64.

    Args:
        loc, scale: of the normal before truncation.
        low, high: the interval, low < high.

    Raises:
        ValueError: scale <= 0, low >= high or a NaN, with `validate_args`.
    """

    has_rsample = True
    arg_constraints: ClassVar = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -math.inf,
        high: Tensor | float = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ValueError("TruncatedNormal: low must be below high everywhere; swap them or widen the interval")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Sequence[int], _instance: TruncatedNormal | None = None) -> TruncatedNormal:
        new = self._get_checked_instance(TruncatedNormal, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(torch.Size(batch_shape)))
        super(TruncatedNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`, inside [low, high]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        left, right = (bound.expand(shape) for bound in self._standard_bounds())
        u = torch.rand(shape, dtype=torch.float64, device=left.device, generator=generator)
        with torch.no_grad():
            standard = _quantile(u, left, right)
        standard = reparameterize(standard, [left, right], [_in_left, _in_right])
        value = (self.loc + self.scale * standard).to(self.loc.dtype)
        # Rounding to the dtype may step over a bound, which must not stop the gradient.
        return value + (value.detach().clamp(self.low.detach(), self.high.detach()) - value.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; -inf outside [low, high] where samples are not validated."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value.double() - self.loc) / self.scale
        log_density = -0.5 * z * z - HALF_LOG_2PI - self.scale.log() - _log_mass(*self._standard_bounds())
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_density, -math.inf).to(self.loc.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """P(z <= value)."""
        left, right = self._standard_bounds()
        z = torch.minimum(torch.maximum((value.double() - self.loc) / self.scale, left), right)
        return (_log_mass(left, z) - _log_mass(left, right)).exp().to(self.loc.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at `value` in [0, 1]; not differentiable, use `rsample` for gradients."""
        with torch.no_grad():
            standard = _quantile(value.double(), *self._standard_bounds())
            return torch.clamp((self.loc + self.scale * standard).to(self.loc.dtype), self.low, self.high)

    @property
    def mean(self) -> Tensor:
        first, _ = self._standard_moments()
        return (self.loc + self.scale * first).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        first, second = self._standard_moments()
        return (self.scale.square() * (second - first.square())).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        _, second = self._standard_moments()
        log_mass = _log_mass(*self._standard_bounds())
        return (log_mass + self.scale.log() + HALF_LOG_2PI + 0.5 * second).to(self.loc.dtype)

    def _standard_bounds(self) -> tuple[Tensor, Tensor]:
        """(low - loc) / scale and (high - loc) / scale, float64; an infinite bound has no gradient."""
        loc, scale = self.loc.double(), self.scale.double()
        return tuple(
            torch.where(bound.isinf(), bound.detach().double(), (torch.where(bound.isinf(), 0, bound) - loc) / scale)
            for bound in (self.low, self.high)
        )

    def _standard_moments(self) -> tuple[Tensor, Tensor]:
        """E xi and E xi^2 of the standardised variable."""
        left, right = self._standard_bounds()
        log_mass = _log_mass(left, right)
        at_left, at_right = (_log_density(bound, log_mass) for bound in (left, right))
        second = 1 + _finite(left) * at_left - _finite(right) * at_right
        return at_left - at_right, second


def _log_density(x: Tensor, log_mass: Tensor) -> Tensor:
    x = _finite(x)
    return (-0.5 * x * x - HALF_LOG_2PI - log_mass).exp()


def _finite(x: Tensor) -> Tensor:
    """Infinite bounds replaced by one where every density is 0 in float64, so that 0 times it is 0."""
    return x.clamp(-1e100, 1e100)


def _log_mass(left: Tensor, right: Tensor) -> Tensor:
    """log(Phi(right) - Phi(left)), mirrored to the side where the two are small."""
    mirror = left + right > 0
    lower, upper = torch.where(mirror, -right, left), torch.where(mirror, -left, right)
    log_upper = torch.special.log_ndtr(upper)
    ratio = torch.special.log_ndtr(_finite(lower)) - log_upper
    return log_upper + (-ratio.exp()).log1p()


def _quantile(u: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The standardised value below which a fraction u of the mass between left and right lies."""
    mirror = left + right > 0
    lower, upper = torch.where(mirror, -right, left), torch.where(mirror, -left, right)
    u = torch.where(mirror, 1 - u, u)
    log_p = torch.logaddexp((-u).log1p() + torch.special.log_ndtr(lower), u.log() + torch.special.log_ndtr(upper))
    result = torch.minimum(torch.maximum(_inverse_log_ndtr(log_p), lower), upper)
    return torch.where(mirror, -result, result)


def _inverse_log_ndtr(log_p: Tensor) -> Tensor:
    """x with log Phi(x) = log_p: Newton steps on log Phi, which is concave, from the tail's leading term."""
    x = torch.where(log_p > -10, torch.special.ndtri(log_p.exp()), -(-2 * log_p).clamp(min=0).sqrt())
    for _ in range(4):
        log_phi = torch.special.log_ndtr(x)
        step = (log_phi - log_p) * (log_phi + 0.5 * x * x + HALF_LOG_2PI).exp()
        x = torch.where(log_p > -10, x, x - step)
    return x


def _in_left(xi: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(1 - F(xi)) density(left) / density(xi): the quantile follows the left bound."""
    left = _finite(left)
    return (_log_mass(xi, right) - _log_mass(left, right) + 0.5 * (xi - left) * (xi + left)).exp()


def _in_right(xi: Tensor, left: Tensor, right: Tensor) -> Tensor:
    right = _finite(right)
    return (_log_mass(left, xi) - _log_mass(left, right) + 0.5 * (xi - right) * (xi + right)).exp()

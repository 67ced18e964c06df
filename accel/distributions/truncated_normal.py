"""The normal distribution truncated to an interval, accurate in the far tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from accel.distributions.implicit import GeneratorSampling, narrow, widen
from accel.distributions.normal_segments import fall, length_of, mass, mills, moments

FARTHEST = 1e100  # offsets beyond are taken for this one, where every density is 0 and its square still a number


class TruncatedNormal(GeneratorSampling, Distribution):
    """Normal(loc, scale) conditioned on low <= z <= high, bounds possibly infinite.

    Samples are differentiable in all four parameters, to second order and beyond. Work is done in float64 from the
    point of the interval nearest to loc, so an interval that is 1e4 standard deviations away, or 1e-20 of one wide, is
    as good as one around the mean. float32 or float64.

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
        parameters = [widen(parameter).expand(shape) for parameter in (self.loc, self.scale, self.low, self.high)]
        u = torch.rand(shape, dtype=torch.float64, device=self.loc.device, generator=generator)
        with torch.no_grad():
            offset = _quantile(u.clamp(min=2.0**-54), *parameters)
        value = _TruncatedSample.apply(offset, *parameters)
        return narrow(value, self.loc.dtype, self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; -inf outside [low, high] where samples are not validated."""
        if self._validate_args:
            self._validate_sample(value)
        interval = _Interval(*self._wide())
        t = (widen(value) - interval.mode) / interval.scale
        log_density = -t * (interval.slope + 0.5 * t) - (interval.scale * interval.mass).log()
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_density, -math.inf).to(self.loc.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """P(z <= value)."""
        interval = _Interval(*self._wide())
        value = torch.minimum(torch.maximum(widen(value), self.low.double()), self.high.double())
        offset = (value - interval.mode) / interval.scale
        lower = offset < 0
        t = torch.where(lower, -offset, offset).clamp(max=FARTHEST)
        start, rest = interval.start + t, torch.where(lower, interval.below - t, 0.0).clamp(min=0)
        tail = mass(start, rest) * (-fall(interval.start, t)).exp()
        part = torch.where(lower, tail, mass(interval.start, interval.below) + mass(interval.start, t))
        return (part / interval.mass).to(self.loc.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at `value` in [0, 1]; not differentiable, use `rsample` for gradients."""
        with torch.no_grad():
            loc, scale, low, high = self._wide()
            offset = _quantile(value.double(), loc, scale, low, high)
            return narrow(_Interval(loc, scale, low, high).mode + scale * offset, self.loc.dtype, low, high)

    @property
    def mean(self) -> Tensor:
        interval = _Interval(*self._wide())
        return (interval.mode + interval.scale * interval.offsets()[0]).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        interval = _Interval(*self._wide())
        first, second, _ = interval.offsets()
        return (interval.scale.square() * (second - first.square())).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        interval = _Interval(*self._wide())
        _, second, distance = interval.offsets()
        spread = interval.start * distance + 0.5 * second
        return ((interval.scale * interval.mass).log() + spread).to(self.loc.dtype)

    def _wide(self) -> tuple[Tensor, ...]:
        return tuple(widen(parameter) for parameter in (self.loc, self.scale, self.low, self.high))


class _Interval:
    """[low, high] seen from the mode of the density inside it, in units of the scale.

    Attributes:
        mode: the point of the interval nearest to loc.
        slope: (mode - loc) / scale; start its absolute value. 0 where loc lies inside.
        below, above: distances from the mode to the bounds; one of them is 0 where loc lies outside.
    """

    def __init__(self, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> None:
        self.scale = scale
        self.mode = torch.where(loc < low, low, torch.where(loc > high, high, loc))
        self.slope = (self.mode - loc) / scale
        self.start = torch.where(loc > high, -self.slope, self.slope)
        self.below, self.above = self._distance(low, -1), self._distance(high, 1)

    def _distance(self, bound: Tensor, sign: int) -> Tensor:
        """From the mode to the bound; an infinite one has no gradient."""
        infinite = bound.isinf()
        distance = sign * (torch.where(infinite, 0.0, bound) - self.mode) / self.scale
        return torch.where(infinite, math.inf, distance)

    @property
    def mass(self) -> Tensor:
        """That of the interval, relative to the standard density at the mode."""
        return mass(self.start, self.below) + mass(self.start, self.above)

    def offsets(self) -> tuple[Tensor, Tensor, Tensor]:
        """E t, E t^2 and E |t| of the offset t from the mode."""
        below, above = moments(self.start, self.below), moments(self.start, self.above)
        whole = below[0] + above[0]
        return (above[1] - below[1]) / whole, (above[2] + below[2]) / whole, (above[1] + below[1]) / whole


def _quantile(u: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The offset from the mode, in units of the scale, below which a fraction u of the mass lies."""
    interval = _Interval(loc, scale, low, high)
    start = interval.start
    below, above = mass(start, interval.below), mass(start, interval.above)
    whole = below + above
    lower = u * whole < below
    longest = torch.where(lower, interval.below, interval.above)
    past = mills(start + longest) * (-fall(start, longest)).exp()
    past = torch.where(longest.isinf(), 0.0, past)
    inner = torch.where(lower, below - u * whole, u * whole - below).clamp(min=0)
    outer = torch.where(lower, u, 1 - u) * whole + past
    length = length_of(start, inner, outer, longest)
    return torch.where(lower, -length, length)


class _TruncatedSample(torch.autograd.Function):
    """mode + scale * offset, with the derivatives of a fixed quantile in loc, scale, low and high.

    With N and O the moments, about the sample and relative to the density there, of what lies between it and the mode
    and past the mode, and of what lies beyond it, dF/dphi = F (1 - F) (E[score | below] - E[score | above]) is made of
    sums of positive terms.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(offset, loc, scale, low, high):
        return _Interval(loc, scale, low, high).mode + scale * offset

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    def backward(ctx, grad):
        value, offset, loc, scale, low, high = ctx.saved_tensors
        interval = _Interval(loc, scale, low, high)
        moving = (value - interval.mode) / scale
        offset = offset + (moving - moving.detach())  # its own digits, with the sample's graph
        upper = offset >= 0
        t = torch.where(upper, offset, -offset)
        outward = torch.where(upper, interval.above, interval.below)
        other = torch.where(upper, interval.below, interval.above)
        rest, here = (outward - t).clamp(min=0), interval.start + t
        outer, inner, past = moments(here, rest), moments(-here, t), moments(interval.start, other)
        rise = fall(interval.start, t).exp()
        zeroth = inner[0] + rise * past[0]
        first = inner[1] + rise * (past[1] + t * past[0])
        second = inner[2] + rise * (past[2] + 2 * t * past[1] + t * t * past[0])
        whole = outer[0] + zeroth
        in_loc = (zeroth * outer[1] + outer[0] * first) / whole
        in_scale = 2 * here * in_loc + (zeroth * outer[2] - outer[0] * second) / whole
        in_near = outer[0] / whole * rise * _density(interval.start, other)
        in_far = zeroth / whole * _density(here, rest)
        in_low, in_high = torch.where(upper, in_near, in_far), torch.where(upper, in_far, in_near)
        in_scale = torch.where(upper, in_scale, -in_scale)
        return None, *(grad * slope for slope in (in_loc, in_scale, in_low, in_high))


def _density(start: Tensor, length: Tensor) -> Tensor:
    """exp(-fall), 0 without a gradient where the end is at infinity."""
    infinite = length.isinf()
    return torch.where(infinite, 0.0, (-fall(start, torch.where(infinite, 0.0, length))).exp())

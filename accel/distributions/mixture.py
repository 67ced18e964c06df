"""Mixtures with reparameterized samples: gradients in the weights and in the components' parameters."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from accel.distributions.implicit import newton_attach


class MixtureSameFamily(torch.distributions.MixtureSameFamily):
    """`torch.distributions.MixtureSameFamily` with `rsample`, for univariate and for factorised components.

    The components are univariate, on any intervals, or `Independent` of univariate ones on one interval, with `cdf` and
    `log_prob` differentiable in the value and the parameters. The standardisation is the distributional transform
    (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498, section 3.3): S_d(z) = sum_k w_k(z_<d) F_kd(z_d), w_k(z_<d) the
    posterior weights given the coordinates before d. Its Jacobian is lower triangular. Derivatives of samples are right
    to second order where the CDF's are; a third one raises RuntimeError.
    """

    @property
    def has_rsample(self) -> bool:
        base = self._base()
        return base is not None and self._one_support(base)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _UnionOfSupports(self.component_distribution.support)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A detached sample of shape `sample_shape + batch_shape + event_shape`."""
        sample_shape = torch.Size(sample_shape)
        with torch.no_grad():
            shape = sample_shape + self.batch_shape
            probs = self.mixture_distribution.probs.expand(*shape, -1)
            chosen = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator).view(*shape, 1)
            every = _sample_components(self.component_distribution, sample_shape, generator)
            index = chosen.reshape(*chosen.shape, *[1] * len(self.event_shape)).expand(*chosen.shape, *self.event_shape)
            return every.gather(len(shape), index).squeeze(len(shape))

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape + event_shape`.

        Raises:
            NotImplementedError: components that are neither univariate nor factorised, or discrete, or without a CDF,
                or vectors of different supports: where one coordinate leaves a support the next ones jump, which no
                gradient of a sample sees.
        """
        base = self._base()
        if base is None or not self._one_support(base):
            raise NotImplementedError(
                "MixtureSameFamily.rsample: components must be univariate, or Independent and of one support, "
                f"continuous and with a cdf, got {self.component_distribution}; use the score function "
                "(accel.mc.ScoreFunction) instead"
            )
        sample = self.sample(sample_shape, generator)
        events = len(self.event_shape)
        log_weights = self.mixture_distribution.logits.log_softmax(-1).unsqueeze(-1)  # [..., K, 1]

        def per_component(z: Tensor) -> Tensor:
            return z.reshape(sample.shape).unsqueeze(-1 - events)

        def flatten(value: Tensor) -> Tensor:
            return value.reshape(*value.shape[: value.dim() - events], -1)

        def posterior(log_prob: Tensor) -> Tensor:
            before = torch.cat([torch.zeros_like(log_prob[..., :1]), log_prob[..., :-1].cumsum(-1)], dim=-1)
            return (log_weights + before).softmax(-2)

        def standardize(z: Tensor) -> Tensor:
            z = per_component(z)
            return (posterior(flatten(base.log_prob(z))) * flatten(base.cdf(z))).sum(-2)

        def jacobian() -> Tensor:
            """dS/dz [..., D, D]: sum_k w_kd (F_kd - S_d) s_kj below the diagonal, s the scores; on it the density."""
            size = (*sample.shape[: sample.dim() - events], log_weights.shape[-2], *self.event_shape)
            with torch.enable_grad():
                point = per_component(sample).expand(size).clone().requires_grad_()
                log_prob = base.log_prob(point)
                score = flatten(torch.autograd.grad(log_prob.sum() + 0 * point.sum(), point)[0])  # a Uniform's is 0
            log_prob, cdf = flatten(log_prob.detach()), flatten(base.cdf(point.detach()).detach())
            weights = posterior(log_prob).detach()
            centred = cdf - (weights * cdf).sum(-2, keepdim=True)
            below = torch.einsum("...kd,...kj->...dj", weights * centred, score).tril(-1)
            return below + torch.diag_embed((weights * log_prob.exp()).sum(-2))

        inverse = functools.partial(torch.linalg.solve_triangular, jacobian(), upper=False)
        flat = newton_attach(standardize, flatten(sample), lambda residual: inverse(residual.unsqueeze(-1)).squeeze(-1))
        return flat.reshape(sample.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; a component contributes nothing outside its own support."""
        base = self._base()
        if base is None:
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        events = len(self.event_shape)
        log_prob = base.log_prob(value.unsqueeze(-1 - events))
        log_prob = log_prob.flatten(log_prob.dim() - events).sum(-1) if events else log_prob
        return torch.logsumexp(self.mixture_distribution.logits.log_softmax(-1) + log_prob, -1)

    def cdf(self, value: Tensor) -> Tensor:
        """P(z <= value) of a univariate mixture; 0 or 1 of a component whose support lies above or below."""
        base = self._base()
        if base is None or self.event_shape:
            return super().cdf(value)
        if self._validate_args:
            self._validate_sample(value)
        return (self.mixture_distribution.probs * base.cdf(value.unsqueeze(-1))).sum(-1)

    def _one_support(self, base: _Everywhere) -> bool:
        """Whether the components are univariate, or vectors with the same bounds in every component."""
        if self.event_shape.numel() == 1:
            return True
        bounds = [bound.expand(base.shape) for bound in base.bounds()]
        dim = -1 - len(self.event_shape)
        return all(bool((bound == bound.narrow(dim, 0, 1)).all()) for bound in bounds)

    def _base(self) -> _Everywhere | None:
        """The univariate distribution behind the components, or None where they do not fit."""
        component = self.component_distribution
        base = component
        while isinstance(base, Independent):
            base = base.base_dist
        fits = not base.event_shape and not base.support.is_discrete and type(base).cdf is not Distribution.cdf
        return _Everywhere(base) if fits else None


class _UnionOfSupports(constraints.MixtureSameFamilyConstraint):
    """A value lies in the support of a mixture where it lies in that of any component (torch asks for all)."""

    def check(self, value: Tensor) -> Tensor:
        return self.base_constraint.check(value.unsqueeze(-1 - self.event_dim)).any(-1)


class _Everywhere:
    """Log density and CDF of a univariate distribution on the whole line, also outside its support.

    Outside they are -inf, and 0 or 1; the distribution itself, which may give NaN or raise there, is asked inside only.
    """

    def __init__(self, base: Distribution) -> None:
        self.base, self.shape = _unvalidated(base), base.batch_shape

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The ends of the support, infinite where there is none, without a gradient."""
        support = self.base.support
        ends = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
        return tuple(
            end.detach() if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64, device="cpu")
            for end in ends
        )

    def log_prob(self, value: Tensor) -> Tensor:
        inside, point, _ = self._inside(value)
        return torch.where(inside, self.base.log_prob(point), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        inside, point, high = self._inside(value)
        return torch.where(inside, self.base.cdf(point), (value >= high).to(value.dtype))

    def _inside(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the value lies inside, the value or else a point of the open support, and its upper end."""
        low, high = (bound.to(value) for bound in self.bounds())
        inside = (value >= low) & (value <= high)
        middle = torch.where(high.isinf(), low + 1, (low + high) / 2)
        middle = torch.where(low.isinf(), torch.where(high.isinf(), 0.0, high - 1), middle)
        first = low.nextafter(torch.full_like(low, math.inf))
        last = high.nextafter(torch.full_like(high, -math.inf))
        first, last = torch.where(low.isinf(), low, first), torch.where(high.isinf(), high, last)
        # the density at an end may be 0 by convention: the end belongs to the inside, by one step of the dtype
        return inside, torch.where(inside, torch.minimum(torch.maximum(value, first), last), middle), high


def _unvalidated(distribution: Distribution) -> Distribution:
    """A copy that does not validate values, nor do the distributions in it."""
    bare = copy.copy(distribution)
    bare._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, Distribution):
            setattr(bare, name, _unvalidated(value))
    return bare


def _sample_components(component: Distribution, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """`component.sample(shape)` under the generator, also where its class takes none (torch's own)."""
    if generator is None:
        return component.sample(shape)
    if "generator" in inspect.signature(component.sample).parameters:
        return component.sample(shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[] if generator.device.type == "cpu" else [generator.device]):
        torch.manual_seed(seed)
        return component.sample(shape)

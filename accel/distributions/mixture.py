"""Mixtures with reparameterized samples: gradients in the weights and in the components' parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from accel.distributions.implicit import newton_attach


class MixtureSameFamily(torch.distributions.MixtureSameFamily):
    """`torch.distributions.MixtureSameFamily` with `rsample`, for univariate and for factorised components.

    The components are univariate, or `Independent` of univariate ones, with `cdf` and `log_prob` differentiable in the
    value and the parameters. The standardisation is the distributional transform (Figurnov, Mohamed, Mnih 2018, arXiv
    1805.08498, section 3.3): S_d(z) = sum_k w_k(z_<d) F_kd(z_d), w_k(z_<d) the posterior weights given the coordinates
    before d. Its Jacobian is lower triangular. Derivatives of samples are right to second order where the CDF's are; a
    third one raises RuntimeError.
    """

    @property
    def has_rsample(self) -> bool:
        return self._base() is not None

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
            NotImplementedError: components that are neither univariate nor factorised, or discrete, or without a CDF.
        """
        base = self._base()
        if base is None:
            raise NotImplementedError(
                "MixtureSameFamily.rsample: components must be univariate or Independent, continuous and with a cdf, "
                f"got {self.component_distribution}; use the score function (accel.mc.ScoreFunction) instead"
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
                score = flatten(torch.autograd.grad(log_prob.sum(), point)[0])
            log_prob, cdf = flatten(log_prob.detach()), flatten(base.cdf(point.detach()).detach())
            weights = posterior(log_prob).detach()
            centred = cdf - (weights * cdf).sum(-2, keepdim=True)
            below = torch.einsum("...kd,...kj->...dj", weights * centred, score).tril(-1)
            return below + torch.diag_embed((weights * log_prob.exp()).sum(-2))

        inverse = functools.partial(torch.linalg.solve_triangular, jacobian(), upper=False)
        flat = newton_attach(standardize, flatten(sample), lambda residual: inverse(residual.unsqueeze(-1)).squeeze(-1))
        return flat.reshape(sample.shape)

    def _base(self) -> Distribution | None:
        """The univariate distribution behind the components, or None where they do not fit."""
        component = self.component_distribution
        base = component
        while isinstance(base, Independent):
            base = base.base_dist
        fits = not base.event_shape and not base.support.is_discrete and type(base).cdf is not Distribution.cdf
        return base if fits else None


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

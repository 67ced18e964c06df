"""Beta, Dirichlet, StudentT and FisherSnedecor, all through the derivative of the logit of a Beta sample.

Samples are formed from the logarithms of two or more Gamma samples, which do not underflow. The gradient depends on the
sample alone, not on the Gammas that made it: it is their conditional expectation, so its variance is lower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.distributions.gamma import log_standard_gamma
from accel.distributions.implicit import GeneratorSampling, narrow, narrow_exp, reparameterize, widen
from accel.kernels.beta_gradient import beta_gradient
from accel.kernels.student_t_gradient import student_t_gradient


class Beta(GeneratorSampling, torch.distributions.Beta):
    """`torch.distributions.Beta(concentration1, concentration0)` with accurate gradients of its samples.

    dx/da = -(dI_x(a, b)/da) / p(x), to 1e-8 relative in float64 (1e-4 in float32: rounding of x is the larger part) for
    concentrations in [1e-3, 1e5]; second derivatives exist.
    """

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`, inside the open interval (0, 1)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        one, zero = widen(self.concentration1).expand(shape), widen(self.concentration0).expand(shape)
        dtype = self.concentration1.dtype
        limits = torch.finfo(dtype)
        logit = reparameterize(_sample_logit(one, zero, generator), [one, zero], [_logit_in_one, _logit_in_zero])
        return narrow(logit.sigmoid(), dtype, limits.tiny, 1 - limits.eps / 2)


class Dirichlet(GeneratorSampling, torch.distributions.Dirichlet):
    """`torch.distributions.Dirichlet(concentration)` with accurate gradients of its samples.

    d x_i / d alpha_j = x_j g_j (delta_ij - x_i), g_j the derivative of the logit of x_j ~ Beta(alpha_j, sum of the
    others): alpha_j moves x_j at its quantile and scales the other coordinates, whose proportions do not depend on it.
    """

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape + event_shape`, on the simplex."""
        shape = self._extended_shape(torch.Size(sample_shape))
        concentration = widen(self.concentration).expand(shape)
        sample = _DirichletSample.apply(log_standard_gamma(concentration, generator).log_softmax(-1), concentration)
        return narrow(sample, self.concentration.dtype, low=torch.finfo(self.concentration.dtype).tiny)


class StudentT(GeneratorSampling, torch.distributions.StudentT):
    """`torch.distributions.StudentT(df, loc, scale)` with accurate gradients of its samples.

    The derivative in df is that at a fixed quantile of the t distribution, a function of the sample alone.
    """

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        df, loc, scale = (widen(parameter).expand(shape) for parameter in (self.df, self.loc, self.scale))
        normal = torch.randn(shape, dtype=torch.float64, device=df.device, generator=generator)
        log_chi2 = log_standard_gamma(df / 2, generator)
        standard = normal * (0.5 * ((df.detach() / 2).log() - log_chi2)).exp()
        standard = reparameterize(narrow(standard, torch.float64), [df], [_student_in_df])
        return narrow(loc + scale * standard, self.df.dtype)


class FisherSnedecor(GeneratorSampling, torch.distributions.FisherSnedecor):
    """`torch.distributions.FisherSnedecor(df1, df2)` with accurate gradients of its samples."""

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        df1, df2 = widen(self.df1).expand(shape), widen(self.df2).expand(shape)
        log_ratio = (df2.log() - df1.log()).detach() + _sample_logit(df1 / 2, df2 / 2, generator)
        return narrow_exp(reparameterize(log_ratio, [df1, df2], [_fisher_in_df1, _fisher_in_df2]), self.df1.dtype)


def _sample_logit(one: Tensor, zero: Tensor, generator: torch.Generator | None) -> Tensor:
    """The logit of a Beta(one, zero) sample, float64, no gradient: it keeps what x near 0 or 1 loses."""
    return log_standard_gamma(one, generator) - log_standard_gamma(zero, generator)


def _logit_in_one(y: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    return beta_gradient(one, zero, y)


def _logit_in_zero(y: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    return -beta_gradient(zero, one, -y)


def _fisher_in_df1(log_x: Tensor, df1: Tensor, df2: Tensor) -> Tensor:
    """x = (df2 / df1) exp(y), y the logit of Beta(df1 / 2, df2 / 2)."""
    return 0.5 * beta_gradient(df1 / 2, df2 / 2, log_x + df1.log() - df2.log()) - 1 / df1


def _fisher_in_df2(log_x: Tensor, df1: Tensor, df2: Tensor) -> Tensor:
    return 1 / df2 - 0.5 * beta_gradient(df2 / 2, df1 / 2, df2.log() - df1.log() - log_x)


def _student_in_df(t: Tensor, df: Tensor) -> Tensor:
    return student_t_gradient(df, t)


class _DirichletSample(torch.autograd.Function):
    """exp of the log sample; its backward is a vector-Jacobian product over the last dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_sample, concentration):
        return log_sample.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    def backward(ctx, grad):
        x, log_x, alpha = ctx.saved_tensors
        moving = x.clamp(min=torch.finfo(x.dtype).tiny).log()
        log_x = log_x + (moving - moving.detach())  # the log sample comes without a graph, second derivatives need one
        others = alpha.sum(-1, keepdim=True) - alpha
        slope = beta_gradient(alpha, others, log_x - (-x).log1p())
        moved = grad - (x * grad).sum(-1, keepdim=True)
        return None, torch.where(others > 0, x * slope * moved, 0.0)

"""Beta, Dirichlet, StudentT and FisherSnedecor, all through the derivative of the logit of a Beta sample.

Samples are formed from the logarithms of two or more Gamma samples, which do not underflow. The gradient depends on the
sample alone, not on the Gammas that made it: it is their conditional expectation, so its variance is lower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.distributions.gamma import log_standard_gamma
from accel.distributions.implicit import GeneratorSampling, reparameterize
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
        one, zero = self.concentration1.expand(shape), self.concentration0.expand(shape)
        limits = torch.finfo(one.dtype)
        sample = _sample_logit(one, zero, generator).sigmoid().to(one.dtype).clamp(limits.tiny, 1 - limits.eps / 2)
        return reparameterize(sample, [one, zero], [_beta_in_one, _beta_in_zero])


class Dirichlet(GeneratorSampling, torch.distributions.Dirichlet):
    """`torch.distributions.Dirichlet(concentration)` with accurate gradients of its samples.

    d x_i / d alpha_j = x_j g_j (delta_ij - x_i), g_j the derivative of the logit of x_j ~ Beta(alpha_j, sum of the
    others): alpha_j moves x_j at its quantile and scales the other coordinates, whose proportions do not depend on it.
    """

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape + event_shape`, on the simplex."""
        shape = self._extended_shape(torch.Size(sample_shape))
        concentration = self.concentration.expand(shape)
        sample = log_standard_gamma(concentration, generator).softmax(-1).to(concentration.dtype)
        return _DirichletSample.apply(sample.clamp(min=torch.finfo(sample.dtype).tiny), concentration)


class StudentT(GeneratorSampling, torch.distributions.StudentT):
    """`torch.distributions.StudentT(df, loc, scale)` with accurate gradients of its samples.

    The derivative in df is that at a fixed quantile of the t distribution, a function of the sample alone.
    """

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        df = self.df.expand(shape)
        normal = torch.randn(shape, dtype=torch.float64, device=df.device, generator=generator)
        log_chi2 = log_standard_gamma(df / 2, generator)
        sample = normal * (0.5 * ((df.detach().double() / 2).log() - log_chi2)).exp()
        largest = torch.finfo(df.dtype).max
        standard = reparameterize(sample.clamp(-largest, largest).to(df.dtype), [df], [_student_in_df])
        return self.loc + self.scale * standard


class FisherSnedecor(GeneratorSampling, torch.distributions.FisherSnedecor):
    """`torch.distributions.FisherSnedecor(df1, df2)` with accurate gradients of its samples."""

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A differentiable sample of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        df1, df2 = self.df1.expand(shape), self.df2.expand(shape)
        log_ratio = df2.detach().double().log() - df1.detach().double().log()
        limits = torch.finfo(df1.dtype)
        sample = (log_ratio + _sample_logit(df1 / 2, df2 / 2, generator)).exp().clamp(limits.tiny, limits.max)
        return reparameterize(sample.to(df1.dtype), [df1, df2], [_fisher_in_df1, _fisher_in_df2])


def _sample_logit(one: Tensor, zero: Tensor, generator: torch.Generator | None) -> Tensor:
    return log_standard_gamma(one, generator) - log_standard_gamma(zero, generator)


# The derivatives below are computed in float64: a float32 logit has lost what tells large concentrations apart.


def _beta_in_one(x: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    x = x.double()
    return (x * (1 - x) * beta_gradient(one.double(), zero.double(), x.log() - (-x).log1p())).to(one.dtype)


def _beta_in_zero(x: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    x = x.double()
    return (-x * (1 - x) * beta_gradient(zero.double(), one.double(), (-x).log1p() - x.log())).to(one.dtype)


def _student_in_df(t: Tensor, df: Tensor) -> Tensor:
    return student_t_gradient(df, t)


def _fisher_in_df1(x: Tensor, df1: Tensor, df2: Tensor) -> Tensor:
    """x = (df2 / df1) exp(y), y the logit of Beta(df1 / 2, df2 / 2)."""
    x, one, two = x.double(), df1.double(), df2.double()
    slope = beta_gradient(one / 2, two / 2, x.log() + one.log() - two.log())
    return (x * (0.5 * slope - 1 / one)).to(df1.dtype)


def _fisher_in_df2(x: Tensor, df1: Tensor, df2: Tensor) -> Tensor:
    x, one, two = x.double(), df1.double(), df2.double()
    slope = beta_gradient(two / 2, one / 2, two.log() - one.log() - x.log())
    return (x * (1 / two - 0.5 * slope)).to(df1.dtype)


class _DirichletSample(torch.autograd.Function):
    """The sample; its backward is a vector-Jacobian product over the last dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sample, concentration):
        return sample.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx, grad):
        sample, concentration = ctx.saved_tensors
        x, alpha = sample.double(), concentration.double()
        others = alpha.sum(-1, keepdim=True) - alpha
        slope = beta_gradient(alpha, others, x.log() - (-x).log1p())
        moved = grad.double() - (x * grad.double()).sum(-1, keepdim=True)
        return None, torch.where(others > 0, x * slope * moved, 0.0).to(concentration.dtype)

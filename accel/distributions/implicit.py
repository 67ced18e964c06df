"""Attaching an implicit gradient to a sample (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498).

A sample z of a distribution with CDF F(z; phi) keeps its quantile when phi moves, so dz/dphi = -(dF/dphi) / p(z),
whatever algorithm drew z. `reparameterize` attaches derivatives that are known functions, `newton_attach` those of a
standardisation function that autograd can differentiate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NEWTON_ORDER = 2  # derivatives of `newton_attach` that are right


class GeneratorSampling:
    """`sample` for a class whose `rsample` takes a generator; densities and entropies worked out in float64.

    In float32 the terms of a density cancel for large concentrations: at 1e5 the first digit is lost.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at `value`, of the dtype of the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        return self._worked_out("log_prob", widen(value))

    def entropy(self) -> Tensor:
        """Entropy in nats, of shape `batch_shape`."""
        return self._worked_out("entropy")

    def _worked_out(self, method: str, *arguments: Tensor) -> Tensor:
        """What torch's method gives for the parameters in float64."""
        parameters = {name: getattr(self, name) for name in self.arg_constraints}
        dtype = next(iter(parameters.values())).dtype
        wide = {name: widen(parameter) for name, parameter in parameters.items()}
        return getattr(super(GeneratorSampling, type(self)(**wide, validate_args=False)), method)(*arguments).to(dtype)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """A detached sample of shape `sample_shape + batch_shape + event_shape`, drawn from `generator` if given."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)


def reparameterize(
    sample: Tensor, parameters: Sequence[Tensor], derivatives: Sequence[Callable[..., Tensor]]
) -> Tensor:
    """`sample`, with d sample / d parameters[i] = derivatives[i](sample, *parameters).

    Higher derivatives are those of the functions, the sample moving with its parameters. A derivative beyond the
    largest number of the dtype is taken for that number.

    Args:
        sample: any shape, without a gradient.
        parameters: of the shape of the sample.
        derivatives: elementwise functions; only those of parameters that require a gradient are called.
    """
    return _Reparameterize.apply(tuple(derivatives), sample, *parameters)


def widen(parameter: Tensor) -> Tensor:
    """The parameter in float64. Its gradient comes back in its own dtype, cut at the largest number of that dtype.

    So samples and derivatives are worked out in float64, where what lies between them does not overflow: a float32
    distribution draws what its float64 twin draws, rounded.
    """
    return _Widen.apply(parameter)


def narrow(
    sample: Tensor, dtype: torch.dtype, low: Tensor | float = -math.inf, high: Tensor | float = math.inf
) -> Tensor:
    """A float64 sample cut to [low, high] and to the finite range of `dtype`, in that dtype.

    The gradient is that of the sample before it was cut: rounding to the nearest number of the dtype is no derivative.
    """
    largest = torch.finfo(dtype).max
    low, high = (torch.as_tensor(bound, dtype=torch.float64, device=sample.device) for bound in (low, high))
    return _Narrow.apply(sample, low.detach().clamp(min=-largest), high.detach().clamp(max=largest), dtype)


def narrow_exp(log_sample: Tensor, dtype: torch.dtype) -> Tensor:
    """exp of a float64 logarithm, positive and finite in `dtype`."""
    limits = torch.finfo(torch.float64)
    log_sample = narrow(log_sample, torch.float64, math.log(limits.tiny), math.log(limits.max))
    return narrow(log_sample.exp(), dtype, low=torch.finfo(dtype).tiny)


def _saturate(value: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype)


class _Widen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(parameter):
        return parameter.to(torch.float64, copy=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx, grad):
        return _saturate(grad, ctx.dtype)


class _Narrow(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(sample, low, high, dtype):
        # Rounding to the dtype may step over a bound once more.
        low, high = _inward(low, dtype, math.inf), _inward(high, dtype, -math.inf)
        return torch.minimum(torch.maximum(sample.to(dtype, copy=True), low), high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad.double(), None, None, None


def _inward(bound: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """The number of `dtype` nearest to the bound that does not lie beyond it; `towards` is the inside."""
    rounded = bound.to(dtype)
    outside = rounded.double() < bound if towards > 0 else rounded.double() > bound
    return torch.where(outside, rounded.nextafter(torch.full_like(rounded, towards)), rounded)


class _Reparameterize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(derivatives, sample, *parameters):
        return sample.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.derivatives = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])

    @staticmethod
    def backward(ctx, grad):
        pairs = zip(ctx.derivatives, ctx.needs_input_grad[2:])
        saved = ctx.saved_tensors
        return (
            None,
            None,
            *(grad * _saturate(function(*saved), grad.dtype) if needed else None for function, needed in pairs),
        )


def implicit_rsample(cdf: Callable[[Tensor], Tensor], sample: Tensor) -> Tensor:
    """Attach to `sample` the gradients of every parameter that `cdf` depends on.

    Args:
        cdf: the CDF of a univariate distribution, elementwise: takes a tensor like `sample`, returns values in [0, 1]
            of the same shape, differentiable in its argument and, by torch, in the parameters it closes over.
        sample: draws of that distribution, any floating dtype and shape, from any sampler.

    Returns:
        A tensor equal to `sample` with dz/dphi = -(dF/dphi) / (dF/dz), right to second order where torch can
        differentiate the CDF twice; a third derivative raises RuntimeError.

    Raises:
        TypeError: `cdf` is not callable or `sample` not a floating tensor.
        ValueError: the CDF returns another shape, a value that does not depend on its argument, or is not increasing
            at every sample.
    """
    if not callable(cdf):
        raise TypeError(f"implicit_rsample: cdf must be a function of the sample, got {type(cdf).__name__}")
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        raise TypeError(f"implicit_rsample: sample must be a floating tensor, got {getattr(sample, 'dtype', sample)}")
    with torch.enable_grad():
        point = sample.detach().clone().requires_grad_()
        value = cdf(point)
        if value.shape != sample.shape:
            raise ValueError(
                f"implicit_rsample: cdf must return one value per element, shape {tuple(sample.shape)}, got "
                f"{tuple(value.shape)}; for a vector use a distribution with independent or mixture components"
            )
        if not value.requires_grad:
            raise ValueError("implicit_rsample: the CDF does not depend on its argument through torch operations")
        (density,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
    if density is None or not bool((density > 0).all()):
        raise ValueError(
            "implicit_rsample: the CDF must increase at every sample, its derivative is not positive: check that the "
            "samples are of this distribution and inside its support"
        )
    return newton_attach(cdf, sample, lambda residual: residual / density)


def newton_attach(standardize: Callable[[Tensor], Tensor], sample: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """The sample as the solution z of standardize(z) = constant, by Newton steps that autograd records.

    Each step z - solve(S(z) - S(sample)) leaves the value alone and makes one more order of derivatives right (with a
    constant inverse Jacobian: the residual's derivatives below that order are already 0). Two steps are taken.

    Args:
        standardize: S, from a tensor like `sample` to one of its shape, graph-connected to the parameters.
        sample: the value.
        solve: multiplies by the inverse of dS/dz at the sample, a constant.
    """
    point = sample.detach()
    for _ in range(NEWTON_ORDER):
        value = standardize(point)
        if not value.requires_grad:
            return point
        value = _OrderLimit.apply(value, value, NEWTON_ORDER)
        point = point - solve(value - value.detach())
    return point


class _OrderLimit(torch.autograd.Function):
    """The identity on `x`, which raises when differentiated more than `left` times; `anchor` ties it to the graph."""

    @staticmethod
    def forward(ctx, x, anchor, left):
        ctx.save_for_backward(anchor)
        ctx.left = left
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.left == 0:
            raise RuntimeError(
                f"implicit reparameterization by a CDF supports derivatives up to order {NEWTON_ORDER}: for higher "
                "ones use a distribution with an explicit rsample"
            )
        (anchor,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad, None, None
        return _OrderLimit.apply(grad, anchor, ctx.left - 1), None, None

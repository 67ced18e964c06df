"""Every distribution as a drop-in for torch's: types, shapes, densities, KL, expand, validation, generators."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import kl_divergence

import accel.distributions as ours

# name: parameters inside the support, and a value outside of it for the first one
CASES = {
    "Gamma": ((2.0, 3.0), -1.0),
    "Chi2": ((2.5,), 0.0),
    "InverseGamma": ((2.5, 3.0), -1.0),
    "Beta": ((0.5, 2.0), 0.0),
    "Dirichlet": (([0.5, 2.0, 3.0],), [1.0, -1.0, 1.0]),
    "StudentT": ((3.0, 1.0, 2.0), -3.0),
    "FisherSnedecor": ((3.0, 5.0), -3.0),
    "VonMises": ((0.5, 2.0), math.nan),
    "TruncatedNormal": ((0.0, 1.0, -1.0, 2.0), math.nan),
}
TORCH = [name for name in CASES if hasattr(torch.distributions, name)]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def build(name, dtype=torch.float64, package=ours, grad=False, batch=()):
    parameters = [torch.tensor(value, dtype=dtype) for value in CASES[name][0]]
    parameters = [value.expand((*batch, *value.shape)).clone().requires_grad_(grad) for value in parameters]
    return getattr(package, name)(*parameters), parameters


@pytest.mark.parametrize("name", TORCH)
def test_is_a_torch_distribution_with_the_same_density_and_moments(name):
    mine, _ = build(name)
    theirs, _ = build(name, package=torch.distributions)
    assert isinstance(mine, getattr(torch.distributions, name)) and mine.has_rsample
    value = theirs.sample((50,))
    tolerance = 3e-7 if name == "VonMises" else 1e-12  # torch's Bessel functions are polynomials good to 1e-7
    torch.testing.assert_close(mine.log_prob(value), theirs.log_prob(value), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mine.mean, theirs.mean)
    torch.testing.assert_close(mine.variance, theirs.variance, rtol=tolerance, atol=0)
    assert mine.support.check(mine.sample((50,))).all()


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_shapes_dtypes_and_expand(name, dtype):
    q, _ = build(name, dtype, batch=(2, 1))
    event = q.event_shape
    assert q.rsample().shape == (2, 1, *event) and q.sample((3,)).shape == (3, 2, 1, *event)
    assert q.rsample((0,)).shape == (0, 2, 1, *event)
    wide = q.expand((4, 2, 5))
    assert type(wide) is type(q)
    value = wide.rsample((3,))
    assert value.shape == (3, 4, 2, 5, *event) and value.dtype == dtype and value.isfinite().all()
    assert not q.sample().requires_grad


@pytest.mark.parametrize("name", CASES)
def test_generator_decides_the_sample(name):
    q, _ = build(name)
    first, second, other = (q.rsample((8,), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    state = torch.get_rng_state()
    q.sample((8,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", CASES)
def test_arguments_outside_the_support_raise(name):
    parameters = [torch.tensor(value) for value in CASES[name][0]]
    for wrong in (CASES[name][1], torch.full_like(parameters[0], math.nan)):
        with pytest.raises(ValueError, match=r"(?i)expected|must"):
            getattr(ours, name)(torch.as_tensor(wrong), *parameters[1:], validate_args=True)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_of_a_fixed_quantile(name):
    """rsample under a fixed seed is not a smooth function of the parameters; attached to one sample it is checked by
    moving the sample along its own gradient: d/dphi of dz/dphi must match finite differences of the gradient."""
    q, parameters = build(name, grad=True, batch=(3,))
    value = q.rsample(generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).view_as(value)
    first = torch.autograd.grad((weights * value).sum(), parameters, create_graph=True)
    assert all(gradient.isfinite().all() for gradient in first) and any(gradient.abs().max() > 0 for gradient in first)
    second = torch.autograd.grad(sum(gradient.sum() for gradient in first), parameters, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in second)


def test_kl_divergences_are_found():
    for name in ("Gamma", "Beta", "Dirichlet"):
        (p, _), (theirs, _) = build(name), build(name, package=torch.distributions)
        assert kl_divergence(p, p).abs() < 1e-12
        torch.testing.assert_close(kl_divergence(p, theirs), kl_divergence(theirs, theirs))
    p, q = ours.VonMises(torch.tensor(0.3).double(), torch.tensor(4.0).double()), build("VonMises")[0]
    angle = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
    log_p, log_q = p.log_prob(angle), q.log_prob(angle)
    torch.testing.assert_close(kl_divergence(p, q), torch.trapezoid(log_p.exp() * (log_p - log_q), angle))
    torch.testing.assert_close(p.entropy(), -torch.trapezoid(log_p.exp() * log_p, angle))
    huge = ours.VonMises(torch.tensor(0.0), torch.tensor(1e5))
    assert kl_divergence(huge, huge) == 0 and huge.log_prob(torch.tensor(0.0)).isfinite()


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "StudentT", "TruncatedNormal", "VonMises"])
def test_torch_func_grad(name):
    """The gradient that torch.func takes is the one that autograd takes, noise and all."""
    parameters = [torch.tensor(value, dtype=torch.float64) for value in CASES[name][0]]

    def loss(first):
        q = getattr(ours, name)(first, *parameters[1:], validate_args=False)
        return q.rsample(generator=torch.Generator().manual_seed(3)).square().sum()

    leaf = parameters[0].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    assert expected.isfinite().all() and expected.abs().max() > 0
    torch.testing.assert_close(torch.func.grad(loss)(parameters[0]), expected)


def test_gamma_cdf_is_differentiable_in_all_three():
    concentration, rate, value = (torch.tensor([x, 2 * x], dtype=torch.float64) for x in (1.5, 0.7, 2.0))
    inputs = [tensor.requires_grad_() for tensor in (concentration, rate, value)]
    assert torch.autograd.gradcheck(lambda a, b, x: ours.Gamma(a, b).cdf(x), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b, x: ours.Gamma(a, b).cdf(x), inputs)


@dtypes
def test_extreme_parameters_stay_finite(dtype):
    def grads(value, *parameters):
        gradients = torch.autograd.grad(value.sum(), parameters)
        assert value.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)

    tensors = lambda *values: [torch.full((500,), v, dtype=dtype, requires_grad=True) for v in values]  # noqa: E731
    for concentration in (1e-3, 1e5):
        for name, count in (("Gamma", 2), ("Beta", 2)):
            parameters = tensors(*[concentration] * count)
            grads(getattr(ours, name)(*parameters).rsample(), *parameters)
        alpha = torch.full((500, 4), concentration, dtype=dtype, requires_grad=True)
        value = ours.Dirichlet(alpha).rsample()
        torch.testing.assert_close(value.sum(-1), torch.ones(500, dtype=dtype))
        grads(value[:, 0], alpha)
    for kappa in (1e-30, 1e-4, 1e5, 1e30):
        loc, concentration = tensors(0.0, kappa)
        grads(ours.VonMises(loc, concentration).rsample(), loc, concentration)
    loc, scale = tensors(0.0, 1.0)
    tail = ours.TruncatedNormal(loc, scale, 30.0, math.inf)
    value = tail.rsample()
    assert (value >= 30).all() and (value < 31).all()
    grads(value, loc, scale)
    one = torch.ones(2, 1, dtype=dtype, requires_grad=True)
    grads(ours.Dirichlet(one).rsample(), one)

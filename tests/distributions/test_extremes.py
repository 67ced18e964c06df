"""Extreme parameters: finite samples inside the support, and gradients that are right where float32 had overflowed."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import accel.distributions as ours

TINY, HUGE = 1e-6, 1e10
CASES = [
    *[("Gamma", (a, b)) for a in (TINY, 0.05, 1.0, HUGE) for b in (1e-20, 1.0, 1e20)],
    *[("InverseGamma", (a, b)) for a in (TINY, 0.05, 1.0, HUGE) for b in (1e-20, 1.0, 1e20)],
    *[
        (name, (a, b))
        for name in ("Beta", "FisherSnedecor")
        for a in (TINY, 1e-3, 1.0, HUGE)
        for b in (TINY, 1.0, HUGE)
    ],
    *[("StudentT", (df, 1.0, scale)) for df in (TINY, 0.05, 1.0, HUGE) for scale in (1e-20, 1.0, 1e20)],
    *[("VonMises", (1.0, kappa)) for kappa in (1e-30, 1e-3, 1.0, 1e6, 1e30)],
    *[("Dirichlet", ([a, 1.0, a],)) for a in (TINY, 1e-3, 1.0, HUGE)],
]


def draw(name, values, dtype, count=500, seed=0):
    """Samples, and per-sample gradients of a weighted sum in every parameter."""
    # through float32, so that both dtypes have the same parameters
    rows = [torch.tensor(value, dtype=torch.float32).to(dtype) for value in values]
    rows = [value.expand(count, *value.shape).clone().requires_grad_() for value in rows]
    q = getattr(ours, name)(*rows, validate_args=True)
    x = q.rsample(generator=torch.Generator().manual_seed(seed))
    weights = torch.linspace(1.0, 2.0, q.event_shape.numel(), dtype=dtype)
    gradients = torch.autograd.grad((x.reshape(count, -1) * weights).sum(), rows)
    return q, x.detach(), gradients


@pytest.mark.parametrize("name, values", CASES, ids=str)
def test_float32_draws_and_differentiates_what_float64_does(name, values):
    """Finite, inside the support, and the float64 numbers rounded: cut at the ends of float32, never inf or 0 * inf."""
    wide, exact, exact_gradients = draw(name, values, torch.float64)
    q, x, gradients = draw(name, values, torch.float32)
    assert x.isfinite().all() and q.support.check(x).all() and wide.support.check(exact).all()
    limits = torch.finfo(torch.float32)
    cut = exact.clamp(-limits.max, limits.max).float()
    torch.testing.assert_close(x, cut, rtol=1e-6, atol=2 * limits.tiny)
    for found, expected in zip(gradients, exact_gradients):
        assert found.isfinite().all() and expected.isfinite().all()
        torch.testing.assert_close(found, expected.clamp(-limits.max, limits.max).float(), rtol=1e-5, atol=1e-37)


def quantile_slope(cdf, density, parameter):
    """-(dF / dparameter) / f in 60 digits."""
    with mpmath.workdps(60):
        return float(-mpmath.diff(cdf, mpmath.mpf(parameter), h=mpmath.mpf(10) ** -20) / density(mpmath.mpf(parameter)))


def saturated(value):
    return max(-torch.finfo(torch.float32).max, min(torch.finfo(torch.float32).max, value))


@pytest.mark.parametrize("name", ["InverseGamma", "Gamma"])
def test_gamma_of_small_concentration_against_multiprecision(name):
    _, x, (in_concentration, in_rate) = draw(name, (0.05, 1.0), torch.float32, count=40)
    _, exact, _ = draw(name, (0.05, 1.0), torch.float64, count=40)
    alpha = float(torch.tensor(0.05))
    for value, first, second in zip(exact.tolist(), in_concentration.tolist(), in_rate.tolist()):
        sign = 1 if name == "Gamma" else -1
        z = mpmath.mpf(value) ** sign
        slope = quantile_slope(
            lambda a, z=z: mpmath.gammainc(a, 0, z, regularized=True),
            lambda a, z=z: z ** (a - 1) * mpmath.exp(-z) / mpmath.gamma(a),
            alpha,
        )
        expected = slope if name == "Gamma" else float(-slope / z**2) if abs(slope / z**2) < 1e300 else -math.inf
        assert first == pytest.approx(saturated(expected), rel=1e-5, abs=1e-37)
        assert second == pytest.approx(saturated(-sign * value), rel=1e-5, abs=1e-37)
    assert x.isfinite().all()


def test_mass_at_the_end_of_float32_has_no_gradient_of_its_own():
    """Half of Beta(1e-6, 1e-6) rounds to 1 - 2^-24, where d x / d a would be 3e4; the samples do not move at all."""
    _, x, gradients = draw("Beta", (1e-6, 1e-6), torch.float32)
    assert (x > 0.99).any() and all(gradient.abs().max() < 1 for gradient in gradients)


def test_second_derivative_of_a_dirichlet_with_a_closed_form():
    """The first coordinate of Dirichlet(a, 1) is u^(1/a)."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    q = ours.Dirichlet(torch.stack((a, torch.ones_like(a))))
    x = q.rsample(generator=torch.Generator().manual_seed(5))[0]
    (first,) = torch.autograd.grad(x, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    log_x = x.log()
    torch.testing.assert_close(first, -x * log_x / a)
    torch.testing.assert_close(second, x * log_x * (log_x + 2) / a**2)


@pytest.mark.parametrize("concentration", [1e-3, 1e5])
@pytest.mark.parametrize("name", ["Gamma", "Chi2", "InverseGamma", "Beta", "Dirichlet", "StudentT", "FisherSnedecor"])
def test_float32_densities_and_entropies_are_the_float64_ones_rounded(name, concentration):
    count = {"Chi2": 1, "Dirichlet": 1, "StudentT": 3}.get(name, 2)
    rows = [torch.full((3,), concentration) for _ in range(count)]
    narrow, wide = getattr(ours, name)(*rows), getattr(ours, name)(*(row.double() for row in rows))
    x = narrow.sample()
    torch.testing.assert_close(narrow.log_prob(x), wide.log_prob(x.double()).float(), rtol=1e-6, atol=1e-6)
    if name != "FisherSnedecor":  # torch has no entropy of it
        torch.testing.assert_close(narrow.entropy(), wide.entropy().float(), rtol=1e-6, atol=1e-6)


concentrations = st.floats(-6, 6).map(lambda power: 10.0**power)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(name=st.sampled_from(["Gamma", "InverseGamma", "Beta", "FisherSnedecor"]), a=concentrations, b=concentrations)
def test_any_parameters_give_finite_samples_and_gradients(name, a, b):
    for dtype in (torch.float32, torch.float64):
        q, x, gradients = draw(name, (a, b), dtype, count=30)
        assert x.isfinite().all() and q.support.check(x).all()
        assert all(gradient.isfinite().all() for gradient in gradients)

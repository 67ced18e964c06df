"""TruncatedNormal against multiprecision: far tails, sharp and flat densities, one-sided and tiny intervals."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import accel.distributions as ours

DIGITS = 80
CASES = [
    (2.0, 2.0**-13, 0.0, 1.0),
    (-1.0, 2.0**-13, 0.0, 1.0),
    (0.0, 1.0, 30.0, math.inf),
    (0.0, 1.0, -math.inf, -1000.0),
    (2.0**20, 1.0, 0.0, 1.0),
    (0.0, 2.0**60, -1.0, 3.0),
    (0.0, 2.0**-60, -1.0, 1.0),
    (0.25, 1.0, -1.0, math.inf),
    (0.25, 1.0, -math.inf, 1.0),
    (0.5, 1.0, -math.inf, math.inf),
    (0.5, 0.25, 0.5, 2.0),
    (0.0, 1.0, -40.0, 40.0),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def build(case, dtype, count=8):
    rows = [torch.full((count,), value, dtype=dtype, requires_grad=True) for value in case]
    return ours.TruncatedNormal(*rows, validate_args=True), rows


def phi(loc, scale, low, high):
    """Phi(high) - Phi(low) of a normal, mirrored to where the two are small."""
    low, high = (low - loc) / scale, (high - loc) / scale
    if low + high > 0:
        low, high = -high, -low
    return (mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))) / 2


def cdf(x, loc, scale, low, high):
    return phi(loc, scale, low, x) / phi(loc, scale, low, high)


def density(x, loc, scale, low, high):
    return mpmath.npdf(x, loc, scale) / phi(loc, scale, low, high)


def slopes(x, case):
    """-(dF / dphi) / f of every parameter, 0 for an infinite bound."""
    found = []
    for number, value in enumerate(case):
        if math.isinf(value):
            found.append(mpmath.mpf(0))
            continue
        step = mpmath.mpf(10) ** -30 * max(abs(value), case[1])
        up, down = ([*case[:number], value + sign * step, *case[number + 1 :]] for sign in (1, -1))
        found.append(-(cdf(x, *up) - cdf(x, *down)) / (2 * step) / density(x, *case))
    return found


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_quantile(case, dtype):
    """Of the float64 sample under a fixed seed: float32 draws the same and rounds it."""
    q, rows = build(case, dtype)
    x = q.rsample(generator=torch.Generator().manual_seed(3))
    exact = build(case, torch.float64)[0].rsample(generator=torch.Generator().manual_seed(3)).detach()
    assert q.support.check(x).all() and x.isfinite().all()
    torch.testing.assert_close(x.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    gradients = torch.autograd.grad(x.sum(), rows)
    with mpmath.workdps(DIGITS):
        wide = [mpmath.mpf(value) for value in case]
        mode = min(max(wide[0], wide[2]), wide[3])
        for i, value in enumerate(exact.tolist()):
            offset = abs(mpmath.mpf(value) - mode)
            if offset == 0:
                continue  # the offset of the sample is kept, but its value has rounded to the bound
            digits = max(1e-6 if dtype == torch.float32 else 1e-9, 4e-16 * float(max(abs(value), 1e-300) / offset))
            for gradient, expected in zip(gradients, slopes(mpmath.mpf(value), wide)):
                assert gradient[i].item() == pytest.approx(float(expected), rel=digits, abs=1e-14)


@cases
def test_densities_moments_and_quantiles(case):
    q, rows = build(case, torch.float64, count=5)
    q = ours.TruncatedNormal(*(row.detach() for row in rows))
    u = torch.tensor([1e-9, 0.1, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    x = q.icdf(u)
    with mpmath.workdps(DIGITS):
        wide = [mpmath.mpf(value) for value in case]
        deviation = float(q.variance[0].sqrt())
        for i, value in enumerate(x.tolist()):
            expected, slope = cdf(mpmath.mpf(value), *wide), density(mpmath.mpf(value), *wide)
            rounding = 1e-15 * abs(value) * float(slope)
            assert u[i].item() == pytest.approx(float(expected), rel=1e-9, abs=rounding)
            assert q.cdf(x)[i].item() == pytest.approx(float(expected), rel=1e-10, abs=rounding)
            assert q.log_prob(x)[i].item() == pytest.approx(float(mpmath.log(slope)), rel=1e-10, abs=1e-9 + rounding)
        middle, spread = mpmath.mpf(q.mean[0].item()), mpmath.mpf(deviation)
        low, high = max(wide[2], middle - 40 * spread), min(wide[3], middle + 40 * spread)
        log_mass = mpmath.log(phi(*wide) * wide[1] * mpmath.sqrt(2 * mpmath.pi))
    with mpmath.workdps(30):
        log_density = lambda z: -(((z - wide[0]) / wide[1]) ** 2) / 2 - log_mass  # noqa: E731
        average = lambda g: mpmath.quad(lambda z: g(z) * mpmath.exp(log_density(z)), edges)  # noqa: E731
        edges = mpmath.linspace(low, high, 7)
        mean = average(lambda z: z)
        variance = average(lambda z: (z - mean) ** 2)
        entropy = -average(log_density)
    assert q.mean[0].item() == pytest.approx(float(mean), rel=1e-12, abs=1e-12 * deviation)
    assert q.variance[0].item() == pytest.approx(float(variance), rel=1e-10)
    assert q.entropy()[0].item() == pytest.approx(float(entropy), rel=1e-10, abs=1e-10)


def test_ends_of_the_quantile_function():
    q = ours.TruncatedNormal(0.0, 1.0, torch.tensor([-1.0, -math.inf]).double(), torch.tensor([2.0, math.inf]).double())
    assert q.icdf(torch.zeros(2).double())[0] == -1 and q.icdf(torch.ones(2).double())[0] == 2
    torch.testing.assert_close(q.cdf(torch.full((2,), -math.inf).double()), torch.zeros(2).double())
    torch.testing.assert_close(q.cdf(torch.full((2,), math.inf).double()), torch.ones(2).double())


def test_derivatives_of_the_density_and_the_cdf():
    parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (2.0, 0.7, 0.0, 1.0, 0.4)]
    for name in ("cdf", "log_prob"):
        function = lambda *p, name=name: getattr(ours.TruncatedNormal(*p[:4]), name)(p[4])  # noqa: E731
        assert torch.autograd.gradcheck(function, parameters) and torch.autograd.gradgradcheck(function, parameters)


def test_second_derivatives_against_differences_of_the_quantile():
    parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.4, 1.3, -1.0, 2.0)]
    x = ours.TruncatedNormal(*parameters).rsample(generator=torch.Generator().manual_seed(1))
    first = torch.autograd.grad(x, parameters, create_graph=True)
    u = ours.TruncatedNormal(*parameters).cdf(x.detach()).detach()
    step = 1e-3
    for number, gradient in enumerate(first):
        (second,) = torch.autograd.grad(gradient, parameters[number], retain_graph=True)
        shifted = []
        for sign in (1, -1):
            moved = [parameter.detach().clone() for parameter in parameters]
            moved[number] += sign * step
            shifted.append(ours.TruncatedNormal(*moved).icdf(u).item())
        assert second.item() == pytest.approx((sum(shifted) - 2 * x.item()) / step**2, rel=1e-4, abs=1e-6)


powers = st.integers(-60, 60).map(lambda power: 2.0**power)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(loc=st.floats(-1e6, 1e6, width=32), scale=powers, low=st.floats(-1e6, 1e6, width=32), width=powers)
def test_any_interval_gives_finite_samples_inside_it(loc, scale, low, width):
    for dtype in (torch.float32, torch.float64):
        bounds = torch.tensor([low, low + width], dtype=dtype)
        if not bounds[0] < bounds[1]:
            continue
        q, rows = build((loc, scale, *bounds.tolist()), dtype, count=16)
        x = q.rsample()
        assert q.support.check(x).all()
        for value in (x, *torch.autograd.grad(x.sum(), rows), q.mean, q.variance, q.entropy(), q.log_prob(x.detach())):
            assert value.isfinite().all()
        assert (q.variance >= 0).all() and ((q.cdf(x) >= 0) & (q.cdf(x) <= 1 + 1e-6)).all()

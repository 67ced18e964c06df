"""Every triple: c (p_plus - p_minus) is the derivative of the density, and the samplers follow those two measures."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from accel.mc.weak_derivatives import weak_derivatives


class Reflected:
    """The distribution of ``2 center - X``."""

    def __init__(self, inner, center):
        self.inner, self.center = inner, center

    def pdf(self, x):
        return self.inner.pdf(2 * self.center - x)

    def cdf(self, x):
        return 1 - self.inner.cdf(2 * self.center - x)


class Symmetric:
    """``center + sign * X`` for a positive X and a fair sign."""

    def __init__(self, inner, center):
        self.inner, self.center = inner, center

    def pdf(self, x):
        return self.inner.pdf(abs(x - self.center)) / 2

    def cdf(self, x):
        return 0.5 + np.sign(x - self.center) * self.inner.cdf(abs(x - self.center)) / 2


class Power:
    """``X ** (1 / k)`` for a positive X."""

    def __init__(self, inner, k):
        self.inner, self.k = inner, k

    def pdf(self, x):
        return self.inner.pdf(x**self.k) * self.k * x ** (self.k - 1)

    def cdf(self, x):
        return self.inner.cdf(x**self.k)


class Atoms:
    """A discrete measure given by its probabilities on 0, 1, 2, ..."""

    def __init__(self, *probabilities):
        self.probabilities = np.array(probabilities)

    def pmf(self, k):
        padded = np.append(self.probabilities, 0.0)
        return padded[np.minimum(k, len(self.probabilities))]


N = 20_000
LOC_SCALE = {"loc": 0.4, "scale": 1.3}
RAYLEIGH, EXPON, ERLANG = stats.rayleigh(0.4, 1.3), stats.expon(0.4, 1.3), stats.gamma(2, scale=1.3)
# name, family, parameters, the differentiated one, index of its triple, plus, minus (the published table's measures)
CONTINUOUS = [
    ("normal loc", td.Normal, LOC_SCALE, "loc", 0, RAYLEIGH, Reflected(RAYLEIGH, 0.4)),
    ("normal scale", td.Normal, LOC_SCALE, "scale", 1, Symmetric(stats.maxwell(0, 1.3), 0.4), stats.norm(0.4, 1.3)),
    ("exponential", td.Exponential, {"rate": 0.8}, "rate", 0, stats.expon(scale=1.25), stats.gamma(2, scale=1.25)),
    (
        *("gamma", td.Gamma, {"concentration": 2.3, "rate": 0.8}, "rate", 0),
        *(stats.gamma(2.3, scale=1.25), stats.gamma(3.3, scale=1.25)),
    ),
    ("laplace loc", td.Laplace, LOC_SCALE, "loc", 0, EXPON, Reflected(EXPON, 0.4)),
    ("laplace scale", td.Laplace, LOC_SCALE, "scale", 1, Symmetric(ERLANG, 0.4), stats.laplace(0.4, 1.3)),
]
DISCRETE = [
    ("bernoulli", td.Bernoulli, {"probs": 0.3}, "probs", 0, Atoms(0, 1), Atoms(1, 0)),
    ("poisson", td.Poisson, {"rate": 2.3}, "rate", 0, stats.poisson(2.3, loc=1), stats.poisson(2.3)),
    ("geometric", td.Geometric, {"probs": 0.4}, "probs", 0, stats.geom(0.4, loc=-1), stats.nbinom(2, 0.4, loc=1)),
    (
        *("binomial", lambda probs: td.Binomial(5, probs), {"probs": 0.3}, "probs", 0),
        *(stats.binom(4, 0.3, loc=1), stats.binom(4, 0.3)),
    ),
]


def density_derivative(family, parameters, name, x):
    leaves = {key: torch.full((len(x),), value, dtype=torch.float64) for key, value in parameters.items()}
    leaves[name].requires_grad_()
    density = family(**leaves).log_prob(torch.as_tensor(x, dtype=torch.float64)).exp()
    return torch.autograd.grad(density.sum(), leaves[name])[0].numpy()


def triple_of(family, parameters, index, count=N, seed=0):
    leaves = {key: torch.full((count,), value, dtype=torch.float64) for key, value in parameters.items()}
    base, triples = weak_derivatives(family(**leaves), torch.Generator().manual_seed(seed))
    return base, triples[index]


def constant(triple):
    return float(torch.as_tensor(triple.constant).flatten()[0])


@pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case[0])
def test_density_identity(case):
    _, family, parameters, name, index, plus, minus = case
    x = np.linspace(0.013, 7.0, 400) if family in (td.Exponential, td.Gamma) else np.linspace(-6.0, 7.0, 400)
    c = constant(triple_of(family, parameters, index)[1])
    expected = density_derivative(family, parameters, name, x)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(c * (plus.pdf(x) - minus.pdf(x)), expected, atol=1e-12)


@pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case[0])
def test_mass_identity(case):
    name_of_case, family, parameters, name, index, plus, minus = case
    k = np.arange({"bernoulli": 2, "binomial": 6}.get(name_of_case, 40))
    c = constant(triple_of(family, parameters, index)[1])
    expected = density_derivative(family, parameters, name, k)
    np.testing.assert_allclose(c * (plus.pmf(k) - minus.pmf(k)), expected, atol=1e-13)


def test_weibull_identity_in_theta_and_chain_rule():
    """p = k theta x^(k-1) exp(-theta x^k): the triple is that of theta, and theta hangs on torch's scale."""
    scale, k = torch.full((N,), 1.4, dtype=torch.float64, requires_grad=True), 1.6
    q = td.Weibull(scale, torch.full((N,), k, dtype=torch.float64))
    _, (triple,) = weak_derivatives(q, torch.Generator().manual_seed(0))
    theta = float(triple.parameter[0].detach())
    assert theta == pytest.approx(1.4**-k)
    slope = torch.autograd.grad(triple.parameter.sum(), scale)[0][0]
    assert float(slope) == pytest.approx(-k * 1.4 ** (-k - 1))
    plus, minus = stats.weibull_min(k, scale=1.4), Power(stats.gamma(2, scale=1 / theta), k)
    x = np.linspace(0.01, 5, 300)
    expected = (k * x ** (k - 1) - k * theta * x ** (2 * k - 1)) * np.exp(-theta * x**k)
    np.testing.assert_allclose(constant(triple) * (plus.pdf(x) - minus.pdf(x)), expected, atol=1e-12)
    for sample, law in ((triple.plus, plus), (triple.minus, minus)):
        assert stats.kstest(sample.detach().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("index", "bound"), [(0, "high"), (1, "low")])
def test_uniform_identity_of_distribution_functions(index, bound):
    low, high = -0.5, 1.8
    _, triple = triple_of(td.Uniform, {"low": low, "high": high}, index, 1)
    x = np.linspace(low, high, 50)[:-1]
    inside = (x - low) / (high - low)
    slope = -inside / (high - low) if bound == "high" else -(1 - inside) / (high - low)
    atom = (x >= {"high": high, "low": low}[bound]).astype(float)
    sign = 1 if bound == "high" else -1
    np.testing.assert_allclose(constant(triple) * sign * (atom - inside), slope, atol=1e-14)
    assert float({"high": triple.plus, "low": triple.minus}[bound]) == {"high": high, "low": low}[bound]


@pytest.mark.parametrize("family", [td.Categorical, td.OneHotCategorical])
def test_categorical_identity(family):
    """For normalised probabilities, d q(j) / d p_i = [i = j] - q(j), through torch's own normalisation."""
    probs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    base, triples = weak_derivatives(family(probs=probs), torch.Generator().manual_seed(0))
    for i, triple in enumerate(triples):
        assert triple.constant == 1.0 and triple.minus is base
        assert int(triple.plus if family is td.Categorical else triple.plus.argmax()) == i
    for j in range(3):
        slope = torch.autograd.grad(td.Categorical(probs=probs).log_prob(torch.tensor(j)).exp(), probs)[0]
        expected = torch.eye(3, dtype=torch.float64)[j] - probs.detach()[j]
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case[0])
def test_samplers_follow_the_two_measures(case):
    _, family, parameters, _, index, plus, minus = case
    base, triple = triple_of(family, parameters, index)
    law = {td.Normal: stats.norm(0.4, 1.3), td.Exponential: stats.expon(scale=1.25)}.get(family)
    checks = [(triple.plus, plus), (triple.minus, minus)] + ([(base, law)] if law else [])
    for sample, expected in checks:
        assert stats.kstest(sample.numpy(), expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case[0])
def test_discrete_samplers_follow_the_two_measures(case):
    name, family, parameters, _, index, plus, minus = case
    _, triple = triple_of(family, parameters, index)
    k = np.arange({"bernoulli": 2, "binomial": 6}.get(name, 12))
    for sample, law in ((triple.plus, plus), (triple.minus, minus)):
        seen = np.bincount(sample.numpy().astype(int), minlength=len(k))[: len(k)] / N
        expected = law.pmf(k)
        deviation = np.abs(seen - expected) / np.sqrt(np.maximum(expected * (1 - expected) / N, 1e-300))
        assert (deviation[expected > 1e-4] < 4).all()
        assert not seen[expected == 0].any()


def test_normal_scale_parts_share_their_noise():
    """The base is a uniform times the Maxwell variate: same sign, closer to the mean (the published coupling)."""
    base, triple = triple_of(td.Normal, {"loc": 0.4, "scale": 1.3}, 1)
    assert triple.minus is base
    ratio = (base - 0.4) / (triple.plus - 0.4)
    assert ((ratio > 0) & (ratio < 1)).all()
    assert constant(triple) == pytest.approx(1 / 1.3)
    assert constant(triple_of(td.Normal, {"loc": 0.4, "scale": 1.3}, 0)[1]) == pytest.approx(
        1 / (1.3 * math.sqrt(2 * math.pi))
    )

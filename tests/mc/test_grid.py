"""Bias test of every estimator on every distribution it supports, against exact gradients."""

import math

import pytest
import torch

from accel import mc
from accel.bench import mc_cases

SAMPLES = 20_000


@pytest.mark.parametrize("method", [name for name, method in mc_cases.METHODS.items() if not method.biased])
def test_unbiased_estimators_match_exact_gradients(method):
    chosen = mc_cases.METHODS[method]
    integrands = dict(mc_cases.INTEGRANDS)
    if chosen.values_only:
        integrands["step"] = mc_cases.STEP
    scores = {}
    for case in chosen.cases:
        for seed, (name, integrand) in enumerate(integrands.items()):
            found = mc_cases.gradients(case, method, integrand, SAMPLES, seed)
            scores[case, name] = mc_cases.score_cell(found, mc_cases.CASES[case].exact(integrand))["z"]
    assert len(scores) == len(chosen.cases) * len(integrands)
    assert max(scores.values()) < 4, max(scores.items(), key=lambda item: item[1])


class Planted(mc.ScoreFunction):
    """A score function whose baseline peeks at its own cost: every gradient is 5 % short."""

    def __init__(self):
        super().__init__(baseline=lambda costs: 0.05 * costs)


def test_a_planted_bias_is_caught(monkeypatch):
    planted = mc_cases.Method(lambda case: Planted(), ("Poisson",))
    monkeypatch.setitem(mc_cases.METHODS, "planted", planted)
    found = mc_cases.gradients("Poisson", "planted", mc_cases.INTEGRANDS["quadratic"], 100_000, 0)
    exact = mc_cases.CASES["Poisson"].exact(mc_cases.INTEGRANDS["quadratic"])
    assert mc_cases.score_cell(found, exact)["z"] > 4
    honest = mc_cases.gradients("Poisson", "ScoreFunction", mc_cases.INTEGRANDS["quadratic"], 100_000, 0)
    assert mc_cases.score_cell(honest, exact)["z"] < 4


def test_exact_gradients_match_closed_forms():
    """E (x - k)^2, E cos kx and E exp(-k x^2) of a normal; a polynomial of the others."""
    mu, s, k = 0.3, 1.2, 2.0
    normal = mc_cases.CASES["Normal"]
    quadratic = normal.exact(mc_cases.INTEGRANDS["quadratic"])
    assert float(quadratic["loc"]) == pytest.approx(2 * (mu - 0.45), abs=1e-10)
    assert float(quadratic["scale"]) == pytest.approx(2 * s, abs=1e-10)
    cosine = normal.exact(mc_cases.INTEGRANDS["cosine"])
    damping = math.exp(-(k**2) * s**2 / 2)
    assert float(cosine["loc"]) == pytest.approx(-k * math.sin(k * mu) * damping, abs=1e-10)
    assert float(cosine["scale"]) == pytest.approx(-(k**2) * s * math.cos(k * mu) * damping, abs=1e-10)
    exponential = normal.exact(mc_cases.INTEGRANDS["exponential"])
    width = 1 + s**2
    assert float(exponential["loc"]) == pytest.approx(-mu * math.exp(-(mu**2) / (2 * width)) * width**-1.5, abs=1e-10)


@pytest.mark.parametrize(
    ("case", "mean"),
    [
        ("Gamma", lambda concentration, rate: concentration / rate),
        ("Exponential", lambda rate: 1 / rate),
        ("Uniform", lambda low, high: (low + high) / 2),
        ("Beta", lambda concentration1, concentration0: concentration1 / (concentration1 + concentration0)),
        ("LogNormal", lambda loc, scale: torch.exp(loc + scale**2 / 2)),
        ("Laplace", lambda loc, scale: loc + 0 * scale),
        ("Geometric", lambda probs: 1 / probs - 1),
        ("Poisson", lambda rate: rate),
    ],
)
def test_exact_gradients_of_the_mean(case, mean):
    setup = mc_cases.CASES[case]
    leaves = setup.leaves()
    expected = torch.autograd.grad(mean(**leaves), list(leaves.values()))
    found = setup.exact(lambda x: x)
    torch.testing.assert_close(list(found.values()), list(expected), atol=1e-9, rtol=1e-9)

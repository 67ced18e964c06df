import math

import pytest
import torch
from torch import distributions as td

from accel import mc

MU, S = 0.3, 1.2


def normal():
    loc = torch.tensor(MU, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    return td.Normal(loc, scale)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cosine(x):
    return torch.cos(2 * x)


EXACT = {
    "loc": -2 * math.sin(2 * MU) * math.exp(-2 * S**2),
    "scale": -4 * S * math.cos(2 * MU) * math.exp(-2 * S**2),
}


def z_scores(found):
    return {
        name: float((grad.mean(0) - EXACT[name]).abs() / (grad.std(0) / len(grad) ** 0.5))
        for name, grad in found.items()
    }


@pytest.mark.parametrize("estimator", [mc.ScoreFunction(), mc.Pathwise(), mc.MeasureValued()])
@pytest.mark.parametrize("coefficient", [1.0, None])
def test_delta_method_is_exact_for_a_quadratic(estimator, coefficient):
    """E (x'Ax + b'x) over a diagonal Gaussian: every sample gives the exact gradient."""
    loc = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[1.0, 0.7], [0.7, -0.3]], dtype=torch.float64)
    q = td.Independent(td.Normal(loc, scale), 1)
    control = mc.DeltaMethod(coefficient)
    cost = lambda x: ((x @ matrix) * x).sum(-1) - x[:, 0]  # noqa: E731
    found = mc.jacobians(cost, q, 50, estimator, generator=seeded(), control_variate=control)
    exact = {"loc": 2 * matrix @ loc - torch.tensor([1.0, 0.0]), "scale": 2 * scale * matrix.diagonal()}
    for name, grad in found.items():
        torch.testing.assert_close(grad, exact[name].detach().expand_as(grad), atol=1e-9, rtol=0)


def test_delta_method_with_factorised_costs():
    loc = torch.tensor([[0.3, -0.4, 1.0]] * 2, dtype=torch.float64, requires_grad=True)
    cost = lambda x: x.square().sum(-1) * torch.tensor([1.0, 2.0])  # noqa: E731
    found = mc.jacobians(
        cost, td.Normal(loc, 1.0), 20, mc.ScoreFunction(), generator=seeded(), control_variate=mc.DeltaMethod(1.0)
    )
    expected = 2 * loc.detach() * torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(found["loc"], expected.expand_as(found["loc"]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("coefficient", [0.4, 1.0, -2.0, None])
def test_any_coefficient_leaves_the_mean_alone(coefficient):
    control = mc.DeltaMethod(coefficient)
    found = mc.jacobians(cosine, normal(), 40_000, mc.ScoreFunction(), generator=seeded(), control_variate=control)
    assert max(z_scores(found).values()) < 4


def test_explicit_parameters_of_a_control_are_differentiated():
    """h(x, q) = x loc + x^2 scale contains the parameters: its explicit term belongs to the estimator of grad E h."""

    def mean(q):
        return q.loc**2 + (q.loc**2 + q.scale**2) * q.scale

    full = mc.ControlVariate(lambda x, q: x * q.loc + x**2 * q.scale, mean, coefficient=0.5)
    found = mc.jacobians(cosine, normal(), 40_000, mc.ScoreFunction(), generator=seeded(), control_variate=full)
    assert max(z_scores(found).values()) < 4
    cut = mc.ControlVariate(lambda x, q: x * q.loc.detach() + x**2 * q.scale.detach(), mean, coefficient=0.5)
    found = mc.jacobians(cosine, normal(), 40_000, mc.ScoreFunction(), generator=seeded(), control_variate=cut)
    assert min(z_scores(found).values()) > 8


def test_regression_leaves_one_minus_squared_correlation():
    control = mc.ControlVariate(lambda x, q: x**2, lambda q: q.loc**2 + q.scale**2, fresh_samples=200_000)
    cost = lambda x: torch.exp(0.3 * x)  # noqa: E731
    run = lambda **k: mc.jacobians(cost, normal(), 100_000, mc.ScoreFunction(), generator=seeded(), **k)  # noqa: E731
    controlled = run(control_variate=control)["loc"]
    plain = mc.jacobians(cost, normal(), 100_000, mc.ScoreFunction(), generator=replayed(seeded()))["loc"]
    other = mc.jacobians(lambda x: x**2, normal(), 100_000, mc.ScoreFunction(), generator=replayed(seeded()))["loc"]
    correlation = torch.corrcoef(torch.stack([plain, other]))[0, 1]
    assert float(correlation) > 0.5
    assert float(controlled.var() / plain.var()) == pytest.approx(1 - float(correlation) ** 2, rel=0.02)


def replayed(generator):
    """The noise a controlled estimator uses: it draws its seed from the caller's generator first."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))


def test_a_constant_control_is_the_optimal_baseline():
    """h = 1 has the score as its estimator: the fitted coefficient is Cov(s, f s) / Var(s), per parameter."""
    control = mc.ControlVariate(lambda x, q: torch.ones_like(x), lambda q: 1.0 + 0 * q.loc)
    cost = lambda x: (x + 5) ** 2  # noqa: E731
    variances = [
        mc.jacobians(cost, normal(), 20_000, mc.ScoreFunction(), generator=seeded(), control_variate=choice)[
            "loc"
        ].var()
        for choice in (None, control)
    ]
    assert variances[1] < 0.4 * variances[0]


def test_expectation_backward_is_the_corrected_jacobian():
    q = normal()
    value = mc.expectation(cosine, q, 30, mc.Pathwise(), generator=seeded(), control_variate=mc.DeltaMethod())
    grads = torch.autograd.grad(value, [q.loc, q.scale])
    rows = mc.jacobians(cosine, normal(), 30, mc.Pathwise(), generator=seeded(), control_variate=mc.DeltaMethod())
    torch.testing.assert_close(list(grads), [rows["loc"].mean(0), rows["scale"].mean(0)])


def test_delta_method_needs_univariate_latents_and_a_differentiable_cost():
    gaussian = td.MultivariateNormal(torch.zeros(2, requires_grad=True), torch.eye(2))
    with pytest.raises(ValueError, match=r"independent univariate latents.*ControlVariate"):
        mc.expectation(lambda x: x.sum(-1), gaussian, 4, mc.Pathwise(), control_variate=mc.DeltaMethod())
    with pytest.raises(ValueError, match="DeltaMethod differentiates through f"):
        mc.expectation(lambda x: (x > 0).double(), normal(), 4, mc.ScoreFunction(), control_variate=mc.DeltaMethod())
    with pytest.raises(ValueError, match="fresh_samples must be at least 2"):
        mc.DeltaMethod(fresh_samples=1)

import math

import pytest
import torch
from torch import distributions as td

from accel import mc
from accel.mc.measure_valued import replaced_costs


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("cost_ndim", [1, 2, 3])
@pytest.mark.parametrize("memory", [1, 2000, 2**26])
def test_replaced_costs_against_a_loop(cost_ndim, memory):
    generator = torch.Generator().manual_seed(0)
    base, points = torch.randn(2, 5, 3, 4, 2, generator=generator, dtype=torch.float64)  # rows, batch 3 x 4, event 2

    def cost(x):
        return (x.cos() * torch.arange(1.0, 3.0)).flatten(cost_ndim).sum(-1) ** 2

    found = replaced_costs(cost, base, points, cost(base).shape, 3, memory).reshape(5, 3, 4)
    for i in range(3):
        for j in range(4):
            moved = base.clone()
            moved[:, i, j] = points[:, i, j]
            expected = cost(moved)[(slice(None), i, j)[:cost_ndim]]
            torch.testing.assert_close(found[:, i, j], expected)


def test_coupled_variance_of_a_quadratic():
    """One sample of the mean's gradient is 4 (mu - k) W / sqrt(2 pi), W Rayleigh: its mean and variance follow."""
    mu, k = 0.7, 2.0
    q = td.Normal(leaf(mu), torch.tensor([1.3], dtype=torch.float64))
    cost = lambda x: ((x - k) ** 2).sum(-1)  # noqa: E731
    found = mc.jacobians(cost, q, 200_000, mc.MeasureValued(), generator=torch.Generator().manual_seed(0))["loc"]
    assert float(found.mean()) == pytest.approx(2 * (mu - k), rel=5e-3)
    assert float(found.var()) == pytest.approx(16 * (mu - k) ** 2 * (2 - math.pi / 2) / (2 * math.pi), rel=0.02)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(
    "q",
    [
        td.Normal(leaf(0.1, 0.2), leaf(1.0, 2.0)),
        td.Poisson(leaf(1.5, 0.5)),
        td.Categorical(logits=leaf(0.1, 0.2, 0.3)),
        td.MultivariateNormal(leaf(0.1, 0.2), scale_tril=torch.eye(2, dtype=torch.float64).requires_grad_()),
    ],
    ids=lambda q: type(q).__name__,
)
def test_a_constant_cost_gives_exactly_zero(q, coupled):
    found = mc.jacobians(lambda x: 0.0 * x.double().reshape(len(x), -1).sum(-1) + 3.7, q, 20, mc.MeasureValued(coupled))
    assert found and not any(grad.any() for grad in found.values())


def test_gradient_of_the_maximum_of_the_support():
    """U(0, theta) and a step at theta / 2: d P(x > c) / d theta = c / theta^2, where the score function fails."""
    high = leaf(2.0)
    q = td.Uniform(torch.zeros(1, dtype=torch.float64), high)
    estimate = mc.jacobians(lambda x: (x[:, 0] > 1.0).double(), q, 100_000, mc.MeasureValued())["high"]
    error = float(estimate.std()) / 100_000**0.5
    assert abs(float(estimate.mean()) - 0.25) < 4 * error


def test_evaluations_are_shared_with_the_base_sample():
    """Poisson: X + 1 against the base sample itself, so one evaluation per latent beside the base."""
    rows = []

    def cost(x):
        rows.append(len(x))
        return x.sum(-1)

    mc.expectation(cost, td.Poisson(leaf(1.0, 2.0, 3.0)), 10, mc.MeasureValued())
    assert rows == [10, 30]


def test_memory_budget_bounds_the_rows_of_a_call():
    rows = []

    def cost(x):
        rows.append(len(x))
        return x.sum(-1) ** 2

    q = td.Poisson(leaf(*[1.0] * 8))
    wide = mc.jacobians(cost, q, 10, mc.MeasureValued(), generator=torch.Generator().manual_seed(0))["rate"]
    rows.clear()
    budget = 2 * 10 * 8 * 8  # two replaced latents of 10 samples with 8 float64 latents
    narrow = mc.MeasureValued(memory=budget)
    found = mc.jacobians(cost, q, 10, narrow, generator=torch.Generator().manual_seed(0))["rate"]
    assert rows == [10, 20, 20, 20, 20]
    assert torch.equal(found, wide)


@pytest.mark.parametrize("name", ["scale_tril", "covariance_matrix", "precision_matrix"])
def test_full_covariance_of_a_quadratic_form(name):
    """E (x' A x + b'x) = tr(A S) + m' A m + b'm, for each spelling of the covariance."""
    loc = leaf(0.3, -0.4, 0.2)
    tril = torch.tensor([[1.0, 0, 0], [0.4, 0.8, 0], [-0.3, 0.2, 0.7]], dtype=torch.float64)
    given = {
        "scale_tril": tril,
        "covariance_matrix": tril @ tril.T,
        "precision_matrix": torch.linalg.inv(tril @ tril.T),
    }
    spread = given[name].clone().requires_grad_()
    q = td.MultivariateNormal(loc, **{name: spread})
    matrix = torch.tensor([[1.0, 0.5, 0], [0.5, -0.3, 0.2], [0, 0.2, 0.6]], dtype=torch.float64)
    slope = torch.tensor([0.1, 0.2, -0.5], dtype=torch.float64)

    def cost(x):
        return ((x @ matrix) * x).sum(-1) + x @ slope

    exact = list(torch.autograd.grad((matrix * q.covariance_matrix).sum() + cost(loc[None])[0], [loc, spread]))
    if name == "scale_tril":
        exact[1] = exact[1].tril()  # above the diagonal there is no parameter
    q = td.MultivariateNormal(loc, **{name: spread})
    for coupled in (True, False):
        found = mc.jacobians(cost, q, 40_000, mc.MeasureValued(coupled), generator=torch.Generator().manual_seed(1))
        for grad, expected in zip((found["loc"], found[name]), exact):
            error = grad.std(0) / 40_000**0.5
            assert ((grad.mean(0) - expected).abs() <= 4 * error + 1e-12).all()


def test_factorised_gaussians_with_a_batch_of_costs():
    """Batched full-covariance q with one cost per batch entry: entries do not mix."""
    loc = torch.tensor([[0.3, -0.4], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    q = td.MultivariateNormal(loc, scale_tril=torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    found = mc.jacobians(lambda x: x.square().sum(-1), q, 50_000, mc.MeasureValued())["loc"]
    error = found.std(0) / 50_000**0.5
    assert ((found.mean(0) - 2 * loc).abs() < 4 * error).all()


def test_what_has_no_weak_derivative_is_refused():
    both = td.Gamma(leaf(2.0), leaf(1.0))
    with pytest.raises(ValueError, match=r"concentration of a Gamma.*Pathwise"):
        mc.expectation(lambda x: x.sum(-1), both, 4, mc.MeasureValued())
    with pytest.raises(ValueError, match=r"no weak derivative of Beta.*ScoreFunction"):
        mc.expectation(lambda x: x.sum(-1), td.Beta(leaf(2.0), leaf(1.0)), 4, mc.MeasureValued())
    half = td.Gamma(torch.tensor([2.0], dtype=torch.float64), leaf(1.0))
    assert mc.expectation(lambda x: x.sum(-1), half, 4, mc.MeasureValued()).requires_grad


def test_binomial_without_trials_has_no_gradient():
    probs = leaf(0.4, 0.4)
    q = td.Binomial(torch.tensor([0.0, 3.0], dtype=torch.float64), probs)
    found = mc.jacobians(lambda x: x, q, 20_000, mc.MeasureValued())["probs"]
    assert not found[:, 0].any()
    torch.testing.assert_close(found[:, 1].mean(), torch.tensor(3.0, dtype=torch.float64))

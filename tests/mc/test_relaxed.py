import pytest
import torch
from scipy import stats
from torch import distributions as td

from accel import mc
from accel.bench import mc_cases
from accel.mc.relaxed import BinaryRelaxation, OneHotRelaxation

LOGIT = 0.7


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def curved(x):
    return torch.exp(1.5 * x)


def relaxed_gradient(temperature):
    """d/dl of the integral of f(sigmoid(z / t)) against the logistic density at l, by the trapezoid rule."""
    logit = torch.tensor(LOGIT, dtype=torch.float64, requires_grad=True)
    z = torch.linspace(-45, 45, 200_001, dtype=torch.float64)
    density = torch.sigmoid(z - logit) * torch.sigmoid(logit - z)
    value = torch.trapezoid(curved(torch.sigmoid(z / temperature)) * density, z)
    return float(torch.autograd.grad(value, logit)[0])


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_concrete_estimates_the_relaxed_expectation(temperature):
    q = td.Bernoulli(logits=leaf(LOGIT))
    cost = lambda x: curved(x).sum(-1)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    found = mc.jacobians(cost, q, 100_000, mc.Concrete(temperature), generator=generator)["logits"]
    error = float(found.std()) / 100_000**0.5
    assert abs(float(found.mean()) - relaxed_gradient(temperature)) < 4 * error


def test_concrete_bias_vanishes_with_temperature():
    """In proportion to it once it is small; above, the bias may change sign."""
    p = torch.sigmoid(torch.tensor(LOGIT, dtype=torch.float64))
    exact = float(p * (1 - p) * (curved(torch.tensor(1.0)) - curved(torch.tensor(0.0))))
    bias = [abs(relaxed_gradient(t) - exact) for t in (1.0, 0.08, 0.04, 0.02, 0.01)]
    assert bias == sorted(bias, reverse=True)
    assert bias[-1] < 0.02 * bias[0]
    assert bias[3] / bias[4] == pytest.approx(2, rel=0.1)


def test_gumbel_softmax_bias_shrinks_with_temperature():
    case, integrand = mc_cases.CASES["OneHotCategorical"], mc_cases.INTEGRANDS["quadratic"]
    exact = case.exact(integrand)["logits"]

    def bias(temperature):
        found = mc_cases.gradients("OneHotCategorical", f"Concrete, temperature {temperature:g}", integrand, 50_000, 0)
        return float((found["logits"].mean(0) - exact).norm())

    assert bias(0.1) < 0.3 * bias(1.0)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_straight_through_sees_discrete_samples(temperature):
    seen = []

    def cost(x):
        seen.append(x.detach())
        return x[..., 0]

    q = td.OneHotCategorical(logits=leaf(0.2, -0.3, 0.4))
    value = mc.expectation(cost, q, 500, mc.StraightThrough(temperature))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0} and (seen[0].sum(-1) == 1).all()
    assert value.requires_grad


def test_straight_through_is_exact_where_f_is_linear():
    logits = leaf(0.4, -1.0)
    weights = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = mc.jacobians(lambda b: b @ weights, td.Bernoulli(logits=logits), 3, mc.StraightThrough())["logits"]
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(found, (weights * p * (1 - p)).expand(3, 2))


@pytest.mark.parametrize("family", [BinaryRelaxation, OneHotRelaxation])
def test_conditional_latents_agree_with_the_marginal(family):
    """hard(z given b) = b; over a random b, z given b has the law of z; and the noise is that of q."""
    generator = torch.Generator().manual_seed(0)
    shape = (30_000, 3)
    logits = torch.log_softmax(torch.tensor([0.4, -0.8, 0.1], dtype=torch.float64), -1).expand(shape)
    z = family.latent(logits, generator)
    b = family.hard(z)
    again = family.conditional(logits, b, generator)
    assert torch.equal(family.hard(again), b)
    law = stats.logistic if family is BinaryRelaxation else stats.gumbel_r
    for i in range(3):
        assert stats.kstest(z[:, i].numpy(), law(loc=float(logits[0, i])).cdf).pvalue > 1e-3
        assert stats.kstest(again[:, i].numpy(), law(loc=float(logits[0, i])).cdf).pvalue > 1e-3
    q = td.Bernoulli(logits=logits[0]) if family is BinaryRelaxation else td.OneHotCategorical(logits=logits[0])
    deviation = (b.mean(0) - q.mean).abs() / (q.variance / shape[0]).sqrt()
    assert (deviation < 4).all()


@pytest.mark.parametrize("estimator", [mc.Concrete(), mc.StraightThrough(), mc.REBAR()])
def test_relaxations_refuse_other_distributions(estimator):
    for q in (td.Categorical(logits=leaf(0.1, 0.2)), td.Poisson(leaf(1.0))):
        with pytest.raises(ValueError, match=r"needs a Bernoulli or a OneHotCategorical.*Enumerate"):
            mc.expectation(lambda x: x.sum(-1), q, 4, estimator)


@pytest.mark.parametrize("estimator", [mc.Concrete(), mc.StraightThrough(), mc.REBAR()])
def test_a_detached_cost_is_refused(estimator):
    with pytest.raises(ValueError, match=r"differentiates through f.*ScoreFunction"):
        mc.expectation(lambda b: b.detach().sum(-1), td.Bernoulli(logits=leaf(0.1, 0.2)), 4, estimator)


@pytest.mark.parametrize("build", [mc.Concrete, mc.StraightThrough, mc.REBAR])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_are_positive(build, temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        build(temperature)

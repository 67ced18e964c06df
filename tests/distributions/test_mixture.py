"""Mixtures and `implicit_rsample`: against quadrature, against finite differences of quantiles, and their errors."""

from __future__ import annotations

import pytest
import torch
from scipy import optimize
from torch.distributions import Categorical, Exponential, Independent, MultivariateNormal, Normal, Poisson

import accel.distributions as ours

LOC, SCALE = torch.tensor([-2.0, 0.0, 1.5]).double(), torch.tensor([0.5, 1.0, 0.3]).double()
LOGITS = torch.tensor([0.1, -0.4, 0.6]).double()


def leaves(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def mixture(logits, loc, scale, factorised=False):
    component = Independent(Normal(loc, scale), 1) if factorised else Normal(loc, scale)
    return ours.MixtureSameFamily(Categorical(logits=logits), component)


def quantile(u, logits, loc, scale):
    q = mixture(logits, loc, scale)
    return optimize.brentq(lambda z: float(q.cdf(torch.tensor(z, dtype=torch.float64))) - u, -20, 20, xtol=1e-14)


def test_univariate_first_and_second_derivatives_are_those_of_the_quantile():
    parameters = leaves(LOGITS, LOC, SCALE)
    generator = torch.Generator().manual_seed(4)
    z = mixture(*parameters).rsample(generator=generator)
    with torch.no_grad():
        u = float(mixture(*parameters).cdf(z))
    first = torch.autograd.grad(z, parameters, create_graph=True)
    step = 1e-4
    for number, gradient in enumerate(first):
        for i in range(3):
            moved = [[p.detach().clone() for p in parameters] for _ in range(2)]
            moved[0][number][i] += step
            moved[1][number][i] -= step
            up, down = (quantile(u, *p) for p in moved)
            assert gradient[i].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)
            (curvature,) = torch.autograd.grad(gradient[i], parameters[number], retain_graph=True)
            assert curvature[i].item() == pytest.approx((up + down - 2 * z.item()) / step**2, rel=1e-3, abs=1e-5)


def test_the_third_derivative_raises():
    (loc,) = leaves(LOC)
    z = mixture(LOGITS, loc, SCALE).rsample()
    first = torch.autograd.grad(z, loc, create_graph=True)[0].sum()
    second = torch.autograd.grad(first, loc, create_graph=True)[0].sum()
    with pytest.raises(RuntimeError, match="up to order 2"):
        torch.autograd.grad(second, loc)


def test_gradient_of_a_mean_matches_its_closed_form():
    n = 20_000
    logits, loc, scale = leaves(*(tensor.expand(n, 3) for tensor in (LOGITS, LOC, SCALE)))
    z = mixture(logits, loc, scale).rsample(generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(z.square().sum(), (logits, loc, scale))
    weights = LOGITS.softmax(0)
    second_moment = LOC**2 + SCALE**2
    exact = (weights * (second_moment - weights @ second_moment), 2 * weights * LOC, 2 * weights * SCALE)
    for values, expected in zip(found, exact):
        assert (abs(values.mean(0) - expected) / (values.std(0) / n**0.5)).max() < 4


def test_factorised_gradient_of_a_product():
    """f = z_1 z_2 feels every coupling of the triangular system; exact by E z_1 z_2 = sum w m_1 m_2."""
    n = 40_000
    means = torch.tensor([[-1.0, 0.5], [0.3, 1.0], [1.2, -0.8]]).double()
    logits, loc = leaves(LOGITS.expand(n, 3), means.expand(n, 3, 2))
    z = mixture(logits, loc, torch.full((n, 3, 2), 0.7).double(), factorised=True).rsample(
        generator=torch.Generator().manual_seed(2)
    )
    found = torch.autograd.grad((z[:, 0] * z[:, 1]).sum(), (logits, loc))
    weights = LOGITS.softmax(0)
    products = means.prod(-1)
    exact = (weights * (products - weights @ products), weights[:, None] * means.flip(-1))
    for values, expected in zip(found, exact):
        assert (abs(values.mean(0) - expected) / (values.std(0) / n**0.5)).max() < 4


def test_factorised_second_derivative_matches_finite_differences_of_the_first():
    """The residual S(z; phi) = u is solved again at moved parameters; the gradient there is differenced."""
    means = torch.tensor([[-1.0, 0.5], [0.3, 1.0], [1.2, -0.8]]).double()
    (loc,) = leaves(means)
    z = mixture(LOGITS, loc, torch.ones(3, 2).double(), factorised=True).rsample(
        generator=torch.Generator().manual_seed(3)
    )
    (first,) = torch.autograd.grad(z[1], loc, create_graph=True)
    (second,) = torch.autograd.grad(first[0, 0], loc)
    step, values = 1e-4, []
    for sign in (1, -1):
        moved = means.clone()
        moved[0, 0] += sign * step
        values.append(solve_quantiles(uniforms(z.detach(), means), moved)[1])
    centre = z[1].item()
    assert first[0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)
    assert second[0, 0].item() == pytest.approx((values[0] + values[1] - 2 * centre) / step**2, rel=1e-3, abs=1e-5)


def conditionals(z, means, d):
    weights = (LOGITS + Normal(means[:, :d], 1.0).log_prob(z[:d]).sum(-1)).softmax(0)
    return lambda value: float(
        (weights * Normal(means[:, d], 1.0).cdf(torch.as_tensor(value, dtype=torch.float64))).sum()
    )


def uniforms(z, means):
    return [conditionals(z, means, d)(z[d]) for d in range(2)]


def solve_quantiles(u, means):
    z = torch.zeros(2).double()
    for d in range(2):
        cdf = conditionals(z, means, d)
        z[d] = optimize.brentq(lambda value, cdf=cdf, d=d: cdf(value) - u[d], -20, 20, xtol=1e-14)
    return z.tolist()


def test_mixture_of_our_gammas_and_batches():
    concentration, logits = leaves(torch.rand(4, 3).double() + 0.5, torch.zeros(4, 3).double())
    q = ours.MixtureSameFamily(Categorical(logits=logits), ours.Gamma(concentration, torch.ones(4, 3).double()))
    assert q.has_rsample and isinstance(q, torch.distributions.MixtureSameFamily)
    z = q.rsample((5,), generator=torch.Generator().manual_seed(0))
    assert z.shape == (5, 4)
    assert torch.equal(z, q.sample((5,), generator=torch.Generator().manual_seed(0)))
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(z.sum(), (concentration, logits)))
    assert q.expand((2, 4)).rsample().shape == (2, 4)


@pytest.mark.parametrize(
    "component",
    [
        MultivariateNormal(torch.zeros(3, 2), torch.eye(2)),
        Poisson(torch.ones(3)),
        torch.distributions.Beta(torch.ones(3), torch.ones(3)),
    ],
)
def test_components_that_cannot_be_reparameterized(component):
    q = ours.MixtureSameFamily(Categorical(logits=torch.zeros(3)), component)
    assert not q.has_rsample and q.sample((2,)).shape[0] == 2
    with pytest.raises(NotImplementedError, match="ScoreFunction"):
        q.rsample()


def test_implicit_rsample_equals_the_explicit_path():
    (rate,) = leaves(torch.tensor([0.5, 2.0]).double())
    sample = Exponential(rate.detach()).sample((100,))
    z = ours.implicit_rsample(lambda value: Exponential(rate).cdf(value), sample)
    assert torch.equal(z, sample)
    (first,) = torch.autograd.grad(z.sum(), rate, create_graph=True)
    torch.testing.assert_close(first, (-sample / rate).sum(0))
    (second,) = torch.autograd.grad(first.sum(), rate)
    torch.testing.assert_close(second, (2 * sample / rate**2).sum(0))
    assert ours.implicit_rsample(Normal(0.0, 1.0).cdf, torch.zeros(2)).requires_grad is False


def test_implicit_rsample_says_what_is_wrong():
    sample = torch.zeros(3)
    for cdf, value, error, message in (
        (0.5, sample, TypeError, "function"),
        (torch.sigmoid, torch.zeros(3, dtype=torch.int64), TypeError, "int64"),
        (lambda z: z.sum(), sample, ValueError, "one value per element"),
        (lambda z: torch.full_like(z, 0.5), sample, ValueError, "does not depend"),
        (lambda z: (-z).sigmoid(), sample, ValueError, "increase"),
        (lambda z: z * torch.nan, sample, ValueError, "increase"),
    ):
        with pytest.raises(error, match=message):
            ours.implicit_rsample(cdf, value)

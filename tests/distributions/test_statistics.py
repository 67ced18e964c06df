"""Samples follow their law (Kolmogorov-Smirnov), and their gradients have the expectations that moments dictate."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import accel.distributions as ours

N = 20_000


def double(value):
    return torch.tensor(value, dtype=torch.float64)


LAWS = {
    "Gamma small": (lambda: ours.Gamma(double(0.3), double(2.0)), stats.gamma(0.3, scale=0.5).cdf),
    "Gamma large": (lambda: ours.Gamma(double(40.0), double(1.0)), stats.gamma(40).cdf),
    "Chi2": (lambda: ours.Chi2(double(3.0)), stats.chi2(3).cdf),
    "InverseGamma": (lambda: ours.InverseGamma(double(3.0), double(2.0)), stats.invgamma(3, scale=2).cdf),
    "Beta": (lambda: ours.Beta(double(0.4), double(2.0)), stats.beta(0.4, 2).cdf),
    "StudentT": (lambda: ours.StudentT(double(3.0), double(1.0), double(2.0)), stats.t(3, 1, 2).cdf),
    "FisherSnedecor": (lambda: ours.FisherSnedecor(double(3.0), double(5.0)), stats.f(3, 5).cdf),
    "VonMises wide": (lambda: ours.VonMises(double(0.0), double(1e-3)), stats.vonmises(1e-3).cdf),
    "VonMises": (lambda: ours.VonMises(double(0.5), double(2.0)), None),
    "VonMises narrow": (lambda: ours.VonMises(double(0.0), double(1e6)), stats.norm(scale=1e-3).cdf),
    "TruncatedNormal": (lambda: ours.TruncatedNormal(1.0, double(2.0), -1.0, 2.5), stats.truncnorm(-1, 0.75, 1, 2).cdf),
    "TruncatedNormal tail": (lambda: ours.TruncatedNormal(0.0, double(1.0), 6.0), stats.truncnorm(6, math.inf).cdf),
}


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_law(name):
    build, cdf = LAWS[name]
    sample = build().sample((N,), generator=torch.Generator().manual_seed(11)).numpy()
    if cdf is None:  # the interval of scipy's von Mises is centred on its mean
        sample, cdf = (sample - 0.5 + math.pi) % (2 * math.pi) - math.pi, stats.vonmises(2.0).cdf
    assert stats.kstest(sample, cdf).pvalue > 1e-3


def test_dirichlet_marginals():
    alpha = double([0.3, 2.0, 5.0])
    sample = ours.Dirichlet(alpha).sample((N,), generator=torch.Generator().manual_seed(5))
    for i in range(3):
        assert stats.kstest(sample[:, i].numpy(), stats.beta(alpha[i], alpha.sum() - alpha[i]).cdf).pvalue > 1e-3


def z_score(values, expected):
    return abs(values.mean() - expected) / (values.std() / len(values) ** 0.5)


def gradients(build, *parameters, function=lambda z: z):
    """Per-sample derivatives of function(z) in every parameter."""
    leaves = [double(value).expand(N, *double(value).shape).clone().requires_grad_() for value in parameters]
    sample = build(*leaves).rsample(generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad(function(sample).sum(), leaves)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 9.5, 200.0])
def test_gamma_moment_identities(alpha):
    trigamma = torch.special.polygamma(1, double(alpha))
    for function, by_alpha, by_rate in (
        (lambda z: z, 1.0, -alpha),
        (lambda z: z * z, 2 * alpha + 1, -2 * alpha * (alpha + 1)),
        (torch.log, trigamma, -1.0),
    ):
        in_alpha, in_rate = gradients(ours.Gamma, alpha, 1.0, function=function)
        assert z_score(in_alpha, by_alpha) < 4
        assert function is torch.log or z_score(in_rate, by_rate) < 4
        assert function is not torch.log or torch.allclose(in_rate, double(-1.0))


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.2), (2.0, 5.0), (300.0, 100.0)])
def test_beta_and_dirichlet_moment_identities(a, b):
    in_a, in_b = gradients(ours.Beta, a, b)
    assert z_score(in_a, b / (a + b) ** 2) < 4 and z_score(in_b, -a / (a + b) ** 2) < 4
    alpha = double([a, b, 1.5])
    (matrix,) = gradients(ours.Dirichlet, alpha.tolist(), function=lambda x: x[:, 0])
    total = alpha.sum()
    expected = double([1.0, 0, 0]) / total - alpha[0] / total**2
    for j in range(3):
        assert z_score(matrix[:, j], expected[j]) < 4
    (zero,) = gradients(ours.Dirichlet, alpha.tolist(), function=lambda x: x.sum(-1))
    assert zero.abs().max() < 1e-12


def test_beta_gradient_has_less_variance_than_that_through_two_gammas():
    a, b = (double(value).expand(N).clone().requires_grad_() for value in (0.7, 1.5))
    one, two = ours.Gamma(a, 1.0).rsample(), ours.Gamma(b, 1.0).rsample()
    (through,) = torch.autograd.grad((one / (one + two)).sum(), a)
    (direct,) = torch.autograd.grad(ours.Beta(a, b).rsample().sum(), a)
    assert direct.var() < through.var()


def test_student_and_fisher_moment_identities():
    df = 9.0  # E |t|^2 = df / (df - 2)
    in_df = gradients(ours.StudentT, df, 0.5, 2.0, function=lambda t: ((t - 0.5) / 2).square())[0]
    assert z_score(in_df, -2 / (df - 2) ** 2) < 4
    in_one, in_two = gradients(ours.FisherSnedecor, 4.0, 12.0)  # E x = df2 / (df2 - 2)
    assert z_score(in_one, 0.0) < 4 and z_score(in_two, -2 / 100) < 4


@pytest.mark.parametrize("kappa", [0.05, 2.0, 60.0])
def test_von_mises_moment_identity(kappa):
    in_loc, in_kappa = gradients(ours.VonMises, 0.3, kappa, function=lambda z: (z - 0.3).cos())
    a = float(torch.special.i1e(double(kappa)) / torch.special.i0e(double(kappa)))
    assert z_score(in_kappa, 1 - a / kappa - a * a) < 4
    assert z_score(in_loc, 0.0) < 4 or in_loc.abs().max() < 1e-9


def test_truncated_normal_moment_identities():
    loc, scale, low, high = (double(value).requires_grad_() for value in (0.4, 1.3, -1.0, 2.0))
    q = ours.TruncatedNormal(loc, scale, low, high)
    exact = torch.autograd.grad(q.mean, (loc, scale, low, high))
    found = gradients(ours.TruncatedNormal, 0.4, 1.3, -1.0, 2.0)
    for values, expected in zip(found, exact):
        assert z_score(values, expected) < 4


def test_von_mises_score_function_has_500_times_the_variance():
    """d/dkappa of E cos z at kappa = 50: per-sample variance without baseline over that of rsample."""
    kappa = double(50.0)
    (implicit,) = gradients(ours.VonMises, 0.0, 50.0, function=torch.cos)[1:]
    z = ours.VonMises(double(0.0), kappa).sample((N,), generator=torch.Generator().manual_seed(1))
    mean = torch.special.i1e(kappa) / torch.special.i0e(kappa)
    score = z.cos() * (z.cos() - mean)
    assert score.var() / implicit.var() > 500

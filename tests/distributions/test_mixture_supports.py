"""Mixtures of components on different intervals: exact gradients, densities and CDFs, or an honest has_rsample."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, HalfNormal, Independent, Pareto, Uniform

import accel.distributions as ours

N = 4000


def leaves(*rows):
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows]


def uniforms(low, high):
    return Uniform(low, high)


def truncated(low, high):
    return ours.TruncatedNormal(torch.zeros_like(low), torch.ones_like(low), low, high)


def paretos(scale, alpha):
    return Pareto(scale, alpha)


def uniform_cdf(z, low, high):
    return ((z - low) / (high - low)).clamp(0, 1)


def truncated_cdf(z, low, high):
    z = torch.minimum(torch.maximum(z, low), high)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    return (torch.special.ndtr(z) - torch.special.ndtr(low)) / mass


def pareto_cdf(z, scale, alpha):
    return torch.where(z > scale, 1 - (scale / torch.maximum(z, scale)) ** alpha, 0.0)


CASES = {
    "overlapping Uniforms": (uniforms, uniform_cdf, [0.0, 0.5, -1.0], [1.0, 2.0, 0.25]),
    "Uniforms apart": (uniforms, uniform_cdf, [0.0, 5.0, -3.0], [1.0, 6.0, -2.0]),
    "TruncatedNormals": (truncated, truncated_cdf, [0.0, -2.0, 0.5], [1.0, 0.25, 3.0]),
    "Paretos": (paretos, pareto_cdf, [0.5, 1.0, 3.0], [2.0, 1.5, 3.0]),
}
cases = pytest.mark.parametrize("name", CASES)


def mixture(build, logits, first, second):
    return ours.MixtureSameFamily(Categorical(logits=logits), build(first, second), validate_args=True)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_implicit_ones(name, dtype):
    """-(dS/dphi) / S' of the exact CDF S = sum w F, by autograd in float64."""
    build, exact_cdf, *bounds = CASES[name]
    rows = [torch.tensor(row, dtype=dtype).expand(N, 3).clone().requires_grad_() for row in ([0.3, 0.1, -0.2], *bounds)]
    q = mixture(build, *rows)
    z = q.rsample(generator=torch.Generator().manual_seed(0))
    assert q.has_rsample and z.dtype == dtype and q.support.check(z).all()
    found = torch.autograd.grad(z.sum(), rows)
    wide = [row.detach().double().requires_grad_() for row in rows]
    point = z.detach().double().requires_grad_()
    value = (wide[0].softmax(-1) * exact_cdf(point.unsqueeze(-1), *wide[1:])).sum()
    density, *slopes = torch.autograd.grad(value, (point, *wide))
    inside = density > 1e-3  # the rest are samples that float32 has rounded onto an end
    assert inside.double().mean() > 0.99
    for gradient, slope in zip(found, slopes):
        expected = -slope / density.unsqueeze(-1)
        assert gradient.isfinite().all()
        tolerance = 1e-8 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(gradient.double()[inside], expected[inside], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(q.cdf(z).double().sum(), value, rtol=1e-5, atol=0)
    torch.testing.assert_close(q.log_prob(z).exp().double()[inside], density[inside], rtol=1e-3, atol=1e-5)


def test_gradient_of_a_mean_of_uniforms():
    logits, low, high = leaves([0.0, 0.0], [0.0, 3.0], [1.0, 5.0])
    z = mixture(uniforms, logits, low, high).rsample((20_000,), generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(z.square().mean(), (low, high))
    # E z^2 = mean over components of (l^2 + l h + h^2) / 3
    torch.testing.assert_close(found[0], (2 * low + high).detach() / 6, rtol=0, atol=0.05)
    torch.testing.assert_close(found[1], (low + 2 * high).detach() / 6, rtol=0, atol=0.05)


def test_the_end_of_a_support_belongs_to_it():
    """torch's Uniform has density 0 at its upper end, onto which float32 samples round."""
    q = mixture(uniforms, *leaves([0.0, 0.0], [0.0, 3.0], [1.0, 5.0]))
    torch.testing.assert_close(q.log_prob(torch.tensor(1.0).double()).exp(), torch.tensor(0.5).double())
    assert q.cdf(torch.tensor(5.0).double()).item() == pytest.approx(1)


def test_vectors_of_one_support_have_samples_with_gradients_and_others_say_that_they_have_not():
    low, high = leaves([[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [1.0, 2.0]])
    other = torch.tensor([[0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    build = lambda low, high: Independent(truncated(low, high), 1)  # noqa: E731
    logits = torch.zeros(2, dtype=torch.float64)
    assert mixture(build, logits, low, high).has_rsample
    q = mixture(build, logits, other, high)
    assert not q.has_rsample and q.log_prob(q.sample((9,))).isfinite().all()
    with pytest.raises(NotImplementedError, match="of one support"):
        q.rsample()
    scale = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64, requires_grad=True)
    z = ours.MixtureSameFamily(Categorical(logits=logits), Independent(HalfNormal(scale), 1)).rsample((50,))
    assert torch.autograd.grad(z.sum(), scale)[0].isfinite().all()

"""The robust bound: its order, its limits, the weights it gives, and noise that it survives."""

import itertools
import math

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.tests.vae.models import all_bits, enumerated, linear_gaussian, one_layer, seeded
from accel.vae import (
    VAE,
    annealed_log_alpha,
    auroc,
    choose_log_alpha,
    elbo,
    iwae,
    latents,
    likelihoods,
    robust_elbo,
    trimmed_mean,
)


@pytest.mark.parametrize("log_alpha", [-6.0, -2.5, 0.0])
def test_the_variants_are_ordered_by_enumeration(log_alpha):
    vae = one_layer()
    x = all_bits(3)
    weights, log_q = (found.detach().double() for found in enumerated(vae, x, 3))
    q, alpha = log_q.exp(), torch.tensor(log_alpha, dtype=torch.float64)
    chain = [torch.logaddexp(alpha, (q * weights).sum(0)), (q * torch.logaddexp(alpha, weights)).sum(0)]
    for count in (2, 3):  # all pairs and triples of states
        states = torch.cartesian_prod(*[torch.arange(8)] * count)
        inside = weights[states].logsumexp(1) - math.log(count)
        chain.append((log_q[states].sum(1).exp() * torch.logaddexp(alpha, inside)).sum(0))
    chain.append(torch.logaddexp(alpha, (log_q + weights).logsumexp(0)))  # log(alpha + p(x))
    for lower, higher in itertools.pairwise(chain):
        assert (lower <= higher + 1e-9).all() and (lower < higher - 1e-6).any()
    many = x[None].expand(20_000, -1, -1).flatten(0, 1)
    with torch.no_grad():
        for exact, kind, samples in ((chain[1], "expected", 1), (chain[3], "iwae", 3)):
            found = robust_elbo(vae, many, log_alpha, samples, variant=kind, generator=seeded()).view(20_000, 8)
            assert ((found.mean(0) - exact).abs() < 4.5 * found.std(0) / math.sqrt(20_000) + 1e-5).all()
        found = robust_elbo(vae, x, log_alpha, 20_000, variant="elbo", generator=seeded())
        torch.testing.assert_close(found.double(), chain[0], rtol=0, atol=0.02)


def test_without_alpha_they_are_the_plain_bounds_and_with_a_large_one_constant():
    vae, _ = linear_gaussian()
    x = torch.randn(4, 3, generator=seeded())
    plain = {
        "elbo": elbo(vae, x, generator=seeded(1)),
        "expected": elbo(vae, x, gradient="stl", generator=seeded(1)),
        "iwae": iwae(vae, x, 5, generator=seeded(1)),
    }
    for kind, expected in plain.items():
        samples = 5 if kind == "iwae" else 1
        for log_alpha in (-math.inf, -1e4):
            found = robust_elbo(vae, x, log_alpha, samples, variant=kind, generator=seeded(1))
            torch.testing.assert_close(found, expected)
        found = robust_elbo(vae, x, 1e4, samples, variant=kind, generator=seeded(1))
        assert (found == 1e4).all()
        gradient = torch.autograd.grad(found.sum(), vae.encoder.weight)[0]
        assert (gradient == 0).all()


def test_an_examples_gradient_is_weighted_by_a_sigmoid():
    vae, _ = linear_gaussian()
    x = torch.randn(1, 3, generator=seeded(2))
    parameters = list(vae.parameters())
    for kind, bound in (
        ("elbo", elbo(vae, x, generator=seeded(3))),
        ("expected", iwae(vae, x, 1, generator=seeded(3))),
        ("iwae", iwae(vae, x, 4, generator=seeded(3))),
    ):
        robust = robust_elbo(vae, x, -5.0, 4 if kind == "iwae" else 1, variant=kind, generator=seeded(3))
        weight = torch.sigmoid(bound.detach() + 5.0)
        assert 0.05 < weight < 0.99
        expected = torch.autograd.grad(bound.sum() * weight.item(), parameters, allow_unused=True)
        found = torch.autograd.grad(robust.sum(), parameters, allow_unused=True)
        for a, b in zip(found, expected):
            assert a is b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def contaminated(count, generator):
    """Clean points near (2, 2) and 60 % uniform noise on [-20, 20]^2; the clean ones come first."""
    clean = 2 + 0.5 * torch.randn(2 * count // 5, 2, generator=generator)
    noise = 40 * torch.rand(count - len(clean), 2, generator=generator) - 20
    return torch.cat([clean, noise])


def train(log_alpha, x, steps=400):
    torch.manual_seed(0)
    vae = VAE(nn.Linear(2, 2), nn.Linear(1, 2), latents.normal(1), likelihoods.Normal(1.0))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.03)
    for step in range(steps):
        optimizer.zero_grad()
        (-robust_elbo(vae, x, log_alpha, generator=seeded(step)).mean()).backward()
        optimizer.step()
    vae.log_alpha.fill_(log_alpha)
    return vae


def test_more_noise_than_data_is_survived():
    x = contaminated(1000, seeded(4))
    clean = 2 + 0.5 * torch.randn(500, 2, generator=seeded(5))
    fits = {log_alpha: train(log_alpha, x) for log_alpha in (-math.inf, -6.0)}
    plain, robust = (elbo(fit, clean, 20, generator=seeded(6)).mean() for fit in fits.values())
    assert robust > plain + 2  # nats
    chosen, scores = choose_log_alpha(fits, contaminated(500, seeded(7)), keep=0.3)
    assert chosen == -6.0 and scores[-6.0] > scores[-math.inf]
    score = fits[-6.0].outlier_score(x, generator=seeded(8))
    assert score.dtype is torch.float64 and ((score >= 0) & (score <= 1)).all()
    far = (x - 2).norm(dim=1) > 3
    assert score[far].min() > score[:400].median() and score[far].median() > 0.9 > 0.3 > score[:400].median()


def test_the_auroc_is_that_of_all_pairs():
    scores = torch.tensor([0.1, 0.4, 0.4, 0.9, 1.0, 0.4])
    positive = torch.tensor([False, False, True, True, False, True])
    pairs = scores[positive][:, None] - scores[~positive]
    by_hand = ((pairs > 0).double() + (pairs == 0).double() / 2).mean()
    assert math.isclose(auroc(scores, positive), float(by_hand))
    assert auroc(positive.float(), positive) == 1 and auroc(torch.zeros(6), positive) == 0.5
    for some in (torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)):
        with pytest.raises(ConfigError, match="both kinds"):
            auroc(scores, some)


def test_log_alpha_rises_to_its_value():
    values = [annealed_log_alpha(step, 4, -100.0, -300.0) for step in range(6)]
    assert values == [-300.0, -250.0, -200.0, -150.0, -100.0, -100.0]
    assert annealed_log_alpha(0, 4, -100.0, -math.inf) == annealed_log_alpha(0, 0, -100.0, -300.0) == -100.0
    with pytest.raises(ConfigError, match="annealed upwards"):
        annealed_log_alpha(0, 4, -100.0, -50.0)


def test_the_trimmed_mean_leaves_the_lowest_out():
    assert trimmed_mean(torch.tensor([1.0, -1e9, 3.0, 2.0]), 0.5) == 2.5
    for values, keep in ((torch.ones(3), 0.0), (torch.ones(0), 0.5)):
        with pytest.raises(ConfigError, match="trimmed mean needs"):
            trimmed_mean(values, keep)
    with pytest.raises(ConfigError, match="at least one trained VAE"):
        choose_log_alpha({}, torch.ones(1, 1), 0.5)

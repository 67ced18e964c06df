"""The truncated geometric prior: closed forms, and the divergence by enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from accel.halting import TruncatedGeometric


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.01, 0.7, 5.0])
def test_closed_forms(tau, length):
    prior = TruncatedGeometric(tau, length)
    total = math.exp(-tau) * (1 - math.exp(-tau * length)) / (1 - math.exp(-tau))
    expected = [math.exp(-tau * unit) / total for unit in range(1, length + 1)]
    assert prior.log_prob().exp().tolist() == pytest.approx(expected, abs=1e-12)
    assert prior.mean == pytest.approx(sum(unit * p for unit, p in enumerate(expected, 1)))


def test_limits():
    assert TruncatedGeometric(0.0, 4).log_prob().exp().tolist() == pytest.approx([0.25] * 4)
    assert TruncatedGeometric(800.0, 4).log_prob().exp().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("tau", [0.0, 1e-9, 0.3, 4.0])
def test_hazards_give_the_prior_back(tau):
    prior, left = TruncatedGeometric(tau, 4), 0.0
    log_probs = []
    for halts, goes in prior.log_hazards():
        assert math.exp(halts) + math.exp(goes) == pytest.approx(1)
        log_probs.append(left + halts)
        left += goes
    assert [*log_probs, left] == pytest.approx(prior.log_prob().tolist(), abs=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.3, 4.0])
def test_divergence_is_that_of_the_distributions(tau):
    """sum_l q(l) log(q(l) / p(l)), gradients in the hazards included."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    hazards = torch.cat((logits.sigmoid(), torch.ones_like(logits[:1])))
    left = torch.cat((torch.ones_like(hazards[:1]), (1 - hazards[:-1]).cumprod(0)))
    q = hazards * left
    prior = TruncatedGeometric(tau, 4)
    expected = (q * (q.log() - prior.log_prob()[:, None])).sum(0)
    got = prior.divergence(logits, q)
    torch.testing.assert_close(got, expected)
    wanted = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (got, expected)]
    torch.testing.assert_close(*wanted)


def test_divergence_stays_a_number_for_certain_decisions():
    logits = torch.tensor([[-90.0, 90.0], [120.0, 3.0]], requires_grad=True)
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    value = TruncatedGeometric(0.5, 3).divergence(logits, weights)
    assert value.tolist() == pytest.approx([-float(TruncatedGeometric(0.5, 3).log_prob()[k]) for k in (1, 0)], rel=1e-5)
    value.sum().backward()
    assert logits.grad.isfinite().all()

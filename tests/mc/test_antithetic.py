import pytest
import torch
from torch import distributions as td

from accel import mc

ESTIMATORS = pytest.mark.parametrize("estimator", [mc.DisARM(), mc.ARM()], ids=["DisARM", "ARM"])


@ESTIMATORS
@pytest.mark.parametrize("p", [0.2, 0.5, 0.85])
def test_one_bit_by_enumeration_of_the_noise(p, estimator, monkeypatch):
    """Over an even grid of uniforms the estimator's mean is p (1 - p) (f(1) - f(0)) to the grid's resolution."""
    count = 10_000
    grid = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    monkeypatch.setattr("accel.mc.antithetic.uniform", lambda like, generator: grid)
    probs = torch.tensor([p], dtype=torch.float64)
    logits = torch.logit(probs).requires_grad_()
    found = mc.jacobians(lambda b: 3 * b[:, 0] + 1, td.Bernoulli(logits=logits), count, estimator)["logits"]
    assert float(found.mean()) == pytest.approx(3 * p * (1 - p), abs=1e-3)


def test_pairs_are_antithetic_and_both_follow_q():
    seen = []

    def cost(b):
        seen.append(b)
        return b.sum(-1)

    probs = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    mc.expectation(cost, td.Bernoulli(probs=probs), 50_000, mc.DisARM(), generator=torch.Generator().manual_seed(0))
    first, second = seen[0].chunk(2)
    for b in (first, second):
        assert ((b.mean(0) - probs).abs() < 4 * (probs * (1 - probs) / 50_000).sqrt()).all()
    assert not (first * second)[:, 0].any()  # p < 1/2: never both one
    assert (first + second)[:, 1].min() == 1  # p > 1/2: never both zero


def test_at_most_the_variance_of_two_leave_one_out_samples():
    """The paper's claim at equal evaluations, here on 20 bits."""
    logits = torch.linspace(-2, 2, 20, dtype=torch.float64).requires_grad_()
    q = td.Bernoulli(logits=logits)
    cost = lambda b: ((b - 0.45) ** 2).sum(-1)  # noqa: E731
    pairs = mc.jacobians(cost, q, 20_000, mc.DisARM(), generator=torch.Generator().manual_seed(0))["logits"]
    groups = q.expand((20_000, 20))
    rows = mc.jacobians(
        lambda b: cost(b.flatten(0, 1)).unflatten(0, b.shape[:2]),
        groups,
        2,
        mc.ScoreFunction(mc.LeaveOneOut()),
        generator=torch.Generator().manual_seed(1),
    )
    assert float(pairs.var(0).sum()) < float(rows["logits"].mean(0).var(0).sum())


def test_disarm_is_arm_without_the_noise_that_the_pair_does_not_tell():
    """Dong et al. 2020: the same mean, no logit's variance above ARM's."""
    q = td.Bernoulli(logits=torch.linspace(-2, 2, 20, dtype=torch.float64).requires_grad_())
    cost = lambda b: ((b - 0.45) ** 2).sum(-1)  # noqa: E731
    pair, noisy = (
        mc.jacobians(cost, q, 20_000, estimator, generator=torch.Generator().manual_seed(0))["logits"]
        for estimator in (mc.DisARM(), mc.ARM())
    )
    difference = noisy - pair
    assert (difference.mean(0).abs() < 4 * (difference.var(0) / len(pair)).sqrt()).all()
    assert (pair.var(0) < noisy.var(0)).all()


@ESTIMATORS
def test_other_distributions_are_refused(estimator):
    q = td.OneHotCategorical(logits=torch.zeros(3, requires_grad=True))
    with pytest.raises(
        ValueError, match=rf"^{type(estimator).__name__} is for Bernoulli variables, got OneHotCategorical.*REBAR"
    ):
        mc.expectation(lambda b: b[:, 0], q, 4, estimator)

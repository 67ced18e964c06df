import pytest
import torch
from torch import distributions as td

from accel import mc


def logits_of(count):
    return torch.zeros(count, dtype=torch.float64).requires_grad_()


def far(b):
    return ((b - 0.45) ** 2).sum(-1)


def test_leave_one_out_is_the_centred_covariance_form():
    """sum_n (f_n - b_n) s_n / N with b_n the others' mean equals sum_n (f_n - mean f) s_n / (N - 1)."""
    logits = torch.tensor([0.3, -0.6], dtype=torch.float64, requires_grad=True)
    q = td.Bernoulli(logits=logits)
    grads = mc.jacobians(far, q, 6, mc.ScoreFunction(mc.LeaveOneOut()), generator=torch.Generator().manual_seed(4))
    torch.manual_seed(4)
    b = q.expand((6, 2)).sample()  # the same draws
    costs, scores = far(b), b - torch.sigmoid(logits.detach())
    expected = ((costs - costs.mean())[:, None] * scores).sum(0) / 5
    torch.testing.assert_close(grads["logits"].mean(0), expected)


def test_leave_one_out_of_equal_costs_is_exactly_zero():
    q = td.Bernoulli(logits=logits_of(3))
    found = mc.jacobians(lambda b: 0 * b.sum(-1) + 0.1, q, 7, mc.ScoreFunction(mc.LeaveOneOut()))
    assert not found["logits"].any()


def test_leave_one_out_reduces_the_variance_a_hundredfold():
    """200 Bernoullis, 4 samples, f = sum (b - 0.45)^2."""
    q = td.Bernoulli(logits=logits_of(200))

    def variance(estimator):
        generator = torch.Generator().manual_seed(0)
        estimates = [mc.jacobians(far, q, 4, estimator, generator=generator)["logits"].mean(0) for _ in range(300)]
        return float(torch.stack(estimates).var(0).sum())

    ratio = variance(mc.ScoreFunction()) / variance(mc.ScoreFunction(mc.LeaveOneOut()))
    assert ratio > 100


def test_leave_one_out_needs_two_samples():
    with pytest.raises(ValueError, match=r"at least 2 samples.*MovingAverage"):
        mc.expectation(far, td.Bernoulli(logits=logits_of(2)), 1, mc.ScoreFunction(mc.LeaveOneOut()))


def test_moving_average_is_debiased_once():
    """Constant cost 1: the baseline is 0 before the first call and 1 ever after, however often it was read."""
    baseline = mc.MovingAverage(0.99)
    seen = [float(baseline(torch.ones(3, dtype=torch.float64))) for _ in range(50)]
    assert seen[0] == 0
    assert seen[1:] == pytest.approx([1.0] * 49, abs=1e-12)


def test_moving_average_follows_the_earlier_calls_only():
    baseline = mc.MovingAverage(0.5)
    costs = [torch.full((2,), value) for value in (4.0, 8.0, 100.0)]
    seen = [float(baseline(cost)) for cost in costs]
    assert seen == pytest.approx([0.0, 4.0, (0.25 * 4 + 0.5 * 8) / 0.75])


def test_moving_average_state_travels():
    old, new = mc.MovingAverage(0.5), mc.MovingAverage(0.5)
    old(torch.ones(4))
    new.load_state_dict(old.state_dict())
    assert float(new(torch.zeros(1))) == 1.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_moving_average_rejects_a_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        mc.MovingAverage(decay)


def test_learned_baseline_regresses_on_the_costs_and_leaves_q_alone():
    network = torch.nn.Linear(1, 1, dtype=torch.float64)
    baseline = mc.LearnedBaseline(network)
    logits = logits_of(5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        baseline.context = torch.ones(1, dtype=torch.float64)
        q = td.Bernoulli(logits=logits)
        mc.expectation(far, q, 16, mc.ScoreFunction(baseline), generator=generator)
        optimizer.zero_grad()
        baseline.loss.backward()
        optimizer.step()
    assert logits.grad is None
    mean = 5 * (0.5 * 0.45**2 + 0.5 * 0.55**2)
    assert network(baseline.context).item() == pytest.approx(mean, abs=0.03)


def test_learned_baseline_wants_its_input():
    with pytest.raises(ValueError, match="context"):
        mc.LearnedBaseline(torch.nn.Linear(1, 1))(torch.zeros(3))


def test_a_baseline_of_the_wrong_shape_is_refused():
    q = td.Bernoulli(logits=logits_of(3))
    with pytest.raises(ValueError, match=r"baseline does not broadcast.*\(5,\)"):
        mc.expectation(far, q, 5, mc.ScoreFunction(lambda costs: torch.zeros(5, 1)))


def test_parameter_dependent_support_is_refused():
    high = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"support depends on the parameter.*MeasureValued"):
        mc.expectation(lambda x: x, td.Uniform(0.0, high), 3, mc.ScoreFunction())
    fixed = mc.expectation(lambda x: x, td.Uniform(0.0, high.detach()), 3, mc.ScoreFunction())
    assert 0 <= float(fixed) <= 1


def test_factorised_costs_drop_the_other_latents_from_the_estimate():
    """Rao-Blackwellised, the variance of one latent's gradient does not grow with the number of latents."""

    def variance(cost, count):
        q = td.Bernoulli(logits=logits_of(count))
        found = mc.jacobians(cost, q, 4000, mc.ScoreFunction(), generator=torch.Generator().manual_seed(0))
        return float(found["logits"].var(0).mean())

    joint, separate = (lambda b: far(b)), (lambda b: (b - 0.45) ** 2)
    assert variance(joint, 40) > 100 * variance(separate, 40)
    assert variance(separate, 40) == pytest.approx(variance(separate, 10), rel=0.1)


def test_pathwise_variance_of_a_quadratic():
    """f = (x - k)^2 has pathwise derivatives 2 (x - k) in the mean, hence variance 4 s^2."""
    loc, scale = torch.tensor([0.7], dtype=torch.float64, requires_grad=True), torch.tensor([1.3], dtype=torch.float64)
    q = td.Independent(td.Normal(loc, scale), 1)
    cost = lambda x: ((x - 2.0) ** 2).sum(-1)  # noqa: E731
    found = mc.jacobians(cost, q, 200_000, mc.Pathwise(), generator=torch.Generator().manual_seed(0))
    assert float(found["loc"].var()) == pytest.approx(4 * 1.3**2, rel=0.02)


def test_pathwise_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"Bernoulli has no rsample.*Enumerate"):
        mc.expectation(far, td.Bernoulli(logits=logits_of(2)), 3, mc.Pathwise())
    loc = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match=r"VonMises has no rsample.*accel.distributions"):
        mc.expectation(lambda x: x, td.VonMises(loc, torch.tensor(2.0)), 3, mc.Pathwise())
    with pytest.raises(ValueError, match=r"detached.*ScoreFunction"):
        mc.expectation(lambda x: x.detach() ** 2, td.Normal(loc, 1.0), 3, mc.Pathwise())

"""Bernoulli and categorical latents at the ends of their range: exact or refused, never NaN or a silent 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from accel import mc

INF = float("inf")
WEIGHTS = [2.0, 3.0, 5.0]
FAMILIES = {"Bernoulli": td.Bernoulli, "OneHotCategorical": td.OneHotCategorical, "Categorical": td.Categorical}


class Control(torch.nn.Module):
    def forward(self, z):
        return torch.tanh(z / 7).flatten(1).sum(-1)


ESTIMATORS = {
    "ScoreFunction": mc.ScoreFunction,
    "LeaveOneOut": lambda: mc.ScoreFunction(mc.LeaveOneOut()),
    "MeasureValued": mc.MeasureValued,
    "Enumerate": mc.Enumerate,
    "DisARM": mc.DisARM,
    "REBAR": mc.REBAR,
    "RELAX": lambda: mc.RELAX(Control()),
    "Concrete": mc.Concrete,
    "StraightThrough": mc.StraightThrough,
    "StraightThrough soft": lambda: mc.StraightThrough(0.5),
}
SAMPLED = ("ScoreFunction", "LeaveOneOut", "DisARM", "REBAR", "RELAX", "Concrete", "StraightThrough soft")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def cost(family, dtype):
    weights = torch.tensor(WEIGHTS, dtype=dtype)
    return (lambda x: weights[x]) if family == "Categorical" else (lambda x: x @ weights)


def run(name, family, dtype, count=3000, **parameter):
    ((spelling, values),) = parameter.items()
    leaf = torch.tensor(values, dtype=dtype, requires_grad=True)
    estimator = ESTIMATORS[name]()
    q = FAMILIES[family](**{spelling: leaf})
    value = mc.expectation(cost(family, dtype), q, count, estimator, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(value, leaf)
    loss = getattr(estimator, "loss", None)
    return value.item(), gradient, 0.0 if loss is None else loss.item()


# DisARM is for a Bernoulli; an index cannot be relaxed
ONLY = {"DisARM": ("Bernoulli",)} | dict.fromkeys(list(ESTIMATORS)[5:], ("Bernoulli", "OneHotCategorical"))
PAIRS = [(name, family) for name in ESTIMATORS for family in ONLY.get(name, FAMILIES)]


@dtypes
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("largest", [INF, 100.0])
def test_bernoulli_of_infinite_logits(name, largest, dtype):
    value, gradient, loss = run(name, "Bernoulli", dtype, logits=[0.3, largest, -largest])
    p = torch.tensor(0.3).sigmoid().item()
    relaxed = 0.15 if name in ("Concrete", "StraightThrough soft") else 0.0
    assert value == pytest.approx(2 * p + 3, abs=0.1 + relaxed)
    assert gradient[0].item() == pytest.approx(2 * p * (1 - p), abs=0.15 + relaxed)
    assert gradient[1:].abs().max() < 1e-12 and loss == pytest.approx(loss)


@dtypes
@pytest.mark.parametrize("name, family", [pair for pair in PAIRS if pair[1] != "Bernoulli"])
@pytest.mark.parametrize("logits", [[0.3, 0.1, -INF], [0.0, -INF, -INF], [0.3, -100.0, -INF]])
def test_masked_classes(name, family, logits, dtype):
    value, gradient, loss = run(name, family, dtype, logits=logits)
    weights, p = torch.tensor(WEIGHTS), torch.tensor(logits).softmax(-1)
    relaxed = 0.1 if name in ("Concrete", "StraightThrough soft") else 0.0
    assert value == pytest.approx((p @ weights).item(), abs=0.05)
    torch.testing.assert_close(gradient.float(), p * (weights - p @ weights), rtol=0, atol=0.1 + relaxed)
    assert gradient[2] == 0 and loss == pytest.approx(loss)


@dtypes
@pytest.mark.parametrize("name", ["Enumerate", "MeasureValued", "StraightThrough"])
def test_certain_probabilities_have_the_exact_gradient(name, dtype):
    """f(1) - f(0), at 0, at 1 and next to them, where torch's clamp had stopped it."""
    for values in ([0.0, 1.0, 0.5], [1e-8, 1 - 1e-8, 1.0]):
        _, gradient, _ = run(name, "Bernoulli", dtype, probs=values)
        torch.testing.assert_close(gradient, torch.tensor(WEIGHTS, dtype=dtype))


@dtypes
def test_tenth_of_a_cost_is_its_gradient(dtype):
    p = torch.zeros((), dtype=dtype, requires_grad=True)
    value = mc.expectation(lambda b: 0.1 * b, td.Bernoulli(probs=p), 1, mc.Enumerate())
    assert torch.autograd.grad(value, p)[0].item() == pytest.approx(0.1)


@dtypes
@pytest.mark.parametrize("family", ["OneHotCategorical", "Categorical"])
@pytest.mark.parametrize("name", ["Enumerate", "MeasureValued"])
def test_classes_of_probability_zero(name, family, dtype):
    """torch normalises the probabilities: d/dp_i is f_i less the mean."""
    _, gradient, _ = run(name, family, dtype, probs=[1.0, 0.0, 0.0])
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.0, 3.0], dtype=dtype))


@pytest.mark.parametrize("name, family", [pair for pair in PAIRS if pair[0] in SAMPLED])
def test_outcomes_that_are_never_drawn_are_refused(name, family):
    for dtype, values in ((torch.float64, [0.0, 1.0, 0.0]), (torch.float32, [0.0, 1.0, 0.5])):
        with pytest.raises(ValueError, match=r"0 or 1 to the accuracy of .*MeasureValued"):
            run(name, family, dtype, probs=values)


def test_a_binomial_that_is_certain_is_refused_by_enumerate():
    p = torch.tensor(0.0, requires_grad=True)
    with pytest.raises(ValueError, match="Binomial that are 0 or 1"):
        mc.expectation(lambda x: x, td.Binomial(3, probs=p), 1, mc.Enumerate())


def test_reading_the_logits_first_does_not_change_the_gradient():
    p = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    q = td.Bernoulli(probs=p)
    assert q.logits.isfinite().all()
    with pytest.raises(ValueError, match="ScoreFunction has no derivative in probabilities"):
        mc.expectation(cost("Bernoulli", torch.float32), q, 4, mc.ScoreFunction())


probabilities = st.one_of(st.sampled_from([0.0, 1.0, 1e-8, 1 - 1e-8]), st.floats(0, 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(p=st.lists(probabilities, min_size=3, max_size=3), name=st.sampled_from(list(ESTIMATORS)))
def test_any_probabilities_are_finite_or_refused(p, name):
    try:
        value, gradient, _ = run(name, "Bernoulli", torch.float64, count=20, probs=p)
    except ValueError as error:
        assert "0 or 1 to the accuracy" in str(error) and name in SAMPLED
        return
    assert value == pytest.approx(value) and gradient.isfinite().all()
    if name in ("Enumerate", "MeasureValued"):
        torch.testing.assert_close(gradient, torch.tensor(WEIGHTS, dtype=torch.float64))

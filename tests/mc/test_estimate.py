import pytest
import torch
from torch import distributions as td

from accel import mc

NORMAL = (torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def square(x):
    return (x - 0.45) ** 2


@pytest.mark.parametrize(
    ("q", "estimator"),
    [
        (lambda t: td.Normal(t[0] ** 2, t[1].exp()), mc.Pathwise()),
        (lambda t: td.Normal(t[0] ** 2, t[1].exp()), mc.ScoreFunction()),
        (lambda t: td.Normal(t[0] ** 2, t[1].exp()), mc.MeasureValued()),
        (lambda t: td.Bernoulli(probs=torch.sigmoid(2 * t)), mc.DisARM()),
        (lambda t: td.Bernoulli(probs=torch.sigmoid(2 * t)), mc.ARM()),
        (lambda t: td.Bernoulli(logits=2 * t), mc.REBAR()),
        (lambda t: td.Bernoulli(probs=torch.sigmoid(2 * t)), mc.Enumerate()),
    ],
)
def test_backward_is_the_mean_jacobian_chained_to_the_leaves(q, estimator):
    """Parameters of q may be any function of leaves; the same seed gives the same estimate both ways."""
    theta = torch.tensor([0.4, -0.2], dtype=torch.float64, requires_grad=True)
    cost = lambda x: square(x).reshape(len(x), -1).sum(-1)  # noqa: E731
    mc.expectation(cost, q(theta), 50, estimator, generator=seeded()).backward()
    built = q(theta)
    rows = mc.jacobians(cost, built, 50, estimator, generator=seeded())
    inner = [getattr(built, name) for name in rows]
    expected = torch.autograd.grad(inner, theta, [grad.mean(0) for grad in rows.values()])[0]
    torch.testing.assert_close(theta.grad, expected)


def test_value_is_the_mean_cost_and_f_gets_its_own_gradient():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    seen = []

    def cost(x):
        seen.append(x.detach())
        return weight * x

    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for estimator in (mc.ScoreFunction(), mc.Pathwise(), mc.MeasureValued()):
        seen.clear()
        weight.grad = None
        value = mc.expectation(cost, td.Normal(loc, 1.2), 30, estimator, generator=seeded())
        value.backward()
        torch.testing.assert_close(value.detach(), 2 * seen[0].mean())
        torch.testing.assert_close(weight.grad, seen[0].mean())


def test_shapes_follow_the_costs():
    q = td.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    assert mc.expectation(lambda x: x.sum((1, 2)), q, 5, mc.Pathwise()).shape == ()
    assert mc.expectation(lambda x: x.sum(2), q, 5, mc.Pathwise()).shape == (4,)
    assert mc.expectation(lambda x: x, q, 5, mc.Pathwise()).shape == (4, 3)
    assert mc.expectation(lambda x: x.sum(2), td.Independent(q, 1), 5, mc.Pathwise()).shape == (4,)
    with pytest.raises(ValueError, match="f returned shape"):
        mc.expectation(lambda x: x, td.Independent(q, 1), 5, mc.Pathwise())


@pytest.mark.parametrize("estimator", [mc.Pathwise(), mc.ScoreFunction(), mc.MeasureValued()])
def test_float32_stays_float32(estimator):
    loc = torch.zeros(2, requires_grad=True)
    q = td.Normal(loc, 1.0)
    value = mc.expectation(lambda x: x.square().sum(-1), q, 4, estimator, generator=seeded())
    value.backward()
    assert value.dtype == loc.grad.dtype == torch.float32


def test_nested_latents_each_with_an_estimator():
    """A Normal (pathwise), a Bernoulli that depends on it (leave one out) and an independent Categorical (measure-
    valued), against quadrature over the first and enumeration of the others."""
    names = ("loc", "slope", "logits")
    values = ([0.3], [0.8], [0.2, -0.4, 0.1])
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in zip(names, values)}
    states = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    def integrand(z, b, k):
        return torch.cos(z + b) + (z - b) * states[k]

    def given_latents(z, b, generator):
        choice = td.Categorical(logits=leaves["logits"].expand(*b.shape, 3))
        inner = lambda k: integrand(z, b, k)  # noqa: E731
        return mc.expectation(inner, choice, 1, mc.MeasureValued(), generator=generator)

    def given_z(z, generator):
        coin = td.Bernoulli(logits=leaves["slope"] * z)
        inner = lambda b: given_latents(z, b, generator)  # noqa: E731
        return mc.expectation(inner, coin, 2, mc.ScoreFunction(mc.LeaveOneOut()), generator=generator)

    def estimate(generator):
        q = td.Normal(leaves["loc"].expand(5000), 0.9)
        value = mc.expectation(lambda z: given_z(z, generator), q, 1, mc.Pathwise(), generator=generator).mean()
        return torch.cat(torch.autograd.grad(value, list(leaves.values())))

    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = td.Normal(leaves["loc"], 0.9).log_prob(z).exp() * (z[1] - z[0])
    heads, choice = torch.sigmoid(leaves["slope"] * z), torch.softmax(leaves["logits"], 0)
    exact = sum(
        (density * (heads if b else 1 - heads) * choice[k] * integrand(z, float(b), k)).sum()
        for b in (0, 1)
        for k in range(3)
    )
    exact = torch.cat(torch.autograd.grad(exact, list(leaves.values())))
    generator = seeded(3)
    found = torch.stack([estimate(generator) for _ in range(40)])
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 40**0.5).all()


def test_common_random_numbers_by_a_common_seed():
    def at(loc, seed):
        q = td.Normal(torch.tensor(loc, dtype=torch.float64), 1.2)
        return float(mc.expectation(square, q, 100, mc.Pathwise(), generator=seeded(seed)))

    common = torch.tensor([at(0.31, i) - at(0.3, i) for i in range(50)])
    separate = torch.tensor([at(0.31, i) - at(0.3, i + 100) for i in range(50)])
    assert common.var() < 1e-3 * separate.var()


def test_jacobians_reports_the_given_spelling():
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    probs = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    for family, cost in ((td.Bernoulli, lambda x: x.sum(-1)), (td.OneHotCategorical, lambda x: x[:, 0])):
        for given in ({"logits": logits}, {"probs": probs}):
            q = family(**given)
            assert q.probs is not None and q.logits is not None  # both spellings are now cached
            found = mc.jacobians(cost, q, 4, mc.ScoreFunction())
            assert list(found) == list(given)
            assert found[next(iter(given))].shape == (4, 3)


def test_jacobians_skips_parameters_without_a_gradient():
    loc = torch.zeros(2, requires_grad=True)
    assert list(mc.jacobians(lambda x: x.sum(-1), td.Normal(loc, 1.0), 4, mc.Pathwise())) == ["loc"]
    with pytest.raises(ValueError, match=r"no parameter of Normal requires a gradient.*loc, scale"):
        mc.jacobians(lambda x: x, td.Normal(*NORMAL), 4, mc.Pathwise())


def test_jacobians_keeps_other_constructor_arguments():
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    q = td.Multinomial(4, logits=logits)
    found = mc.jacobians(lambda x: x[:, 0], q, 20_000, mc.ScoreFunction(), generator=seeded())["logits"]
    expected = 4 * torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64) / 9
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / 20_000**0.5).all()


def test_parameters_of_inner_distributions_have_dotted_names():
    """A factorised mixture: weights, and the means inside Independent inside the mixture."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    loc = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    q = td.MixtureSameFamily(td.Categorical(logits=logits), td.Independent(td.Normal(loc, 1.0), 1))
    found = mc.jacobians(lambda x: x[:, 0], q, 20_000, mc.ScoreFunction(), generator=seeded())
    weights = torch.softmax(logits, 0)
    exact = torch.autograd.grad((weights * loc[:, 0]).sum(), [logits, loc])
    names = ["mixture_distribution.logits", "component_distribution.base_dist.loc"]
    assert list(found) == names
    for name, expected in zip(names, exact):
        error = found[name].std(0) / 20_000**0.5
        assert ((found[name].mean(0) - expected).abs() < 4 * error).all()
    broken = td.Normal(torch.tensor([0.0, float("nan")]), 1.0, validate_args=False)
    q = td.MixtureSameFamily(td.Categorical(logits=logits.detach()), broken)
    with pytest.raises(ValueError, match=r"component_distribution\.loc of MixtureSameFamily holds NaN"):
        mc.expectation(lambda x: x, q, 3, mc.ScoreFunction())


def test_jacobians_refuses_what_it_cannot_rebuild():
    class Hidden(td.Normal):
        def __init__(self, loc, scale, secret, validate_args=None):
            super().__init__(loc, scale, validate_args)

        def expand(self, batch_shape, _instance=None):
            return super().expand(batch_shape, self._get_checked_instance(td.Normal, Hidden.__new__(Hidden)))

    q = Hidden(torch.zeros(2, requires_grad=True), torch.ones(2), 3)
    with pytest.raises(ValueError, match=r"cannot rebuild Hidden.*'secret'"):
        mc.jacobians(lambda x: x.sum(-1), q, 3, mc.Pathwise())


def test_no_grad_evaluation_needs_no_gradient_path():
    loc = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        value = mc.expectation(lambda x: x.detach().sum(-1), td.Normal(loc, 1.0), 4, mc.Pathwise())
    assert not value.requires_grad


@pytest.mark.parametrize("num_samples", [0, -3, 2.5])
def test_zero_samples(num_samples):
    with pytest.raises(ValueError, match=r"num_samples must be at least 1.*Enumerate"):
        mc.expectation(square, td.Normal(*NORMAL), num_samples, mc.Pathwise())


def test_parameters_outside_their_support():
    good = torch.tensor([0.2, 0.4])
    q = td.Bernoulli(probs=good)
    good[1] = 1.5
    with pytest.raises(ValueError, match=r"probs of Bernoulli is outside its support.*\[0\.2, 1\.5\].*sigmoid"):
        mc.expectation(lambda x: x.sum(-1), q, 3, mc.ScoreFunction())
    broken = td.Normal(torch.tensor(float("nan")), torch.tensor(1.0), validate_args=False)
    with pytest.raises(ValueError, match="loc of Normal holds NaN"):
        mc.expectation(square, broken, 3, mc.Pathwise())


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda x: x.sum(), r"f returned shape \(\) for 6 samples.*expected \(6,\)"),
        (lambda x: x.sum(0), r"f returned shape \(2, 3\) for 6 samples"),
        (lambda x: x.sum(1), r"f returned shape \(6, 3\).*leading dimensions"),
        (lambda x: x.sum((1, 2))[:, None], r"f returned shape \(6, 1\)"),
        (lambda x: x.sum((1, 2)) * float("nan"), "f returned NaN for 6 of 6 costs"),
    ],
)
def test_costs_of_the_wrong_shape_or_value(cost, message):
    q = td.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=message):
        mc.expectation(cost, q, 6, mc.ScoreFunction())


@pytest.mark.parametrize("cost", [lambda x: 3.0, lambda x: x > 0, lambda x: None])
def test_costs_that_are_no_numbers(cost):
    with pytest.raises(TypeError, match="f must return a floating-point tensor"):
        mc.expectation(cost, td.Normal(*NORMAL), 6, mc.ScoreFunction())


def test_arguments_of_the_wrong_type():
    with pytest.raises(TypeError, match=r"q must be a torch\.distributions\.Distribution, got dict"):
        mc.expectation(square, {}, 6, mc.Pathwise())
    with pytest.raises(TypeError, match=r"estimator must be an instance such as ScoreFunction\(\)"):
        mc.expectation(square, td.Normal(*NORMAL), 6, mc.Pathwise)


def test_a_control_variate_with_the_wrong_estimator():
    q = td.Bernoulli(logits=torch.zeros(2, requires_grad=True))
    with pytest.raises(ValueError, match=r"goes with ScoreFunction, Pathwise or MeasureValued, not DisARM"):
        mc.expectation(lambda b: b.sum(-1), q, 6, mc.DisARM(), control_variate=mc.DeltaMethod())

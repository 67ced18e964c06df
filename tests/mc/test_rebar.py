import pytest
import torch
from torch import distributions as td

from accel import mc


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def cost(b):
    return ((b - 0.45) ** 2).sum(-1) + b.prod(-1)


class Control(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def forward(self, z):
        return self.layers(z).squeeze(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["scale", "log_temperature"])
def test_loss_gradient_is_that_of_the_second_moment(name):
    """Against a central difference at the same noise."""
    estimator = mc.REBAR(0.5, 0.8).double()
    q = td.Bernoulli(logits=leaf(0.3, -0.6, 1.0))

    def second_moment(shift=0.0):
        with torch.no_grad():
            getattr(estimator, name).add_(shift)
        rows = mc.jacobians(cost, q, 40, estimator, generator=seeded())["logits"]
        with torch.no_grad():
            getattr(estimator, name).sub_(shift)
        return float(rows.square().sum(-1).mean())

    slope = (second_moment(1e-5) - second_moment(-1e-5)) / 2e-5
    assert estimator.loss.item() > 0
    second_moment()
    estimator.loss.backward()
    assert float(getattr(estimator, name).grad) == pytest.approx(slope, rel=1e-6)


def test_tuning_the_control_reduces_the_variance():
    torch.manual_seed(0)
    estimator = mc.RELAX(Control())
    logits = leaf(0.3, -0.6, 1.0)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)

    def variance():
        return float(
            mc.jacobians(cost, td.Bernoulli(logits=logits), 5000, estimator, generator=seeded())["logits"].var(0).sum()
        )

    before = variance()
    generator = seeded(1)
    for _ in range(150):
        mc.expectation(cost, td.Bernoulli(logits=logits), 64, estimator, generator=generator)
        optimizer.zero_grad()
        estimator.loss.backward()
        optimizer.step()
    assert variance() < 0.5 * before


def test_gradients_stay_with_their_owners():
    """The value moves q and f, the loss moves the control: neither touches the other's parameters."""
    weight, logits = leaf(2.0), leaf(0.3, -0.6)
    estimator = mc.REBAR()
    value = mc.expectation(
        lambda b: weight * b.square().sum(-1), td.Bernoulli(logits=logits), 16, estimator, generator=seeded()
    )
    value.backward()
    assert estimator.scale.grad is None and estimator.log_temperature.grad is None
    torch.testing.assert_close(weight.grad, value.detach()[None] / 2)
    before = weight.grad.clone(), logits.grad.clone()
    estimator.loss.backward()
    assert estimator.scale.grad is not None
    assert torch.equal(weight.grad, before[0]) and torch.equal(logits.grad, before[1])


def test_relax_takes_a_black_box():
    q = td.Bernoulli(logits=leaf(0.3, -0.6, 1.0))
    value = mc.expectation(lambda b: cost(b.detach()), q, 4, mc.RELAX(Control()))
    assert value.requires_grad


def test_controls_of_the_wrong_kind_are_refused():
    q = td.Bernoulli(logits=leaf(0.3, -0.6, 1.0))

    class Wide(torch.nn.Module):
        def forward(self, z):
            return z

    class Deaf(torch.nn.Module):
        def forward(self, z):
            return z.detach().sum(-1)

    with pytest.raises(ValueError, match=r"control returned shape \(4, 3\) for costs of shape \(4,\)"):
        mc.expectation(cost, q, 4, mc.RELAX(Wide()))
    with pytest.raises(ValueError, match=r"does not depend differentiably on its input"):
        mc.expectation(cost, q, 4, mc.RELAX(Deaf()))

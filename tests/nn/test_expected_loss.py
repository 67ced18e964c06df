"""expected_loss: every estimator on a network small enough to enumerate, and what none of them may do."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import accel
from accel.config import ACT, PACT
from accel.errors import ConfigError, ConversionError
from accel.halting import TruncatedGeometric
from accel.mc import REBAR, Concrete, DisARM, Enumerate, LeaveOneOut, MeasureValued, MovingAverage, ScoreFunction
from accel.nn.adaptive import adaptive_stages
from accel.tests.nn.halting_nets import tiny_net

UNBIASED = {
    "leave one out": ScoreFunction(LeaveOneOut()),
    "score function": ScoreFunction(),
    "DisARM": DisARM(),
    "REBAR": REBAR(),
    "measure-valued": MeasureValued(),
}


def data(batch: int = 40, size: int = 2):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=g, dtype=torch.float64) * 2
    return x, torch.randint(0, 4, (batch,), generator=g)


def task(labels: Tensor):
    return lambda logits: F.cross_entropy(3 * logits, labels, reduction="none")


def gradient(net: nn.Module, loss: Tensor) -> Tensor:
    """Of the network's own parameters, as one vector."""
    own = [parameter for name, parameter in net.named_parameters()]
    found = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def objective(config: PACT, samples: int | None = None, seed: int | None = None, batch: int = 40):
    """(network, value and gradient of its objective) on `data`."""
    net, (x, labels) = tiny_net(config), data(batch)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    loss = accel.expected_loss(net, x, task(labels), num_samples=samples, generator=generator)
    return net, loss.detach(), gradient(net, loss)


def repeated(config: PACT, repeats: int, samples: int | None = None) -> Tensor:
    """[repeats, parameters]: independent estimates of the gradient."""
    net, (x, labels) = tiny_net(config), data()
    generator = torch.Generator().manual_seed(0)
    how = {"num_samples": samples, "generator": generator}
    return torch.stack([gradient(net, accel.expected_loss(net, x, task(labels), **how)) for _ in range(repeats)])


def z_scores(estimates: Tensor, exact: Tensor) -> Tensor:
    """Along eight random directions, so that nothing of the gradient is left out."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(len(exact), 8, generator=generator, dtype=torch.float64)
    projected = estimates @ directions
    return (projected.mean(0) - exact @ directions) / (projected.std(0) / math.sqrt(len(projected)))


@pytest.mark.parametrize("kl", [None, 0.7], ids=["price", "divergence"])
@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_enumeration_is_the_sum_over_all_ways_to_halt(tau, kl):
    """Written out: the network cut off after z units of every stage, weighed by the hazards on the way."""
    net, value, found = objective(PACT(tau=tau, estimator=Enumerate(), spatial=False, kl=kl))
    (x, labels), total = data(), 0
    for ways in itertools.product((1, 2, 3), repeat=3):
        state, weight, price = x, 1, 0
        for stage, ran in zip(adaptive_stages(net), ways):
            for number, unit in enumerate(list(stage)[:ran], 1):
                state = unit(state)
                if number < 3:
                    hazard = unit.halting(state)
                    weight = weight * (hazard if number == ran else 1 - hazard)
                    if kl is not None:
                        halts, goes = TruncatedGeometric(tau, 3).log_hazards()[number - 1]
                        price = price + kl * (
                            hazard * (hazard.log() - halts) + (1 - hazard) * ((1 - hazard).log() - goes)
                        )
            price = price + (tau * ran if kl is None else 0)
        logits = net[5](net[4](net[3](state)))
        total = total + weight * (task(labels)(logits) + price)
    torch.testing.assert_close(value, total.mean().detach())
    torch.testing.assert_close(found, gradient(net, total.mean()))


@pytest.mark.parametrize("tau", [0.0, 0.4])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators(name, tau):
    _, _, exact = objective(PACT(tau=tau, estimator=Enumerate(), spatial=False))
    repeats = 100 if "score" in name or "leave" in name else 24  # the others rerun the network 12 times and more
    estimates = repeated(PACT(tau=tau, estimator=UNBIASED[name], spatial=False), repeats)
    assert z_scores(estimates, exact).abs().max() < 4


def test_unbiased_with_the_divergence_of_pondernet():
    config = {"tau": 0.4, "kl": 0.7, "spatial": False}
    _, _, exact = objective(PACT(estimator=Enumerate(), **config))
    assert z_scores(repeated(PACT(estimator=DisARM(), **config), 24), exact).abs().max() < 4


def test_a_biased_estimator_is_caught():
    """Its baseline contains the sample itself: the gradient shrinks by half."""
    _, _, exact = objective(PACT(tau=0.4, estimator=Enumerate(), spatial=False))
    biased = ScoreFunction(lambda costs: costs.mean(0, keepdim=True))
    assert z_scores(repeated(PACT(tau=0.4, estimator=biased, spatial=False), 100, 2), exact).abs().max() > 4


def test_the_variance_of_disarm_is_at_most_that_of_leave_one_out():
    """Of the halting heads with one leading forward against two, and of everything with as many."""
    names = [
        name for name, parameter in tiny_net(PACT(spatial=False)).named_parameters() for _ in range(parameter.numel())
    ]
    heads = torch.tensor([".halting." in name for name in names])

    def variance(name: str, samples: int) -> Tensor:
        return repeated(PACT(tau=0.2, estimator=UNBIASED[name], spatial=False), 30, samples).var(0)

    theirs = variance("leave one out", 2)
    assert variance("DisARM", 1)[heads].sum() < theirs[heads].sum() / 2
    assert variance("DisARM", 2).sum() <= theirs.sum()


def test_the_bias_of_concrete_falls_with_the_temperature():
    _, _, exact = objective(PACT(tau=0.2, estimator=Enumerate(), spatial=False))
    bias = []
    for temperature in (2.0, 0.5, 0.1):
        estimates = repeated(PACT(tau=0.2, estimator=Concrete(temperature), spatial=False), 30, 10)
        bias.append(float((estimates.mean(0) - exact).norm()))
    assert bias[0] > 1.5 * bias[1] > 2 * bias[2]


@pytest.mark.parametrize("name", ["leave one out", "DisARM", "REBAR"])
def test_unbiased_with_a_decision_for_every_position(name):
    """Against the score function without a baseline, which is unbiased by its definition, of many samples."""
    config = {"tau": 0.2, "spatial": True}
    net, (x, labels) = tiny_net(PACT(estimator=ScoreFunction(), **config), stages=1), data(20)
    other = tiny_net(PACT(estimator=UNBIASED[name], **config), stages=1)
    generator = torch.Generator().manual_seed(0)
    both = []
    for model, samples in ((net, 20), (other, 4)):
        losses = (
            accel.expected_loss(model, x, task(labels), num_samples=samples, generator=generator) for _ in range(60)
        )
        both.append(torch.stack([gradient(model, loss) for loss in losses]))
    difference = both[0].mean(0) - both[1].mean(0)
    error = sum(part.var(0) / len(part) for part in both).sqrt()
    assert (difference / error)[error > 1e-12].abs().max() < 4


class Table(nn.Module):
    """A head that says the same of every image."""

    def __init__(self, odds: float):
        super().__init__()
        self.odds = nn.Parameter(torch.tensor(odds, dtype=torch.float64))

    def logits(self, x: Tensor) -> Tensor:
        return self.odds.expand(len(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).sigmoid()

    def executed_macs(self, ran: Tensor) -> Tensor:
        return torch.zeros_like(ran, dtype=torch.int64)


@pytest.mark.parametrize("seed", [0, 3])
def test_hazards_of_a_table_end_at_the_best_way_to_halt(seed):
    """The property of variational optimisation: at the optimum the decisions are certain, and the best."""
    net = tiny_net(PACT(tau=0.02, estimator=Enumerate(), spatial=False), seed=seed)
    for stage in adaptive_stages(net):
        for number, unit in enumerate(list(stage)[:-1]):
            unit.halting = Table([-0.7, 0.0][number])  # every length as likely
    tables = [module for module in net.modules() if isinstance(module, Table)]
    x, labels = data(4)
    optimizer = torch.optim.Adam([table.odds for table in tables], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = accel.expected_loss(net, x, task(labels))
        loss.backward()
        optimizer.step()
    costs = {}
    for ways in itertools.product((1, 2, 3), repeat=3):
        state = x
        for stage, ran in zip(adaptive_stages(net), ways):
            for unit in list(stage)[:ran]:
                state = unit(state)
        costs[ways] = float(task(labels)(net[5](net[4](net[3](state)))).mean().detach()) + 0.02 * sum(ways)
    best = min(costs, key=costs.get)
    hazards = [float(table.odds.sigmoid()) for table in tables]
    found = tuple(1 if h[0] > 0.5 else 2 if h[1] > 0.5 else 3 for h in zip(hazards[::2], hazards[1::2]))
    assert found == best
    assert float(loss.detach()) == pytest.approx(costs[best], abs=0.02)
    reached = [h for number, h in enumerate(hazards) if number % 2 == 0 or hazards[number - 1] < 0.5]
    assert all(min(h, 1 - h) < 0.02 for h in reached)


def test_losses_of_positions_count_by_their_mean():
    config = PACT(tau=0.1, estimator=ScoreFunction(MovingAverage()))
    x, _ = data(6)
    values = []
    for f in (lambda logits: logits.square(), lambda logits: logits.square().mean(1)):
        loss = accel.expected_loss(tiny_net(config), x, f, generator=torch.Generator().manual_seed(5))
        values.append(loss.detach())
    assert torch.equal(*values)


def test_reruns_leave_batch_statistics_as_one_forward_leaves_them():
    x, labels = data(10)
    states = []
    for estimator in (ScoreFunction(), DisARM()):
        net = tiny_net(PACT(estimator=estimator, spatial=False)).train()
        accel.expected_loss(net, x, task(labels), generator=torch.Generator().manual_seed(3))
        states.append({name: buffer.clone() for name, buffer in net.named_buffers()})
    for name, buffer in states[0].items():
        assert torch.equal(buffer, states[1][name])
    assert states[0]["0.0.halting.bn.num_batches_tracked"] == 1


def test_a_target_moves_tau_once_a_step():
    taus = []
    for estimator in (ScoreFunction(), REBAR()):
        net = tiny_net(PACT(estimator=estimator, spatial=False, target=0.5)).train()
        x, labels = data(10)
        accel.expected_loss(net, x, task(labels), generator=torch.Generator().manual_seed(3)).backward()
        taus.append(float(net[0].tau))
    assert taus[0] == taus[1] != 0.005


def test_the_tuning_loss_of_rebar_reaches_its_parameters():
    estimator = REBAR()
    objective(PACT(estimator=estimator, spatial=False))
    estimator.loss.backward()
    assert all(parameter.grad.abs() > 0 for parameter in estimator.parameters())


@pytest.mark.parametrize(
    ("config", "f", "error", "message"),
    [
        (PACT(estimator=DisARM()), lambda y: y.mean(), ValueError, "a loss for each of the 40 examples"),
        (PACT(estimator=DisARM()), lambda y: y.argmax(1), TypeError, "floating-point tensor of losses"),
        (PACT(estimator=Enumerate(26), spatial=False), lambda y: y.sum(1), ConfigError, r"3 \* 3 \* 3 = 27 ways"),
        (ACT(), lambda y: y.sum(1), ConversionError, "no PACT stage"),
    ],
)
def test_bad_input(config, f, error, message):
    with pytest.raises(error, match=message):
        accel.expected_loss(tiny_net(config), data()[0], f)


class Sharing(nn.Module):
    """A network that takes something which is no example, and returns something else that is none."""

    def __init__(self, net: nn.Module, shared: Tensor):
        super().__init__()
        self.net, self.shared = net, shared

    def forward(self, x, weights=None):
        out = self.net(x)
        return dataclasses.replace(out, logits=(out.logits, self.shared))


@pytest.mark.parametrize("size", [3, 41])
def test_no_tensor_is_guessed_to_have_a_row_for_every_example(size):
    """Copies of the batch are made and taken apart; what has no rows to copy is refused, going in and coming out."""
    x, _ = data()
    net, shared = tiny_net(PACT(estimator=DisARM(), spatial=False)), torch.ones(size)
    first = lambda logits: logits[0].sum(1)  # noqa: E731
    with pytest.raises(ConversionError, match=rf"takes a tensor of shape \({size},\) for 40 examples"):
        accel.expected_loss(Sharing(net, x[:, 0]), (x, shared), first)
    with pytest.raises(ConversionError, match=rf"returned a tensor of shape \({size},\) for 80 examples"):
        accel.expected_loss(Sharing(net, shared), (x,), first)


def test_one_sample_is_too_few_for_leave_one_out():
    with pytest.raises(ValueError, match="at least 2 samples"):
        objective(PACT(estimator=ScoreFunction(LeaveOneOut())), samples=1)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        objective(PACT(estimator=DisARM()), samples=0)

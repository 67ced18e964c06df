"""Budget control of ACT and SACT: tau moves until the executed share of the stages' MACs meets the target."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel.config import ACT, SACT
from accel.errors import ConfigError, ConversionError
from accel.halting.budget import MULTIPLIER, PENALTY, control_tau
from accel.nn.adaptive import make_adaptive
from accel.train.loop import FitSettings, fit
from accel.zoo.cifar import BasicBlock

STEPS = 150
SETTINGS = FitSettings(steps=STEPS, lr=0.02, lr_factors={"*.halting.*": 3.0})


def plain_net():
    torch.manual_seed(0)
    stage = nn.Sequential(*(BasicBlock(8, 8, 1) for _ in range(4)))
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def bars(step, count=16):
    """Noise with an upright (class 1) or lying (class 0) bar of 4 pixels at a random place."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(2, (count,), generator=generator)
    x = 0.3 * torch.randn(count, 1, 10, 10, generator=generator)
    for picture, upright in zip(x, labels):
        row, column = torch.randint(6, (2,), generator=generator)
        area = picture[0, row : row + 4, column : column + 1] if upright else picture[0, row, column : column + 4]
        area += 2
    return x, labels


def train(net):
    shares, taus = [], []

    def loss_of_step(model, step):
        x, labels = bars(step)
        out = model(x)
        shares.append(out.executed_share)
        taus.append(out.tau)
        return F.cross_entropy(out.logits, labels) + accel.ponder_loss(out)

    fit(net, loss_of_step, SETTINGS)
    return shares, taus


@pytest.mark.parametrize("target", [0.5, 0.8])
def test_training_meets_the_target(target):
    net = make_adaptive(plain_net(), {"1": SACT(target=target)})
    shares, taus = train(net)
    assert shares[0] > 1  # every unit and head runs at first
    assert sum(shares[-20:]) / 20 == pytest.approx(target, abs=0.05)
    assert taus[0] > taus[-1]
    x, labels = bars(10_000, 200)
    with torch.no_grad():
        out = net(x)
    assert (out.logits.argmax(1) == labels).float().mean() > 0.95
    assert out.tau == float(net[1].tau)  # evaluation moves nothing
    assert out.executed_share == pytest.approx(target, abs=0.08)


def test_one_step_of_the_controller():
    tau = torch.tensor(0.02)
    assert control_tau(tau, 0.9, 0.6) == pytest.approx(0.02 + 0.3 * MULTIPLIER + 0.3 * PENALTY)
    assert float(tau) == pytest.approx(0.02 + 0.3 * MULTIPLIER)
    assert control_tau(torch.tensor(0.0), 0.5, 0.6) < 0  # too little ran: units are rewarded


@pytest.mark.parametrize("config", [ACT, SACT])
def test_the_share_is_that_of_the_counter(config):
    net = make_adaptive(plain_net(), {"1": config()}).eval()
    nn.init.zeros_(net[1][0].halting.conv.bias)
    x = bars(0)[0]
    plain = accel.count_macs(plain_net(), x)
    around = plain - 16 * 4 * 2 * 8 * 8 * 9 * 100  # the stem and the classifier
    executed = accel.count_macs(net, x)
    with torch.no_grad():
        share = net(x).executed_share
    assert share == pytest.approx((executed - around) / (plain - around))


def test_tau_is_part_of_the_state_and_only_where_there_is_a_target(tmp_path):
    net = make_adaptive(plain_net(), {"1": SACT(tau=0.25, target=0.5)})
    net(bars(0)[0])
    moved = float(net[1].tau)
    assert moved > 0.25
    accel.save_converted(net, tmp_path)
    loaded = accel.load_converted(tmp_path, plain_net())
    assert float(loaded[1].tau) == moved
    assert copy.deepcopy(net)[1].tau.data_ptr() != net[1].tau.data_ptr()
    assert not any(key.endswith(".tau") for key in make_adaptive(plain_net(), {"1": SACT()}).state_dict())


def test_targets_out_of_range_and_targets_that_differ_are_refused():
    for target in (0, 1.1, "half"):
        with pytest.raises(ConfigError, match="target is the share"):
            SACT(target=target)
    twice = nn.Sequential(plain_net()[1], plain_net()[1])
    with pytest.raises(ConversionError, match="share tau and target"):
        make_adaptive(twice, {"0": SACT(target=0.5), "1": SACT(target=0.6)})

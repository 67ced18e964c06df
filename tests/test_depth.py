"""Residual networks without some of their units."""

import copy

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.distill import distance, reestimate_norms
from accel.errors import ConfigError, ConversionError
from accel.nn.residual_units import describe_unit
from accel.zoo.cifar import CifarResNet


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pictures():
    return drawn(1, 16, 3, 16, 16)


@pytest.fixture
def net(pictures):
    """ResNet-20 whose batch norms know the pictures."""
    torch.manual_seed(0)
    model = CifarResNet(20).eval()
    reestimate_norms(model, [pictures])
    return model


@torch.no_grad()
def test_units_left_out_are_identities_and_nothing_else_changes(net, pictures):
    before = copy.deepcopy(net.state_dict())
    short = accel.shorten_model(net, calibration=[pictures], units=["layer1.1", "layer3.*"])
    gone = {name for name, module in short.named_modules() if isinstance(module, nn.Identity)}
    assert {name for name in gone if name.count(".") == 1} == {"layer1.1", "layer3.1", "layer3.2"}
    saved = describe_unit(net.layer1[1]).dense_macs((16, 16)) + 2 * describe_unit(net.layer3[1]).dense_macs((4, 4))
    assert accel.count_macs(net, pictures[:1]) - accel.count_macs(short, pictures[:1]) == saved
    kept = short.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in kept if "running" not in name and "num_" not in name)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not short.training and not net.training


@torch.no_grad()
def test_batch_norms_know_the_shorter_network(net, pictures):
    short = accel.shorten_model(net, calibration=[pictures], units=["layer1.1"])
    seen = []
    hook = short.layer1[2].conv1.register_forward_hook(lambda _m, _i, out: seen.append(out))
    short(pictures)
    hook.remove()
    mean, norm = seen[0].mean((0, 2, 3)), short.layer1[2].bn1
    # the norms before it divide by n - 1 here, where they divided by n = 4096 when the statistics were taken
    torch.testing.assert_close(norm.running_mean, mean, rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, seen[0].transpose(0, 1).flatten(1).var(1), rtol=2e-3, atol=0)
    assert (net.layer1[2].bn1.running_mean - mean).abs().max() > 0.05


@torch.no_grad()
def test_a_unit_that_does_nothing_goes_first(net, pictures):
    net.layer2[2].bn2.weight.zero_()
    net.layer2[2].bn2.bias.zero_()
    reestimate_norms(net, [pictures])
    short = accel.shorten_model(net, calibration=[pictures], macs=0.99)
    assert isinstance(short.layer2[2], nn.Identity)
    torch.testing.assert_close(short(pictures), net(pictures), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_units_are_chosen_by_the_loss_for_the_macs(net, pictures):
    dense, target = accel.count_macs(net, pictures[:1]), net(pictures)
    costs = {}
    for name in ("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"):
        one = accel.shorten_model(net, calibration=[pictures], units=[name])
        costs[name] = distance(one(pictures), target) / (dense - accel.count_macs(one, pictures[:1]))
    short = accel.shorten_model(net, calibration=[pictures], macs=0.99)
    assert isinstance(short.get_submodule(min(costs, key=costs.get)), nn.Identity)
    half = accel.shorten_model(net, calibration=[pictures], macs=0.5, units=["layer3.2"])
    share = accel.count_macs(half, pictures[:1]) / dense
    assert isinstance(half.layer3[2], nn.Identity) and 0.5 - 0.12 < share <= 0.5  # a unit is worth 11 %


def test_a_short_network_can_be_perforated_and_trained(net, pictures):
    short = accel.shorten_model(net, calibration=[pictures], macs=0.7)
    half = Perforate(keep=0.5, interpolate="fitted", mask="lattice")
    fast = accel.convert_model(short, half, example_inputs=pictures, calibration=[pictures])
    with torch.no_grad():
        before = float(distance(fast(pictures), net(pictures)))
    accel.finetune(fast, teacher=net, data=[pictures], steps=30, lr=1e-3)
    with torch.no_grad():
        assert float(distance(fast(pictures), net(pictures))) < 0.7 * before


def test_what_cannot_be_shortened_is_refused(net, pictures):
    with pytest.raises(ConfigError, match=r"units=\[name\]"):
        accel.shorten_model(net, calibration=[pictures])
    with pytest.raises(ConfigError, match=r"\(0, 1\), got 1.5"):
        accel.shorten_model(net, calibration=[pictures], macs=1.5)
    with pytest.raises(ConfigError, match=r"'layer2\.0' matches no unit"):  # it halves the map
        accel.shorten_model(net, calibration=[pictures], units=["layer2.0"])
    with pytest.raises(ConversionError, match=r"macs=0.1 cannot be met"):
        accel.shorten_model(net, calibration=[pictures], macs=0.1)
    with pytest.raises(ConversionError, match="no residual unit"):
        accel.shorten_model(nn.Sequential(nn.Conv2d(3, 4, 3)), calibration=[pictures], macs=0.5)


@torch.no_grad()
def test_a_shared_unit_goes_everywhere(pictures):
    torch.manual_seed(0)
    net = CifarResNet(14).eval()
    net.layer1.append(net.layer1[1])
    short = accel.shorten_model(net, calibration=[pictures], units=["layer1.1"])
    assert all(isinstance(short.layer1[place], nn.Identity) for place in (1, 2))


@torch.no_grad()
def test_a_converted_short_network_comes_back(net, pictures, tmp_path):
    short = accel.shorten_model(net, calibration=[pictures], units=["layer1.1"])
    fast = accel.convert_model(short, Perforate(keep=0.5), example_inputs=pictures)
    accel.save_converted(fast, tmp_path)
    other = accel.shorten_model(CifarResNet(20).eval(), calibration=[pictures], units=["layer1.1"])
    assert torch.equal(accel.load_converted(tmp_path, other)(pictures), fast(pictures))

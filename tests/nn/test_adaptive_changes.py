"""Adaptive stages follow hooks and settings that change inside their units."""

import copy

import pytest
import torch

import accel
from accel.zoo.registry import get_model


def adaptive():
    torch.manual_seed(0)
    return get_model("zoo:resnet32_cifar_sact").eval(), torch.randn(2, 3, 32, 32)


def first_unit(net):
    stage = next(module for module in net.modules() if type(module).__name__ == "AdaptiveStage")
    return stage[1]


def test_a_hook_inside_an_adaptive_unit_is_called_and_obeyed():
    net, x = adaptive()
    with torch.no_grad():
        before = net(x).logits
        unit = first_unit(net)
        seen = []
        handles = [unit.conv1.register_forward_hook(lambda m, i, o: (seen.append(1), o * 2)[1])]
        hooked = net(x).logits
        with accel.dense_execution(net):
            torch.testing.assert_close(hooked, net(x).logits, rtol=1e-4, atol=1e-4)
        assert seen and not torch.allclose(hooked, before)
        handles[0].remove()
        torch.testing.assert_close(net(x).logits, before)
        unit.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))
        halved = net(x).logits
        with accel.dense_execution(net):
            torch.testing.assert_close(halved, net(x).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(halved, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: setattr(unit.bn1, "eps", 1.0),
        lambda unit: setattr(unit.halting.bn, "eps", 1.0),
        lambda unit: unit.bn2.train(),
    ],
    ids=["eps", "eps of the head", "a norm in training"],
)
def test_changed_settings_of_an_adaptive_unit_are_followed(change):
    net, x = adaptive()
    with torch.no_grad():
        before = net(x).logits
        change(first_unit(net))
        statistics = copy.deepcopy(net)
        now = net(x).logits
        with accel.dense_execution(statistics):
            torch.testing.assert_close(now, statistics(x).logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(now, before)

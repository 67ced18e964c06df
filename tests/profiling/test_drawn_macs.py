"""Executed MACs of drawn networks, image by image, are the sums over their masks."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import PACT, SACT, Perforate, Rules
from accel.convert.computed import computed_positions
from accel.nn.adaptive import adaptive_stages
from accel.nn.perforated import PerforatedConv2d
from accel.running import run_watched
from accel.tests.nn.halting_nets import spread_scores, tiny_net
from accel.zoo.registry import get_model

MASKS = [("lattice", (1 / 4, 1 / 2, 2 / 3)), ("grid", (0.2, 0.6)), ("uniform", (0.1, 0.5)), ("adaptive", (0.4, 0.7))]
FILLS = ("nearest", "zero", "weighted")


def drawn_layers(draw):
    """Convolutions of any geometry, one after the other, and a linear layer."""
    layers, channels = [], 4
    for _ in range(draw.randint(3, 5)):
        groups, width = draw.choice((1, 1, 2)), draw.choice((4, 6, 8))
        kernel = (draw.randint(2, 4), draw.randint(1, 3))
        shape = {"stride": draw.choice((1, 1, 2)), "dilation": draw.choice((1, 1, 2)), "padding": draw.randint(1, 2)}
        layers += [nn.Conv2d(channels, width, kernel, groups=groups, **shape), draw.choice((nn.ReLU(), nn.Identity()))]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)).eval()


def drawn_rules(draw, net):
    rules = {}
    for name, layer in net.named_children():
        if isinstance(layer, nn.Conv2d):
            mask, keeps = draw.choice(MASKS)
            fill = "nearest" if mask == "adaptive" else draw.choice(FILLS)
            config = Perforate(keep=draw.choice(keeps), mask=mask, interpolate=fill, neighbors=4)
            rules[name] = None if draw.random() < 0.2 else config
    return Rules({**rules, "*": None})


def by_masks(net, x):
    """int64 [N]: every layer's positions in its mask, times what it multiplies at one."""
    masks, total = computed_positions(net, x), torch.zeros(len(x), dtype=torch.int64)

    def told(name):
        def hook(layer, _args, out):
            mask = masks.get(name, torch.ones(len(x), *out.shape[2:], dtype=torch.bool))
            total.add_(mask.flatten(1).sum(1) if out.dim() == 4 else 1, alpha=layer.weight.numel())

        return hook

    multiply = [(layer, told(name)) for name, layer in net.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    run_watched(net, x, multiply)
    return total


@pytest.mark.parametrize("seed", range(14))
def test_perforated(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net, x = drawn_layers(draw), torch.randn(draw.randint(1, 3), 4, draw.randint(17, 30), draw.randint(17, 30))
    fast = accel.convert_model(net, drawn_rules(draw, net), example_inputs=x)
    assert any(isinstance(layer, PerforatedConv2d) for layer in fast)
    executed = accel.count_macs(fast, x, per_image=True)
    assert torch.equal(executed, by_masks(fast, x)) and executed.sum() < accel.count_macs(net, x)
    assert accel.profile(fast, x, repeats=1).total["executed_macs"] == executed.sum()


def reach(mask, far):
    """bool [N, H, W]: at most `far` rows and columns from a position of the mask."""
    return F.max_pool2d(mask[:, None].double(), 2 * far + 1, 1, far)[:, 0] > 0


def of_stage(stage, units):
    """int64 [N]: the first unit everywhere, unit k where `units` [N, H, W] says that more than k ran, each with its
    head, but the last, whose halting is certain."""
    total = torch.zeros(len(units), dtype=torch.int64)
    for k, unit in enumerate(stage):
        ran = units > k
        heads = {id(each) for each in unit.halting.modules()} if k < len(stage) - 1 else set()
        convolutions = [each for each in unit.modules() if isinstance(each, nn.Conv2d) and id(each) not in heads]
        for behind, conv in enumerate(reversed(convolutions)):  # of 3x3: each has to serve the one behind it
            total += reach(ran, behind).flatten(1).sum(1) * conv.weight.numel()
        if k < len(stage) - 1:
            total += ran.flatten(1).sum(1) * unit.halting.conv.weight.numel()
            total += ran.flatten(1).any(1) * unit.halting.pooled.weight.numel()
    return total


@pytest.mark.parametrize("seed", range(6))
def test_adaptive(seed):
    """Units of one convolution, and those of CIFAR's ResNets, whose first convolution must reach further."""
    draw, config = random.Random(seed), (SACT, PACT)[seed % 2]()
    height, width = draw.randint(9, 16), draw.randint(9, 16)
    x = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(seed))
    if seed < 3:
        net = tiny_net(config, stages=draw.randint(1, 3), units=draw.randint(2, 4), seed=seed, dtype=torch.float32)
        outside = 3 * 4  # the linear layer
    else:
        torch.manual_seed(seed)
        net = accel.convert_model(get_model("zoo:resnet20_cifar", "none").eval(), config, example_inputs=x)
        outside = height * width * 16 * 27 + 64 * 10
    net = spread_scores(net, x)
    with torch.no_grad():
        stages = net(x).stages
    found = sum(of_stage(stage, each.num_units) for stage, each in zip(adaptive_stages(net), stages, strict=True))
    executed = accel.count_macs(net, x, per_image=True)
    assert torch.equal(executed, found + outside) and len({*executed.tolist()}) > 1

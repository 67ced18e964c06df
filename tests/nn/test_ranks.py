"""Maps without a batch dimension, and batches of no image: what torch takes, a converted network takes as well."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.nn.inference import installed
from accel.running import one_by_one
from accel.tests.nn.flows import Flow, convs

CONFIGS = {
    "whole": Perforate(keep=1.0),
    "lattice": Perforate(keep=0.5, mask="lattice"),
    "grid": Perforate(keep=0.25, mask="grid"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted"),
    "zero": Perforate(keep=0.5, mask="lattice", interpolate="zero"),
    "adaptive": Perforate(keep=0.5, mask="adaptive"),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted"),
}


def ranked(flow):
    torch.manual_seed(0)
    conv, following = convs(2)
    small = {"one": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    pools = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2), "gap": nn.AdaptiveAvgPool2d(1)}
    return Flow(flow, conv=conv, next=following, **small, **pools)


def shared(net, x):
    y = net.conv(x)
    y = F.relu(y) + y
    return net.next(y), net.max(y)


FLOWS = {
    "max": lambda net, x: net.next(net.max(F.relu(net.conv(x)))),
    "avg": lambda net, x: net.next(net.avg(F.relu(net.conv(x)))),
    "mean": lambda net, x: net.gap(F.relu(net.next(F.relu(net.conv(x))))),
    "residual": lambda net, x: F.relu(net.next(F.relu(net.conv(x))) + x),
    "broadcast": lambda net, x: F.relu(net.next(F.relu(net.conv(x))) + x[None]),
    "pointwise": lambda net, x: net.next(net.one(F.gelu(net.conv(x)))),
    "to a map": lambda net, x: net.next(net.one(F.gelu(net.conv(x))) * 2),
    "shared rows": shared,
}


def converted(flow, config, example):
    net = ranked(flow).eval()
    config = CONFIGS[config]
    given = {"calibration": [torch.randn(2, 4, 8, 8)]} if config.interpolate == "fitted" else {}
    rules = accel.Rules({"conv": config, "next": config, "*": None})
    return net, accel.convert_model(net, rules, example_inputs=example, **given)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", FLOWS)
def test_a_map_without_a_batch_dimension(name, config):
    x = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    net, fast = converted(FLOWS[name], config, torch.randn(2, 4, 8, 8) if config == "fitted" else x)
    with torch.no_grad():
        batched = as_tuple(fast(x[None])) if name != "broadcast" else [out.clone() for out in as_tuple(fast(x))]
        with one_by_one():
            stepwise = as_tuple(fast(x))
        for out, expected, image, dense in zip(as_tuple(fast(x)), stepwise, batched, as_tuple(net(x))):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out, image[0] if name != "broadcast" else image, rtol=1e-4, atol=1e-5)
            assert out.shape == dense.shape
            if config == "whole":
                torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert installed(fast) or config not in ("lattice", "grid")  # the others have nothing to fuse in some flows


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", [name for name in FLOWS if name != "broadcast"])
def test_a_batch_of_no_image(name, config):
    net, fast = converted(FLOWS[name], config, torch.randn(2, 4, 8, 8))
    none = torch.zeros(0, 4, 8, 8)
    expected = [out.shape for out in as_tuple(net(none))]
    with torch.no_grad():
        assert [out.shape for out in as_tuple(fast(none))] == expected
        with one_by_one():
            assert [out.shape for out in as_tuple(fast(none))] == expected
    x = none.clone().requires_grad_()
    outputs = as_tuple(fast(x))
    sum(out.sum() for out in outputs).backward()
    assert [out.shape for out in outputs] == expected and x.grad.shape == x.shape
    with torch.no_grad():  # and the next batch is as before
        torch.testing.assert_close(as_tuple(fast(torch.ones(1, 4, 8, 8)))[0], stepwise(fast), rtol=1e-4, atol=1e-5)


def stepwise(fast):
    with one_by_one():
        return as_tuple(fast(torch.ones(1, 4, 8, 8)))[0]


def test_a_head_without_boxes():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3))
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            boxes = x[x.mean((1, 2, 3)) > 0]
            return self.fc(self.body(boxes).mean((2, 3)))

    head = Head().eval()
    fast = accel.convert_model(head, CONFIGS["lattice"], example_inputs=torch.ones(3, 4, 8, 8))
    with torch.no_grad():
        assert fast(-torch.ones(3, 4, 8, 8)).shape == (0, 2) and fast(torch.ones(3, 4, 8, 8)).shape == (3, 2)

"""A converted net whose forward ends in what a test gives it, and whether its rewritten path ran and was right."""

import array
import dataclasses
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.running import one_by_one

HALF = Perforate(keep=0.5, mask="lattice")


@dataclasses.dataclass
class Config:
    flip: bool = False
    scales: list = dataclasses.field(default_factory=lambda: [1.0, 2.0])


class Slotted:
    __slots__ = ("flip",)

    def __init__(self):
        self.flip = False


def closure():
    held = {"factor": 1.0}

    def scaled(y):
        return y * held["factor"]

    return scaled


class Net(nn.Module):
    factor = 1.0

    def __init__(self, after):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.next, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.after = after
        self.pair, self.options, self.nested = (1, 2), {"flip": False}, [[1.0], {"deep": (1.0,)}]
        self.config, self.slotted, self.act = Config(), Slotted(), torch.relu
        self.table, self.array = torch.zeros(2), np.zeros(2)
        self.bytes, self.numbers = bytearray(2), array.array("d", [1.0])
        self.scaled = closure()

    def forward(self, x):
        return self.after(self, self.last(F.relu(self.next(F.relu(self.bn(self.conv(x)))))))


def image(batch=2, size=12, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def converted(after=lambda net, y: y, x=None):
    torch.manual_seed(0)
    net = Net(after).eval()
    nn.init.normal_(net.bn.running_mean), nn.init.uniform_(net.bn.running_var, 0.5, 2), nn.init.normal_(net.bn.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return accel.convert_model(net, HALF, example_inputs=image() if x is None else x)


def run(net, x=None):
    with torch.no_grad():
        return net((image() if x is None else x).clone())


def modules_one_by_one(net, x=None):
    with one_by_one():
        return run(net, x)


def assert_follows(net, ran, x=None):
    """The plan runs, and says what the modules say."""
    for _ in range(2):
        ran.clear()
        got = run(net, x)
        assert ran
        torch.testing.assert_close(got, modules_one_by_one(net, x), rtol=1e-4, atol=1e-4)
    return got

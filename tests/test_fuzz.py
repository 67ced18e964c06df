"""Random convolutional nets: conversion at keep 1 changes nothing, and copies, files and reverts are faithful.

A net is a random program of steps over earlier values, drawn while it runs, so that every step fits: shared modules,
branches, odd sizes, groups, dilation, every padding mode, in-place activations whose input has other readers,
functional calls, and, in every fourth net, control flow that no tracer can follow.
"""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.convert import perforated_layers

NETS = 120

OPERATIONS = {
    "relu": lambda net, x: net.relu(x),  # one module for every use, as in ResNets
    "F.relu": lambda net, x: F.relu(x),
    "torch.relu": lambda net, x: torch.relu(x),
    "method.relu": lambda net, x: x.relu(),
    "leaky": lambda net, x: F.leaky_relu(x),
    "hardswish": lambda net, x: F.hardswish(x),
    "relu_": lambda net, x: x.relu_(),
    "F.relu_": lambda net, x: F.relu(x, inplace=True),
    "max": lambda net, x: net.max_pool(x),
    "avg": lambda net, x: net.avg_pool(x),
    "F.max": lambda net, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    "F.avg": lambda net, x: F.avg_pool2d(x, (2, 3), stride=1, padding=(0, 1), count_include_pad=False),
    "add": lambda net, x, y: x + y,
    "dropout": lambda net, x: net.dropout(x),
    "cat": lambda net, x, y: torch.cat([x, y], 1)[:, ::2],
    "upsample": lambda net, x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "scale": lambda net, x: x * net.scale,
}


class RandomNet(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleDict()
        self.relu = nn.ReLU(inplace=self.draw.random() < 0.5)
        self.max_pool, self.avg_pool = nn.MaxPool2d(2), nn.AvgPool2d(3, stride=2, padding=1)
        self.dropout = nn.Dropout2d(0.3)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.data_dependent = seed % 4 == 0
        self.example = torch.randn(self.draw.choice([1, 2]), 4, *self.draw.choice([(9, 9), (13, 8), (7, 16)]))
        self.program = []
        with torch.no_grad():
            self._write(self.draw.randint(5, 12))

    def forward(self, x):
        values = [x]
        for step in self.program:
            values.append(self._run(step, values))
        if self.data_dependent and values[-1].mean() > 1e6:
            return values[0]
        return values[-1].mean((2, 3)), values[len(values) // 2]

    def _run(self, step, values):
        operation, sources, key = step
        inputs = [values[source] for source in sources]
        if operation == "layer":
            return self.layers[key](*inputs)
        if operation == "functional":
            return F.conv2d(*inputs, self.layers[key].weight, self.layers[key].bias, groups=self.layers[key].groups)
        if operation == "iadd":
            total = inputs[0]
            total += inputs[1]
            return total
        return OPERATIONS[operation](self, *inputs)

    def _write(self, steps):
        values = [self.example.clone()]  # an in-place step must not write to the example itself

        def do(operation, *sources, key=None):
            self.program.append((operation, sources, key))
            values.append(self._run(self.program[-1], values))
            return len(values) - 1

        do("layer", 0, key=self._new_conv(values[0]))
        for _ in range(steps):
            kind = self.draw.choice([self._chain, self._chain, self._unit, self._inplace, self._reduce, self._other])
            kind(values, do)

    def _chain(self, values, do, last=None, **shape):
        """conv [bn] [activation], after the last value."""
        key = self._old_conv(values[-1]) if not shape and self.draw.random() < 0.25 else None
        operation = self.draw.choice(["layer", "functional"]) if key else "layer"
        do(operation, len(values) - 1, key=key or self._new_conv(values[-1], **shape))
        if self.draw.random() < 0.6:
            do("layer", len(values) - 1, key=self._new_norm(values[-1]))
        if self.draw.random() < 0.7:
            do(self.draw.choice(["relu", "F.relu", "torch.relu", "method.relu", "leaky", "hardswish"]), len(values) - 1)

    def _unit(self, values, do):
        """A residual unit around the last value."""
        start, channels = len(values) - 1, values[-1].shape[1]
        for _ in range(self.draw.choice([1, 2])):
            self._chain(values, do, out=channels)
        do(self.draw.choice(["add", "iadd"]), len(values) - 1, start)
        if self.draw.random() < 0.7:
            do("relu", len(values) - 1)

    def _inplace(self, values, do):
        """An activation in place on any value but the input: its other readers must see it."""
        do(self.draw.choice(["relu_", "F.relu_"]), self.draw.randrange(1, len(values)))
        do("add", len(values) - 1, self.draw.choice([i for i, v in enumerate(values) if v.shape == values[-1].shape]))

    def _reduce(self, values, do):
        if min(values[-1].shape[2:]) > 3:
            do(self.draw.choice(["max", "avg", "F.max", "F.avg"]), len(values) - 1)

    def _other(self, values, do):
        kind = self.draw.choice(["dropout", "cat", "scale", "upsample"])
        alike = [i for i, value in enumerate(values) if value.shape == values[-1].shape]
        if kind == "upsample" and max(values[-1].shape[2:]) > 8:
            return
        do(kind, len(values) - 1, *([self.draw.choice(alike)] if kind == "cat" else []))

    def _new_conv(self, value, out=None):
        wide = min(value.shape[2:]) > 5
        kernel = self.draw.choice([1, 3, 3, 5, (3, 1)]) if wide else self.draw.choice([1, 3])
        dilation = 2 if wide and kernel == 3 and self.draw.random() < 0.3 else 1
        same = out is not None or self.draw.random() < 0.3
        padding = "same" if same else self.draw.choice([1, 2, (1, 2)])
        return self._register(
            nn.Conv2d(
                value.shape[1],
                out or self.draw.choice([4, 8]),
                kernel,
                stride=1 if same else self.draw.choice([1, 1, 2]),
                padding=padding,
                dilation=dilation,
                groups=self.draw.choice([1, 1, 2, 4]),
                bias=self.draw.random() < 0.5,
                padding_mode=self.draw.choice(
                    ["zeros", "zeros", "reflect", "replicate", "circular"] if wide else ["zeros"]
                ),
            )
        )

    def _old_conv(self, value):
        """A convolution that is there already and fits the value, or None."""
        fits = [
            key
            for key, layer in self.layers.items()
            if isinstance(layer, nn.Conv2d) and layer.in_channels == value.shape[1] and min(value.shape[2:]) > 5
        ]
        return self.draw.choice(fits) if fits else None

    def _new_norm(self, value):
        norm = nn.BatchNorm2d(value.shape[1], affine=self.draw.random() < 0.8)
        norm.running_mean.copy_(value.mean((0, 2, 3)) + 0.1)
        norm.running_var.copy_(value.var((0, 2, 3), unbiased=False) * 1.3 + 0.1)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
        norm.eval()
        return self._register(norm)

    def _register(self, layer):
        key = f"l{len(self.layers)}"
        self.layers[key] = layer
        return key


def outputs(model, x):
    """The model's outputs in inference, in one vector."""
    with torch.no_grad():
        return torch.cat([out.flatten() for out in model(x.clone())])


def close(actual, expected):
    return (actual - expected).norm() <= 1e-5 * expected.norm()


def random_config(seed):
    draw = random.Random(~seed)
    mask = draw.choice(["uniform", "grid", "pooling", "lattice"])
    return Perforate(
        keep=draw.choice([0.25, 0.5, 0.75]), mask=mask, interpolate=draw.choice(["nearest", "nearest", "zero"])
    )


@pytest.mark.parametrize("seed", range(NETS))
def test_conversion_of_a_random_net(seed, tmp_path):
    net = RandomNet(seed).eval()
    x = net.example
    before, dense = copy.deepcopy(net.state_dict()), outputs(net, x)

    assert close(outputs(accel.convert_model(net, Perforate(keep=1.0), example_inputs=x), x), dense)

    fast = accel.convert_model(net, random_config(seed), example_inputs=x)
    expected = outputs(fast, x)
    assert perforated_layers(fast) and list(fast.state_dict()) == list(before)
    with torch.enable_grad():  # the plain modules, one by one
        stepwise = torch.cat([out.detach().flatten() for out in fast(x.clone())])
    assert close(expected, stepwise)
    assert torch.equal(outputs(copy.deepcopy(fast), x), expected)
    accel.save_converted(fast, tmp_path)
    assert torch.equal(outputs(accel.load_converted(tmp_path, RandomNet(seed).eval()), x), expected)
    assert torch.equal(outputs(accel.revert_model(fast), x), dense)

    assert not perforated_layers(net) and torch.equal(outputs(net, x), dense)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

"""Random convolutional nets: conversion at keep 1 changes nothing, at any keep the fused path is the reference's, and
copies, files and reverts are faithful.

A net is a random program of steps over two inputs and earlier values, drawn while it runs, so that every step fits:
shared modules, branches, odd sizes, groups, dilation, every padding mode, geometry set after construction, sums of up
to four terms, writes in place to values that have other readers and to views of them, functional calls, and, in every
fourth net, control flow that no tracer can follow. One and two threads, torch's default dtypes and a second size take
turns.
"""

import contextlib
import copy
import operator
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.convert import perforated_layers
from accel.nn import pipeline
from accel.nn.inference import InferencePath, installed, refused_parts
from accel.ops import use_backend
from accel.running import one_by_one

NETS, BATCH = 420, 35
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16)

OPERATIONS = {
    "relu": lambda net, x: net.relu(x),  # one module for every use, as in ResNets
    "F.relu": lambda net, x: F.relu(x),
    "torch.relu": lambda net, x: torch.relu(x),
    "method.relu": lambda net, x: x.relu(),
    "leaky": lambda net, x: F.leaky_relu(x),
    "hardswish": lambda net, x: F.hardswish(x),
    "relu6": lambda net, x: F.relu6(x),
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
    "alpha": lambda net, x, y: torch.add(x, y, alpha=-0.5),
    "iadd": operator.iadd,
}

SUMS = {
    "left to right": lambda *terms: sum(terms[1:], terms[0]),
    "right to left": lambda *terms: sum(terms[-2::-1], terms[-1]),
    "in pairs": lambda a, b, *rest: sum(rest, b + a) if len(rest) < 2 else (a + b) + (rest[0] + rest[1]),
    "in place": lambda a, *rest: _added_in_place(a * 1, *rest),
    "into the first": lambda *terms: _added_in_place(*terms),
}

WRITES = {
    "relu_": lambda net, x: x.relu_(),
    "F.relu_": lambda net, x: F.relu(x, inplace=True),
    "mul_": lambda net, x: x.mul_(0.5),
    "idiv": lambda net, x: operator.itruediv(x, 2),
    "isub": lambda net, x: operator.isub(x, net.scale),
    "clamp_": lambda net, x: torch.clamp_(x, -1, 1),
    "out": lambda net, x: torch.mul(x, 0.7, out=x),
    "slice": lambda net, x: x[:, 0].zero_(),
    "view": lambda net, x: x.permute(1, 0, 2, 3)[0].unsqueeze(1).add_(1),
    "copy": lambda net, x: x[:, :1].copy_(x[:, 1:2]),
    "dropout": lambda net, x: net.dropout(x).mul_(0.5),
}


def _added_in_place(total, *rest):
    for term in rest:
        total += term
    return total


class RandomNet(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.draw, self.draw_seed = random.Random(seed), seed
        torch.manual_seed(seed)
        self.layers = nn.ModuleDict()
        self.relu = nn.ReLU(inplace=self.draw.random() < 0.5)
        self.max_pool, self.avg_pool = nn.MaxPool2d(2), nn.AvgPool2d(3, stride=2, padding=1)
        self.dropout = nn.Dropout2d(0.3)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.data_dependent = seed % 4 == 0
        self.sizes = self.draw.sample([(9, 9), (13, 8), (7, 16), (10, 11)], 2)
        self.program = []
        with torch.no_grad():
            self._write(self.draw.randint(4, 10))

    def example(self, which=0):
        """Two inputs of the net's first or second size."""
        generator = torch.Generator().manual_seed(which)
        batch = 1 + (self.draw_seed + which) % 2
        return tuple(torch.randn(batch, 4, *self.sizes[which], generator=generator) for _ in range(2))

    def forward(self, x, u):
        values = [x, u]
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
            layer = self.layers[key]
            return F.conv2d(*inputs, layer.weight, layer.bias, groups=layer.groups)
        if operation == "sum":
            return SUMS[key](*inputs)
        if operation == "write":
            WRITES[key](self, *inputs)
            return inputs[0]
        if operation == "iadd":
            return operator.iadd(*inputs)
        return OPERATIONS[operation](self, *inputs)

    def _write(self, steps):
        values = list(self.example())

        def do(operation, *sources, key=None):
            self.program.append((operation, sources, key))
            values.append(self._run(self.program[-1], values))
            return len(values) - 1

        do("layer", 0, key=self._new_conv(values[0]))
        for _ in range(steps):
            kinds = [self._chain, self._chain, self._unit, self._inplace, self._reduce, self._other, self._sum]
            kind = self.draw.choice(kinds)
            kind(values, do)

    def _chain(self, values, do, last=None, **shape):
        """conv [bn] [activation], after the last value."""
        key = self._old_conv(values[-1]) if not shape and self.draw.random() < 0.25 else None
        operation = self.draw.choice(["layer", "functional"]) if key else "layer"
        do(operation, len(values) - 1, key=key or self._new_conv(values[-1], **shape))
        if self.draw.random() < 0.6:
            do("layer", len(values) - 1, key=self._new_norm(values[-1]))
        if self.draw.random() < 0.7:
            do(
                self.draw.choice(["relu", "F.relu", "torch.relu", "method.relu", "leaky", "hardswish", "relu6"]),
                len(values) - 1,
            )

    def _unit(self, values, do):
        """A residual unit around the last value."""
        start, channels = len(values) - 1, values[-1].shape[1]
        for _ in range(self.draw.choice([1, 2])):
            self._chain(values, do, out=channels)
        do(self.draw.choice(["add", "iadd"]), len(values) - 1, start)
        if self.draw.random() < 0.7:
            do("relu", len(values) - 1)

    def _inplace(self, values, do):
        """A write to any value: its other readers must see it."""
        do("write", self.draw.randrange(len(values)), key=self.draw.choice(list(WRITES)))
        do(self.draw.choice(["add", "alpha"]), len(values) - 1, self.draw.choice(_alike(values)))

    def _sum(self, values, do):
        """A sum of two to four terms: earlier values, and convolutions of one of them."""
        terms, source = [], self.draw.choice(_alike(values))
        for _ in range(self.draw.choice([2, 3, 3, 4])):
            if self.draw.random() < 0.6:
                terms.append(do("layer", source, key=self._new_conv(values[source], out=values[source].shape[1])))
            else:
                terms.append(self.draw.choice(_alike(values)))
        do("sum", *terms, key=self.draw.choice(list(SUMS)))

    def _reduce(self, values, do):
        if min(values[-1].shape[2:]) > 3:
            do(self.draw.choice(["max", "avg", "F.max", "F.avg"]), len(values) - 1)

    def _other(self, values, do):
        kind = self.draw.choice(["dropout", "cat", "scale", "upsample"])
        alike = _alike(values)
        if kind == "upsample" and max(values[-1].shape[2:]) > 8:
            return
        do(kind, len(values) - 1, *([self.draw.choice(alike)] if kind == "cat" else []))

    def _new_conv(self, value, out=None):
        wide = min(value.shape[2:]) > 5
        kernel = self.draw.choice([1, 3, 3, 5, (3, 1)]) if wide else self.draw.choice([1, 3])
        dilation = 2 if wide and kernel == 3 and self.draw.random() < 0.3 else 1
        same = out is not None or self.draw.random() < 0.3
        padding = "same" if same else self.draw.choice([1, 2, (1, 2)])
        modes = ["zeros", "zeros", "reflect", "replicate", "circular"] if wide else ["zeros"]
        conv = nn.Conv2d(
            value.shape[1],
            out or self.draw.choice([4, 8]),
            kernel,
            stride=1 if same else self.draw.choice([1, 1, 2]),
            padding=padding,
            dilation=dilation,
            groups=self.draw.choice([1, 1, 2, 4]),
            bias=self.draw.random() < 0.5,
            padding_mode=self.draw.choice(modes),
        )
        if wide and self.draw.random() < 0.4:
            self._set_later(conv, same)
        return self._register(conv)

    def _set_later(self, conv, same):
        """Geometry that the constructor did not see: torch reads it at the call."""
        if not same:
            conv.padding, conv.stride = self.draw.choice([0, (2, 1), 2]), self.draw.choice([1, (2, 1)])
            conv.padding_mode = "zeros"
        elif conv.kernel_size == (3, 3) and conv.padding_mode == "zeros":
            conv.padding, conv.dilation = (2, 2), (2, 2)

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


def _alike(values):
    """The values that have the shape of the last."""
    return [i for i, value in enumerate(values) if value.shape == values[-1].shape]


def outputs(model, inputs):
    """The model's outputs in inference, in one vector."""
    with torch.no_grad():
        return torch.cat([out.flatten() for out in model(*[x.clone() for x in inputs])])


def close(actual, expected):
    return (actual - expected).norm() <= 1e-5 * expected.norm()


def random_config(seed):
    draw = random.Random(~seed)
    mask = draw.choice(["uniform", "grid", "pooling", "lattice"])
    interpolate = draw.choice(["nearest", "nearest", "zero", "weighted"])
    return Perforate(keep=draw.choice([0.25, 0.5, 0.75]), mask=mask, interpolate=interpolate)


@contextlib.contextmanager
def surroundings(dtype, threads):
    """Another default dtype and count of threads."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])


def runs_at(net, inputs):
    """Whether the net takes inputs of this size: its sums may not fit."""
    try:
        return outputs(net, inputs).numel() > 0
    except RuntimeError:
        return False


def reference(fast, inputs):
    """The modules one by one, in readable PyTorch."""
    with one_by_one(), use_backend("reference"):
        return outputs(fast, inputs)


@pytest.fixture
def took(monkeypatch):
    """Whether the rewritten path was taken, of every call of one since."""
    seen, ran, call, compiled = [], [], InferencePath.__call__, pipeline.compile_graph

    def counted(graph):
        forward = compiled(graph)

        def run(*inputs):
            ran.append(forward)
            return forward(*inputs)

        return run

    def called(self, *inputs, **named):
        before = len(ran)
        outputs = call(self, *inputs, **named)
        seen.append(len(ran) > before)
        return outputs

    monkeypatch.setattr(pipeline, "compile_graph", counted)
    monkeypatch.setattr(InferencePath, "__call__", called)
    return seen


def check(seed, took, tmp_path):
    """Convert one net and compare; (whether the rewritten path ran, whether a second size did)."""
    net = RandomNet(seed).eval()
    examples = [net.example(which) for which in (0, 1) if not which or runs_at(net, net.example(which))]
    before, dense = copy.deepcopy(net.state_dict()), [outputs(net, x) for x in examples]
    dtype = DTYPES[seed // 2 % len(DTYPES)]
    with surroundings(dtype, 1):
        whole = accel.convert_model(net, Perforate(keep=1.0), example_inputs=examples[0])
        assert all(close(outputs(whole, x), expected) for x, expected in zip(examples, dense)), seed

        fast = accel.convert_model(net, random_config(seed), example_inputs=examples[0])
        assert perforated_layers(fast) and not refused_parts(fast) and not refused_parts(whole), seed
        took.clear()
        found = [outputs(fast, x) for x in examples]
        ran = bool(took) and all(took)
        assert ran == bool(installed(fast)), seed
    for threads in (2, 1) if seed % 2 else (1,):  # after the first run, which was on one
        with surroundings(dtype, threads):
            assert all(close(outputs(fast, x), out) for x, out in zip(examples, found)), seed
    assert all(close(out, reference(fast, x)) for x, out in zip(examples, found)), seed
    if seed % 4 == 1:
        check_copies(seed, net, fast, examples[0], found[0], dense[0], tmp_path)
    assert not perforated_layers(net) and torch.equal(outputs(net, examples[0]), dense[0]), seed
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), seed
    return ran, len(examples) > 1


def check_copies(seed, net, fast, x, found, dense, tmp_path):
    assert list(fast.state_dict()) == list(net.state_dict())
    assert torch.equal(outputs(copy.deepcopy(fast), x), outputs(fast, x)), seed
    accel.save_converted(fast, tmp_path)
    assert torch.equal(outputs(accel.load_converted(tmp_path, RandomNet(seed).eval()), x), outputs(fast, x)), seed
    assert torch.equal(outputs(accel.revert_model(fast), x), dense), seed


@pytest.mark.parametrize("start", range(0, NETS, BATCH))
def test_conversion_of_random_nets(start, took, tmp_path):
    seen = [check(seed, took, tmp_path) for seed in range(start, start + BATCH)]
    fused, resized = (sum(column) / BATCH for column in zip(*seen))
    assert fused > 0.35 and resized > 0.8  # a fourth of the nets does not trace, and some parts have nothing to fuse

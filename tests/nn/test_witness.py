"""The way that a forward takes, on the example and on every new kind of inputs: a rewritten path holds for no other."""

import collections
import dataclasses
import gc
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import accel
from accel.nn import witness
from accel.nn.inference import describe_paths, installed
from accel.tests.nn.changing import HALF, Net, assert_follows, converted, image, modules_one_by_one, run

BRANCHES = {
    "isinstance": lambda net, y: y if isinstance(y, Tensor) else -y,
    "isinstance, the same on the example": lambda net, y: y if isinstance(y, Tensor) else y.clamp(max=1e6),
    "type": lambda net, y: y if type(y) is Tensor else -y,
    "hasattr": lambda net, y: -y if hasattr(y, "tensors") else y,
    "an expression": lambda net, y: y * (1 if isinstance(y, Tensor) else 1.0),
    "callable": lambda net, y: y if not callable(y) else y + 0,
    "layer drop": lambda net, y: y if random.random() < 0.5 else net.last(y.repeat(1, 2, 1, 1)),
    "numpy": lambda net, y: y if np.random.rand() < 0.5 else -y,
}


@pytest.mark.parametrize("after", BRANCHES.values(), ids=BRANCHES)
def test_branches_that_a_trace_cannot_tell_are_taken_as_the_forward_takes_them(after):
    torch.manual_seed(0)
    net = Net(after).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, at conversion
        fast = accel.convert_model(net, HALF, example_inputs=image())
    for seed in range(12):
        outputs = []
        for forward in (run, modules_one_by_one):
            random.seed(seed), np.random.seed(seed)
            outputs.append(forward(fast))
        torch.testing.assert_close(*outputs)
    assert all(path.refused for _, path in installed(fast))


def sizes(net, y):
    n, c, h, w = y.shape
    first, second = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, 1)
    return torch.cat((first, second.flip(1)), 1)


def containers(net, y):
    found = {"y": y, "more": [y * scale for scale in (1.0, 2.0)]}
    return sum((value for value in found["more"] if value is not None), found["y"])


Pair = collections.namedtuple("Pair", "left right")


def named(net, y):
    pair = Pair(y, right=y * 2)
    return pair.left + pair._replace(right=y).right


def guarded(net, y):
    if net.training or y is None:
        raise ValueError(f"{type(y)}")
    with torch.no_grad():
        return y if not torch.jit.is_scripting() else -y


@pytest.mark.parametrize("after", [sizes, containers, named, guarded], ids=lambda after: after.__name__)
def test_ways_that_a_trace_can_tell_run_the_plan(after, ran):
    assert_follows(converted(after), ran)


def test_what_the_collector_calls_is_no_way_of_the_forward(ran):
    def counted(_phase, _info):  # as Hypothesis and profilers count collections
        calls.append(_phase)

    calls, threshold = [], gc.get_threshold()
    gc.callbacks.append(counted)
    gc.set_threshold(1)
    try:
        fast = converted(sizes)
        assert calls and gc.isenabled()
        assert_follows(fast, ran)
    finally:
        gc.callbacks.remove(counted)
        gc.set_threshold(*threshold)


def test_the_collector_rests_until_the_last_thread_is_done():
    first, second = witness._no_collections(), witness._no_collections()
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_branch_that_is_refused_is_said_in_the_report():
    with pytest.warns(UserWarning, match="takes another way through its code than when it was traced"):
        fast = accel.convert_model(Net(BRANCHES["isinstance"]).eval(), HALF, example_inputs=image())
    assert "another way" in describe_paths(fast, image())["conv"]


class ByLayout(nn.Module):
    """Takes another way where its input is contiguous, which stand-ins never are."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.next(F.relu(self.conv(x)))
        return y if x.contiguous() is x else -y


def test_a_way_that_depends_on_the_input_is_found_at_the_first_call_of_its_kind(ran):
    x = image().contiguous(memory_format=torch.channels_last)
    net = accel.convert_model(ByLayout().eval(), HALF, example_inputs=x)
    assert_follows(net, ran, x)
    with pytest.warns(UserWarning, match=r"on inputs of \[2, 3, 12, 12\]: it takes another way"):
        first = run(net)
    torch.testing.assert_close(first, -assert_follows(net, ran, x))
    assert torch.equal(run(net), modules_one_by_one(net))


def test_new_sizes_run_the_plan_and_are_compared_once(ran):
    net = converted()
    path = installed(net)[0][1]
    for batch, size in ((1, 12), (2, 9), (3, 17), (1, 12)):
        assert_follows(net, ran, image(batch, size))
    assert len(path.plan.verdicts) == 4 and set(path.plan.verdicts.values()) == {None}


def test_the_kinds_of_inputs_that_are_remembered_are_bounded(monkeypatch, ran):
    monkeypatch.setattr("accel.nn.inference._KEYS", 3)
    net = converted()
    for size in range(8, 16):
        assert_follows(net, ran, image(1, size))
    assert len(installed(net)[0][1].plan.verdicts) == 3


def test_a_plan_that_is_wrong_for_some_inputs_leaves_these_to_the_forward(ran):
    net = converted()
    path = installed(net)[0][1]
    rewritten = path.rewritten

    def wrong(root, x):
        return rewritten.fast(root, x) + (len(x) == 1)

    path.plan = dataclasses.replace(path.plan, rewritten=dataclasses.replace(rewritten, fast=wrong))
    with pytest.warns(UserWarning, match=r"nothing fused, on inputs of \[1, 3, 12, 12\]: it differs by"):
        first = run(net, image(1))
    assert torch.equal(first, modules_one_by_one(net, image(1)))
    assert torch.equal(run(net, image(1)), first)
    assert_follows(net, ran, image(2))
    assert "differs by" in describe_paths(net, image())["conv"]


class Counts(nn.Module):
    """Writes to its input and counts its calls, in a buffer."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        x.mul_(2)
        return self.next(F.relu(self.conv(x)))


def test_the_first_call_of_a_kind_happens_once(ran):
    fast = accel.convert_model(Counts().eval(), HALF, example_inputs=image())
    x, calls = image(3), fast.calls.item()
    with torch.no_grad():
        out = fast(x)
    assert ran and fast.calls == calls + 1 and torch.equal(x, image(3) * 2)
    torch.testing.assert_close(out, modules_one_by_one(fast, image(3)))

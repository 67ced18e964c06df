"""Tracing leaves nothing behind: neither in the model, nor in the process, nor for other threads."""

import collections
import copy
import functools
import math
import random
import sys
import threading
import types
import typing

import numpy as np
import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.nn import tracing
from accel.nn.inference import installed
from accel.nn.tracing import trace

HALF = Perforate(keep=0.5, mask="uniform")
OUTSIDE = types.SimpleNamespace(seen=[], by_name={}, last=None)


class Net(nn.Module):
    seen_by_all: typing.ClassVar = []

    def __init__(self, run):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.run = run
        self.meta = {"masks": [], "count": [0]}
        self.box = types.SimpleNamespace(held=None, queue=collections.deque(maxlen=3))
        self.table = torch.zeros(3)
        self.luck = random.Random(0)

    def forward(self, x):
        return self.run(self, x)


def base(net, x):
    return net.next(torch.relu(net.conv(x)))


def image(size=8):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def together(count, work):
    """Run `work(index)` in threads that start together; what they raised."""
    errors, start = [], threading.Barrier(count)

    def run(index):
        start.wait()
        try:
            work(index)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_copies_run_for_the_first_time_in_many_threads(eager_switches):
    fast, call = accel.convert_model(Net(base).eval(), HALF, example_inputs=image()), nn.Module.__call__
    with torch.no_grad():
        expected = fast(image())

    def work(_index):
        for _ in range(5):
            own = copy.deepcopy(fast)
            with torch.no_grad():
                assert torch.equal(own(image()), expected)
            assert installed(own)[0][1].rewritten is not None

    assert together(4, work) == [] and nn.Module.__call__ is call
    assert nn.ReLU()(-torch.ones(1)) == 0


def test_models_are_converted_while_others_run(eager_switches):
    other, stop = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval(), threading.Event()
    expected = other(image())

    def work(index):
        if index == 0:
            while not stop.is_set():
                assert torch.equal(other(image()), expected)
            return
        try:
            for _ in range(3):
                fast = accel.convert_model(Net(base).eval(), HALF, example_inputs=image())
                assert installed(fast)[0][1].rewritten is not None
        finally:
            stop.set()

    assert together(3, work) == []


def test_nothing_of_the_process_is_patched_while_tracing(monkeypatch):
    before = (nn.Module.__call__, nn.Module.__getattr__, math.sqrt, torch.fx._symbolic_trace.is_fx_tracing())

    def run(net, x):
        now = (nn.Module.__call__, nn.Module.__getattr__, math.sqrt, torch.fx._symbolic_trace.is_fx_tracing())
        assert now == before
        return base(net, x)

    assert trace(Net(run)) is not None


def nested_list(net, x):
    net.meta["masks"].append(x)
    return base(net, x)


def nested_count(net, x):
    net.meta["count"][0] += 1
    return base(net, x)


def attribute_of_an_object(net, x):
    net.box.held = x
    return base(net, x)


def queue(net, x):
    net.box.queue.append(1)
    return base(net, x)


def plain_tensor(net, x):
    net.table += 1
    return base(net, x)


def own_generator(net, x):
    return base(net, x) if net.luck.random() < 2 else x


def list_of_the_class(net, x):
    net.seen_by_all.append(x)
    return base(net, x)


def global_list(net, x):
    OUTSIDE.seen.append(base(net, x))
    return OUTSIDE.seen[-1]


def global_dict(net, x):
    OUTSIDE.by_name["x"] = x
    return base(net, x)


def parameter(net, x):
    net.conv.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    return base(net, x)


def submodule(net, x):
    net.add_module("later", nn.ReLU())
    return base(net, x)


EFFECTS = [nested_list, nested_count, attribute_of_an_object, queue, plain_tensor, own_generator]
EFFECTS += [list_of_the_class, global_list, global_dict, parameter, submodule]


@pytest.mark.parametrize("run", EFFECTS, ids=lambda run: run.__name__)
def test_side_effects_are_refused_and_undone(run):
    net = Net(run).eval()
    weight, state = net.conv.weight, net.luck.getstate()
    assert trace(net) is None
    assert net.meta == {"masks": [], "count": [0]} and net.box.held is None and not net.box.queue
    assert not net.table.any() and net.luck.getstate() == state and net.conv.weight is weight
    assert Net.seen_by_all == [] and OUTSIDE.seen == [] and OUTSIDE.by_name == {} and len(net._modules) == 2


def test_a_model_that_collects_what_it_computes_goes_on_collecting():
    fast = accel.convert_model(Net(nested_list).eval(), HALF, example_inputs=image())
    held = len(fast.meta["masks"])  # the runs of the conversion
    assert all(type(value) is torch.Tensor for value in fast.meta["masks"])
    with torch.no_grad():
        fast(image())
    assert len(fast.meta["masks"]) == held + 1


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: torch.rand(()).item(), np.random.rand],
    ids=["python", "torch", "numpy"],
)
def test_random_branches_are_refused_and_draw_nothing(draw):
    net, before = Net(lambda net, x: base(net, x) if draw() < 0.5 else x).eval(), (random.getstate(), torch.rand(0))
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert trace(net) is None
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_other_threads_draw_by_torch_as_often_as_they_like():
    def run(net, x):
        thread = threading.Thread(target=torch.rand, args=(3,))
        thread.start(), thread.join()
        return base(net, x)

    before = torch.get_rng_state()
    assert trace(Net(run)) is not None
    assert not torch.equal(torch.get_rng_state(), before)  # what they drew is not drawn again


def test_other_threads_may_draw_while_one_traces():
    drawn = iter([1])

    def run(net, x):
        next(drawn, None) and random.random()  # as if by another thread, once
        return base(net, x)

    assert trace(Net(run)) is not None


def test_what_cannot_be_copied_is_not_traced_and_runs():
    net = Net(base).eval()
    net.lock = threading.Lock()
    assert trace(net) is None
    del net.lock
    assert trace(net) is not None


def test_attributes_are_read_as_the_model_has_them():
    def run(net, x):
        assert type(net) is Net and net.helper.owner is net and net.bound.__self__ is net
        return net.bound(x) + math.floor(x.shape[2] / 2) + net.part(1.0)

    net = Net(run).eval()
    net.helper = types.SimpleNamespace(owner=net)
    net.bound = types.MethodType(base, net)
    net.part = functools.partial(max, 2.0)
    graph = trace(net).graph
    assert graph is not None and [n.target for n in graph.nodes if n.op == "call_module"] == ["conv", "next"]
    assert any(n.target is math.floor for n in graph.nodes)


def test_proxies_are_gone_without_the_garbage_collector(monkeypatch):
    monkeypatch.setattr(tracing.gc, "collect", lambda: pytest.fail("something held a circle"))
    assert trace(Net(base)) is not None

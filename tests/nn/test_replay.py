"""Segments of the inference path that run as one call of the engine: what they compute, and when they step aside."""

from __future__ import annotations

import copy
import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.fills.sums import nearest_fit
from accel.kernels.positions import PositionSet
from accel.ops import perforated_conv2d, use_backend
from accel.running import one_by_one
from accel.tests.nn.replays import programs, segments, unrecorded
from accel.tests.threads import in_threads

_engine = pytest.importorskip("accel.kernels.cpu._engine", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import replay as engine_replay  # noqa: E402

RULES = {
    "dense": Perforate(keep=1.0, mask="lattice"),
    "nearest": Perforate(keep=0.5, mask="lattice"),
    "weighted": Perforate(keep=0.25, mask="lattice", interpolate="weighted", neighbors=4),
    "mixed": Rules({"stem": None, "*.first": Perforate(keep=0.5, mask="uniform"), "*": Perforate(keep=0.5)}),
}


class Unit(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.second, self.bn2 = nn.Conv2d(outer, outer, 3, padding=1), nn.BatchNorm2d(outer)
        self.same, self.stride, self.new = nn.Identity(), stride, outer - inner

    def forward(self, x):
        y = self.bn2(self.second(F.relu(self.bn1(self.first(x)))))
        return F.relu(y + (self.same(x) if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new))))


class Net(nn.Module):
    """A stem, two units of one width, and one that changes it; outputs two maps and a mean."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.units = nn.Sequential(Unit(12, 12, 1), Unit(12, 12, 1), Unit(12, 20, 2))
        self.side = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        early = self.units[0](x)
        late = self.units[2](self.units[1](early))
        return late, F.relu(self.side(early)), late.mean((2, 3))


def images(batch: int, size: int = 16, seed: int = 0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def converted(rules="weighted"):
    torch.manual_seed(1)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    return accel.convert_model(net, RULES[rules], example_inputs=images(2))


def assert_repeats(net, x):
    """Recording and two replays give the very values of the calls, and those of the modules one by one nearly."""
    expected = unrecorded(net, x)
    with torch.no_grad():
        for _ in range(3):
            for out, value in zip(net(x), expected):
                assert torch.equal(out, value)
        with one_by_one():
            torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_a_replay_gives_the_values_of_the_calls(rules, batch):
    net = converted(rules)
    assert_repeats(net, images(batch))
    assert programs(net) and None not in programs(net)
    x = images(batch, seed=5)  # not what was recorded
    assert all(torch.equal(a, b) for a, b in zip(unrecorded(net, x), net_outputs(net, x)))
    assert_repeats(net, images(batch, size=12))


def net_outputs(net, x):
    with torch.no_grad():
        return net(x)


def test_shortcuts_do_not_cut_a_branch():
    convs = [[layer for layer in segment.layers if isinstance(layer, nn.Conv2d)] for segment in segments(converted())]
    assert [len(each) for each in convs] == [5, 3]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_rows_of_the_kernel_that_are_one_run(keep, batch):
    """Few channels for more outputs than a vector has lanes: rows at the edge are read from a framed copy."""
    net = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 8, 3, padding=1), nn.ReLU()).eval()
    net = accel.convert_model(net, Perforate(keep=keep, mask="lattice"), example_inputs=images(batch))
    assert_repeats(net, images(batch))
    assert programs(net) and None not in programs(net)
    x = images(batch, seed=5)  # not what was recorded
    assert torch.equal(unrecorded(net, x), net_outputs(net, x))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_threads_do_not_matter(threads):
    net, x, before = converted(), images(6), torch.get_num_threads()
    expected = unrecorded(net, x)
    try:
        torch.set_num_threads(threads)
        found = [net_outputs(net, x) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for outputs in found for a, b in zip(outputs, expected))


def step(net):
    net.units[0].second.weight.data.mul_(0.5)  # raises no version
    accel.refresh(net)


def new_statistics(net):
    net.units[0].bn2.running_mean.add_(1)


def new_parameter(net):
    net.stem.weight = nn.Parameter(net.stem.weight.detach() * 2)


def new_fit(net):
    layer = net.units[1].first
    fit = nearest_fit(layer.out_channels)
    layer.set_fit(dataclasses.replace(fit, constant=fit.constant + 1))


def other_padding(net):
    net.side.padding, net.side._reversed_padding_repeated_twice = (1, 1), [1, 1, 1, 1]


@pytest.mark.parametrize("change", [step, new_statistics, new_parameter, new_fit, other_padding])
def test_changes_are_seen(change):
    net, x = converted(), images(2)
    before = [out.clone() for out in net_outputs(net, x)]
    change(net)
    after = net_outputs(net, x)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(after, before))
    assert all(torch.equal(a, b) for a, b in zip(after, unrecorded(net, x)))


def test_the_instruction_set_is_seen():
    net, x, own = converted(), images(2), _engine.isa()
    expected = net_outputs(net, x)
    try:
        for isa in _engine.isas():
            _engine.set_isa(isa)
            torch.testing.assert_close(net_outputs(net, x), expected, rtol=1e-4, atol=1e-4)
            assert all(torch.equal(a, b) for a, b in zip(net_outputs(net, x), unrecorded(net, x)))
    finally:
        _engine.set_isa(own)


def test_whoever_watches_a_layer_sees_its_calls():
    net, x, seen = converted(), images(2), []
    net_outputs(net, x)

    def hook(*_):
        seen.append("second")

    hook.observes_only = True
    handle = net.units[0].second.register_forward_hook(hook)
    net_outputs(net, x)
    handle.remove()
    net_outputs(net, x)
    assert seen == ["second"]


def test_what_only_torch_can_do_is_left_to_it():
    net, x = converted("nearest"), images(2)
    expected = net_outputs(net, x)
    count = len(programs(net))
    with use_backend("reference"):
        torch.testing.assert_close(net_outputs(net, x), expected, rtol=1e-4, atol=1e-4)
    double = net_outputs(copy.deepcopy(net).double(), x.double())
    torch.testing.assert_close(double[0].float(), expected[0], rtol=1e-4, atol=1e-4)
    assert len(programs(net)) == count


def test_any_layout_comes_in():
    net, x = converted(), images(4)
    expected = net_outputs(net, x.contiguous(memory_format=torch.channels_last))
    for given in (x, x.transpose(2, 3).contiguous().transpose(2, 3), torch.cat((x, x), 1)[:, :3]):
        assert all(torch.equal(a, b) for a, b in zip(net_outputs(net, given), expected))


def test_an_output_is_nobody_elses_memory():
    net = converted()
    first = net_outputs(net, images(4))
    kept = [out.clone() for out in first]
    for seed in range(1, 4):
        net_outputs(net, images(4, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(first, kept))


def test_copies_record_for_themselves():
    net, x = converted(), images(2)
    expected = net_outputs(net, x)
    other = copy.deepcopy(net)
    step(other)
    assert not torch.equal(net_outputs(other, x)[0], expected[0])
    assert torch.equal(net_outputs(net, x)[0], expected[0])


def test_only_the_last_shapes_are_kept():
    net = converted()
    for size in range(8, 20):
        net_outputs(net, images(1, size))
    assert {len(segment._programs) for segment in segments(net)} == {8}


def test_threads_of_python_share_a_model():
    net, errors = converted(), []
    expected = {seed: unrecorded(net, images(4, seed=seed)) for seed in range(4)}

    def work(seed):
        for _ in range(20):
            if not all(torch.equal(a, b) for a, b in zip(net_outputs(net, images(4, seed=seed)), expected[seed])):
                errors.append(seed)

    in_threads(work, ((seed,) for seed in range(4)))
    assert not errors


def test_a_run_that_computes_something_else_is_not_repeated():
    weight, full = torch.randn(4, 8, 3, 3), PositionSet.full(8, 8)

    def conv(x):
        return perforated_conv2d(x, weight, None, full, padding=(1, 1, 1, 1))

    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        assert engine_replay.prepare_replay(lambda x: (conv(x),), [x]) is not None
        assert engine_replay.prepare_replay(lambda x: (conv(x + 1),), [x]) is None
        assert engine_replay.prepare_replay(lambda x: (conv(x) + 1,), [x]) is None
        assert engine_replay.prepare_replay(lambda x: (x,), [x]) is None
        assert engine_replay.prepare_replay(lambda x: (conv(x)[:, :2],), [x]) is None


def test_large_maps_are_not_recorded(monkeypatch):
    monkeypatch.setattr(engine_replay, "MOST", 1000)
    net = converted()
    assert_repeats(net, images(2))
    assert set(programs(net)) == {None}


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="needs two threads")
def test_a_single_group_starts_no_threads_anew():
    """Threads of a nested parallel region took 0.5 ms a call: twenty times as long as these convolutions do."""
    net, x = converted(), images(1, size=64)
    proved = programs(net)  # the proof of the conversion ran its example
    assert_repeats(net, x)
    assert [program._groups for program in programs(net) if program not in proved] == [1, 1]
    times = {unrecorded: [], net_outputs: []}
    for _ in range(100):  # in turn, over 100 ms: another process that takes a core for a while slows both
        for run, taken in times.items():
            start = time.perf_counter()
            run(net, x)
            taken.append(time.perf_counter() - start)
        time.sleep(0.001)
    assert min(times[net_outputs]) < 2 * min(times[unrecorded])


class WithTensors(nn.Module):
    """Adds a learned map, and convolves one."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.map = nn.Parameter(torch.randn(1, 3, 16, 16))

    def forward(self, x):
        return self.next(F.relu(self.conv(x) + self.map)), self.next(F.relu(self.conv(self.map)))


def test_tensors_of_the_model_are_no_layers():
    net = accel.convert_model(WithTensors().eval(), RULES["nearest"], example_inputs=images(1))
    for batch in (1, 2):
        assert_repeats(net, images(batch))
    with torch.no_grad():
        net.map.mul_(2)
    assert_repeats(net, images(1))


class Joined(nn.Module):
    """Two inputs, both read by one segment."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x, y):
        return self.second(F.relu(self.first(x))) + y


@pytest.mark.parametrize("batch", [1, 6])
def test_one_map_given_twice_and_then_two_maps(batch):
    """A recording on (x, x) must know which of the two is read where."""
    torch.manual_seed(0)
    x, y = (map_.contiguous(memory_format=torch.channels_last) for map_ in torch.randn(2, batch, 12, 9, 9))
    net = accel.convert_model(Joined().eval(), Perforate(keep=0.5, mask="lattice"), example_inputs=(x, y))
    with torch.no_grad():
        for inputs in ((x, x), (x, y), (y, x), (y, y)):
            got = net(*inputs)
            with one_by_one():
                assert (got - net(*inputs)).norm() <= 1e-5 * got.norm()

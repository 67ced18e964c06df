"""Recorded segments of layers in eight bits: they give the very numbers of their calls."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel import Perforate, Rules
from accel.nn.inference import installed
from accel.nn.quantized import floating
from accel.nn.replay import Segment
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.nn.eight_bits import FILLS, WHOLE, convert, pictures
from accel.tests.nn.replays import programs, segments, unrecorded
from accel.tests.threads import in_threads

_engine = pytest.importorskip("accel.kernels.cpu._engine", reason="the C engine was not built", exc_type=ImportError)

RULES = {"whole": WHOLE, **{name: FILLS[name] for name in ("nearest", "weighted", "fitted")}}


class Net(nn.Module):
    """Poolings, a residual unit, a depthwise layer, and two side outputs that are resized."""

    def __init__(self):
        super().__init__()
        self.first, self.next = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.sides = nn.ModuleList([nn.Conv2d(16, 1, 1), nn.Conv2d(24, 1, 1)])

    def forward(self, x):
        size = x.shape[2:]
        early = F.relu(self.first(x))
        x = F.relu(self.next(F.max_pool2d(early, 2)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        late = F.relu(self.depthwise(F.max_pool2d(x, 3, 2, 1)))
        return torch.cat([F.interpolate(self.sides[1](late), size, mode="bilinear"), self.sides[0](early)], 1)


def converted(rules: Perforate | Rules):
    torch.manual_seed(0)
    return convert(Net().eval(), rules)


@pytest.mark.parametrize("fill", RULES)
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@torch.no_grad()
def test_a_replay_gives_the_numbers_of_the_calls(fill, batch):
    net = converted(Rules({"outer": WHOLE, "sides.*": WHOLE, "*": RULES[fill]}))
    for seed in range(3):
        x = pictures(seed=seed).repeat(batch, 1, 1, 1)[:batch]
        expected = unrecorded(net, x)
        assert all(torch.equal(net(x), expected) for _ in range(2))
    assert programs(net) and None not in programs(net)


class Ends(nn.Module):
    """A residual unit whose sum is read as numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.first(x))
        return F.relu(x + self.outer(F.relu(self.inner(x)))).mean((2, 3))


@pytest.mark.parametrize("fill", RULES)
@torch.no_grad()
def test_bytes_that_are_added_to_numbers(fill):
    torch.manual_seed(0)
    net = convert(Ends().eval(), Rules({"outer": RULES[fill], "*": WHOLE}))
    path, x = installed(net)[0][1], pictures(seed=3)
    assert path.chains.bytes["first"] == ["inner", "outer"] and path.doubt is None
    expected = unrecorded(net, x)
    assert all(torch.equal(net(x), expected) for _ in range(2)) and None not in programs(net)
    with one_by_one():
        assert relative_norm(expected, net(x)) < 2e-3


@torch.no_grad()
def test_all_layers_between_the_picture_and_the_sides_are_one_segment():
    (segment,) = segments(converted(WHOLE))
    assert sum(isinstance(layer, nn.Conv2d) for layer in {*segment.layers}) == 7


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.no_grad()
def test_the_threads_do_not_matter(threads):
    net, x, before = converted(WHOLE), pictures(seed=1), torch.get_num_threads()
    expected = unrecorded(net, x)
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(net(x), expected) for _ in range(2))
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_every_instruction_set_gives_the_same_numbers():
    net, x, own = converted(RULES["nearest"]), pictures(seed=1), _engine.isa()
    expected = unrecorded(net, x)
    try:
        for isa in _engine.isas():
            _engine.set_isa(isa)
            assert all(torch.equal(net(x), expected) for _ in range(2))
    finally:
        _engine.set_isa(own)


@torch.no_grad()
def test_what_bytes_stand_for_is_seen_to_change():
    net, x = converted(WHOLE), pictures(seed=1)
    before = net(x)
    net.inner.quantization = dataclasses.replace(net.inner.quantization, scale=net.inner.quantization.scale * 2)
    after = net(x)
    assert not torch.equal(after, before) and torch.equal(after, unrecorded(net, x)) and torch.equal(after, net(x))


@torch.no_grad()
def test_numbers_that_no_byte_stands_for_are_refused():
    net, x = converted(WHOLE), pictures(seed=1)
    net(x)
    assert None not in programs(net)
    x[-1, 0, 3, 3] = float("inf")
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            net(x)


@torch.no_grad()
def test_in_floating_numbers_nothing_of_bytes_is_replayed():
    net, x = converted(WHOLE), pictures(seed=1)
    in_bytes = net(x)
    with floating():
        found = net(x)
        with one_by_one():
            torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, in_bytes) and torch.equal(net(x), in_bytes)


@torch.no_grad()
def test_a_recording_that_gives_other_numbers_is_not_used(monkeypatch):
    net, x = converted(WHOLE), pictures(seed=1)[:2]
    expected = unrecorded(net, x)
    for segment in segments(net):
        segment.forget()
    own = Segment._is_proved

    def other(self, program, inputs):
        class Off:
            def run(self, inputs):
                return tuple(out + 1 for out in program.run(inputs))

        return own(self, Off(), inputs)

    monkeypatch.setattr(Segment, "_is_proved", other)
    assert torch.equal(net(x), expected) and programs(net) == [None]


@torch.no_grad()
def test_threads_of_python_share_a_model():
    net, errors = converted(RULES["nearest"]), []
    expected = {seed: unrecorded(net, pictures(seed=seed)) for seed in range(4)}

    def work(seed):
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(net(pictures(seed=seed)), expected[seed]):
                    errors.append(seed)

    in_threads(work, ((seed,) for seed in range(4)))
    assert not errors

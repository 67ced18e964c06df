"""What a converted model leaves behind: nothing when it is dropped, and no more than the newest sizes while it runs."""

from __future__ import annotations

import _thread
import collections
import copy
import functools
import gc
import signal

import pytest
import torch
from torch import nn

import accel
from accel import SACT, Perforate
from accel.bench import leaks
from accel.bench.runner import Settings
from accel.kernels import positions as sets
from accel.kernels.caches import MOST_KINDS, IdentityCache, entries, keep_newest
from accel.kernels.positions import Neighbors, PositionSet
from accel.nn import dense
from accel.nn.inference import installed
from accel.nn.perforated import PerforatedConv2d
from accel.profiling.memory import resident_bytes

packing = pytest.importorskip("accel.kernels.cpu.packing", reason="the C engine was not built", exc_type=ImportError)


@pytest.fixture
def held():
    """How many values the caches hold beyond those from before."""
    gc.collect()
    before = entries(), len(packing._cache)

    def more():
        gc.collect()
        return entries() - before[0], len(packing._cache) - before[1]

    return more


def small_net():
    return nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 20, 3), nn.ReLU())


def image(*size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", leaks.FORMS, ids=lambda options: f"{options['mask']} {options['keep']}")
@torch.no_grad()
def test_a_dropped_model_leaves_no_table(held, options):
    net = small_net().eval()
    fast = accel.convert_model(net, Perforate(**options), example_inputs=image(14, 15))
    fast(image(14, 15))
    fast(image(9, 15))
    tables, panels = held()
    assert tables > 0 and panels > 0
    del fast
    assert held() == (0, 0)


def test_what_training_made_goes_too(held):
    layer = PerforatedConv2d(3, 4, 3, padding=1, config=Perforate(keep=0.5, interpolate="weighted", neighbors=4))
    layer(image(8, 9)).sum().backward()
    assert held()[0] > 0
    del layer
    assert held() == (0, 0)


@torch.no_grad()
def test_an_adaptive_stage_goes_too(held):
    from accel.zoo.cifar import CifarResNet

    net = accel.convert_model(CifarResNet(20).eval(), SACT(tau=0.005), example_inputs=image(32, 32))
    net(image(32, 32))
    assert held()[1] > 0
    del net
    assert held() == (0, 0)


def test_copies_are_forgotten_one_by_one(held):
    with torch.no_grad():
        fast = accel.convert_model(small_net().eval(), Perforate(keep=0.5), example_inputs=image(12, 12))
        fast(image(12, 12))
        one = held()
        other = copy.deepcopy(fast)
        other(image(12, 12))
        assert held()[0] > one[0]
        del other
    assert held() == one


def test_a_thousand_cycles_in_short():
    (row,) = leaks.rows({"cycles": 28, "warm": 12, "size": [24, 24]}, Settings())
    assert row["correct"] and row["left"] == 0 and row["growth_mb"] <= 20


@torch.no_grad()
def test_ever_new_sizes_forget_the_oldest(held):
    fast = accel.convert_model(small_net().eval(), Perforate(keep=0.5, mask="lattice"), example_inputs=image(20, 20))
    ((_, path),) = installed(fast)
    counts = []
    for size in range(20, 44):
        fast(image(size, 20))
        if size >= 40:
            counts.append(held())
    assert len(path.plan.verdicts) == 24 and set(path.plan.verdicts.values()) == {None}  # the fast path ran each time
    assert all(len(fast[i]._sets) == 8 for i in (0, 3))
    assert counts == [counts[0]] * 4


@torch.no_grad()
def test_large_sets_make_room_for_one_another():
    layer = PerforatedConv2d(1, 1, 1, config=Perforate(keep=0.5, mask="lattice"))
    before = resident_bytes()
    for size in (1501, 1502, 1503):
        layer.position_set(size, size)
    assert list(layer._sets) == [(1503, 1503, torch.device("cpu"))]
    assert resident_bytes() - before < 150e6
    for size in (4, 5):
        layer.position_set(size, size)
    assert len(layer._sets) == 3


@torch.no_grad()
def test_convolutions_share_full_sets_while_one_of_them_lives():
    convs = [nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)]
    for conv in convs:
        for side in range(11, 21):
            dense.convolve(conv, torch.zeros(1, 1, side, side))
    first, second = (dense._own[conv].sets for conv in convs)
    assert list(first) == [(side, side) for side in range(11, 19)]  # of the output, the newest 8
    assert all(first[size] is second[size] for size in first)
    del first, second, convs, conv
    gc.collect()
    assert not any(size in sets._full_sets for size in [(18, 18), (9, 9)])


def test_a_cache_holds_neither_its_keys_nor_too_much():
    cache, key = IdentityCache(), torch.zeros(3)
    for number in range(MOST_KINDS + 7):
        cache.get((key, None), number, lambda sets: sets[0])
    assert len(cache) == MOST_KINDS
    found = cache.get((key, None), MOST_KINDS + 6, lambda sets: None)
    assert found is not key and found.data_ptr() == key.data_ptr()
    del key
    assert len(cache) == 0 and found.tolist() == [0, 0, 0]


@pytest.fixture
def interruptible():
    """Processes of pytest-xdist ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_as_a_tensor_goes_leaves_no_entry(held, interruptible):
    """Else the entry would serve the next tensor of that id. Both happen in one call of C."""
    before, cache, tensors = held(), IdentityCache(), [torch.zeros(4, 3, 3, 3)]
    cache.get(tuple(tensors), 0, lambda given: 1)
    packing.packed_weight(tensors[0], 1, "conv")
    assert held() == (before[0] + 1, before[1] + 1)
    calls = functools.partial(_thread.interrupt_main), functools.partial(tensors.clear)
    with pytest.raises(KeyboardInterrupt):
        collections.deque(map(functools.partial.__call__, calls), maxlen=0)
    assert not tensors and len(cache) == 0 and held() == before


@pytest.mark.parametrize("count", [0, 3, 4, 5, 9])
def test_the_newest_are_kept(count):
    cache = dict.fromkeys(range(count))
    keep_newest(cache, 4)
    assert list(cache) == list(range(count))[-4:]


def test_one_set_of_lists_for_every_map_that_shares_it(held):
    """The lists of fitted interpolation are values too."""
    from accel import ops

    positions = PositionSet(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 0, 1], dtype=torch.int32), 1, 3)
    lists = [torch.tensor(values, dtype=torch.int32) for values in ([1], [[0, 1]], [0, 1])]
    neighbors, weights = Neighbors(*lists), torch.full((1, 2, 4), 0.5)
    rows = torch.arange(8.0).view(2, 4).requires_grad_()
    out = ops.interpolate(rows, positions, neighbors, weights, torch.zeros(1, 4))
    assert torch.equal(out[0, :, 0, 1], rows.detach().mean(0))
    out.sum().backward()
    assert held()[0] >= 2
    del positions, neighbors, lists, out
    assert held() == (0, 0)

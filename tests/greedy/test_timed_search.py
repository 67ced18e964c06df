"""Searches that time whole networks, on clocks that are written down: what is timed again, and what comes of it."""

import pytest
import torch
from torch import nn

from accel.greedy import measure as measure_module
from accel.greedy import search as search_module
from accel.greedy.budget import Budget
from accel.greedy.losses import Losses
from accel.greedy.measure import CHECKS, CONFIRMATIONS
from accel.greedy.table import DENSE, Table
from accel.profiling.latency import Timing
from accel.profiling.sides import FORMATS
from accel.tests.greedy.small_search import HALF, QUARTER, TABLE, find


def six_layers():
    """A network, and what each candidate of its layers costs."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))).eval()
    costs = {str(layer): {DENSE: 4.0 + layer, HALF: 2.5 + layer, QUARTER: 1.6 + layer} for layer in range(6)}
    return net, Table(costs, 1.0)


def clock(monkeypatch, table, timed):
    """Layers cost what the table says, whole networks are as fast as `timed` says."""
    monkeypatch.setattr(measure_module.Measurements, "_timed", timed)
    monkeypatch.setattr(measure_module.Measurements, "_time_dense", lambda _: {"dense_nchw": table.price({})})
    monkeypatch.setattr(measure_module, "time_layers", lambda *_: table)


def test_measured_networks_decide(net, pictures, monkeypatch):
    """A network that turns out slower than the table says makes the search go on."""
    asked = []

    def timed(self, state, repeats):
        asked.append(dict(state))
        return 0.8 * TABLE.price({}) / TABLE.price(state)

    monkeypatch.setattr(measure_module.Measurements, "_timed", timed)
    monkeypatch.setattr(measure_module.Measurements, "_time_dense", lambda _: {"dense_nchw": TABLE.price({})})
    monkeypatch.setattr(measure_module, "time_layers", lambda *_: TABLE)
    found = find(net, pictures, speedup=1.25, table=None)
    assert found.report.total["speedup"] >= 1.25 and found.chosen.speedup >= 1.25
    assert TABLE.price({}) / TABLE.price(found.chosen.state) >= 1.25 / 0.8
    assert len([state for state in asked if state]) >= 2


def test_the_original_is_timed_in_the_form_that_was_the_fastest(net, pictures, monkeypatch):
    """In both until one of them was so twice, and in both again at the end."""
    timed, both = [], [*FORMATS, "converted"]

    def compared(sides, repeats, **_):
        timed.append((repeats, [*sides]))
        ours = 10.0 if len(timed) == 1 else 7.5
        return {name: Timing((ours if name == "converted" else 9.0 + len(name) / 100,) * repeats) for name in sides}

    monkeypatch.setattr(measure_module.Measurements, "_time_dense", lambda _: dict.fromkeys(FORMATS, 1.0))
    monkeypatch.setattr(measure_module, "time_layers", lambda *_: TABLE)
    monkeypatch.setattr(measure_module, "compare", compared)
    find(net, pictures, speedup=1.15, table=None)
    assert len(timed) > 4 and timed[:2] == [(CHECKS, both)] * 2 and timed[-1] == (CONFIRMATIONS, both)
    assert {tuple(sides) for _, sides in timed[2:-1]} == {(min(FORMATS, key=len), "converted")}


def test_a_best_network_that_turns_out_too_slow_is_quickened(pictures, monkeypatch):
    """By what is known of single layers, before anything is looked at again."""
    net, table = six_layers()
    done, look = [], Losses.look
    monkeypatch.setattr(Losses, "look", lambda *given: done.append("look") or look(*given))

    def timed(self, state, repeats):
        done.append(repeats)
        return 1.15 if done.count(CONFIRMATIONS) == 1 and repeats > CHECKS else table.price({}) / table.price(state)

    clock(monkeypatch, table, timed)
    found = find(net, pictures, speedup=1.2, table=None)
    end = done[done.index(CONFIRMATIONS) :]
    assert "look" in done and end[:2] == [CONFIRMATIONS, CHECKS] and end.count(CONFIRMATIONS) > 1
    assert found.report.total["speedup"] >= 1.2 and any("quickened" in tried.origin for tried in found.tried)


def test_a_best_network_that_turns_out_faster_gives_back_what_it_can(pictures, monkeypatch):
    """Timed again at more than was asked for, it keeps more, by what is known of single layers."""
    net, table = six_layers()
    again = []

    def timed(self, state, repeats):
        if repeats > CHECKS:
            again.append(dict(state))
        return (1.15 if again else 1.0) * table.price({}) / table.price(state)

    clock(monkeypatch, table, timed)
    found = find(net, pictures, speedup=1.2, table=None)
    first, last = again[0], again[-1]
    assert table.price(last) > table.price(first) and any("adjusted" in tried.origin for tried in found.tried)
    assert found.report.total["speedup"] >= 1.2


def test_no_network_is_handed_out_that_was_not_timed_again(pictures, monkeypatch):
    """On the way every network looks a little faster than it is: what is found at the very end as well."""
    net, table = six_layers()
    again = []

    def timed(self, state, repeats):
        if repeats == CONFIRMATIONS:
            again.append(dict(state))
        return (1.0 if repeats == CONFIRMATIONS else 1.04) * table.price({}) / table.price(state)

    clock(monkeypatch, table, timed)
    found = find(net, pictures, speedup=1.2, table=None)
    assert dict(found.chosen.state) in again and found.chosen.speedup >= 1.2


def test_uniform_rules_have_their_share_of_the_time_that_a_table_left():
    seconds = [0.0]
    run = object.__new__(search_module._Search)
    run.budget = Budget(5, lambda: seconds[0])
    assert run._after(0.4) == 0.4
    seconds[0] = 75.0
    assert run._after(0.4) == pytest.approx(0.25 + 0.75 * 0.4)
    run.budget = Budget(None)
    assert run._after(0.4) == pytest.approx(0.4)

"""The time of a search: what a budget allows, and that a search keeps to it, by a clock that its loss turns."""

import time

import pytest
import torch
from torch import nn

import accel
from accel.errors import ConfigError, ConversionError
from accel.greedy import losses
from accel.greedy import search as search_module
from accel.greedy.budget import Budget, OutOfTime
from accel.greedy.record import Record, Target
from accel.nn.perforated import PerforatedConv2d


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_parts_end_before_the_whole():
    clock = Clock()
    budget = Budget(1, clock)
    with budget.until(0.5):
        assert budget.left == 30
        with budget.until(1.0, reserve=40):
            assert budget.left == 20
        clock.now = 31
        with pytest.raises(OutOfTime):
            budget.check()
        budget.check()
        raise AssertionError("the part has ended")
    assert budget.left == 29 and budget.spent == 31 and str(budget) == "0.5 of 1 min"
    budget.check(28)
    with pytest.raises(OutOfTime):
        budget.check(29)


def test_what_fits():
    clock = Clock()
    budget = Budget(1, clock)
    assert budget.repeats(10, 5) == 5 and budget.repeats(20, 5, least=2) == 3 and budget.repeats(60, 5, least=2) == 2
    done = []
    for item in budget.allows(range(9), least=2):
        clock.now += 25
        done.append(item)
    assert done == [0, 1]
    clock.now = 100
    assert list(budget.allows(range(9), least=2)) == [0, 1]
    assert Budget(None, clock).left == float("inf") and list(Budget(None, clock).allows(range(3), 1)) == [0, 1, 2]


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), True, "10"])
def test_no_time_at_all_is_refused(minutes):
    with pytest.raises(ConfigError, match="minutes is the time to search"):
        Budget(minutes)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def find(net, monkeypatch):
    """A search in which every measurement of a loss takes two seconds: (minutes, options) -> rules, seconds taken."""
    pictures = torch.randn(8, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)

    def slow_loss(outputs, batch):
        clock.now += 2.0
        return (outputs.square().sum((1, 2, 3)) - 1).abs().sum()

    def run(minutes, **options):
        begin = clock.now
        options = {"macs": 0.45, "loss": slow_loss, "pictures": 8, **options}
        found = accel.search(net, example_inputs=pictures[:4], calibration=[pictures], minutes=minutes, **options)
        return found, clock.now - begin

    return run


@pytest.mark.parametrize("minutes", [0.5, 1, 2, 5])
def test_a_search_keeps_to_its_time(find, minutes):
    found, seconds = find(minutes)
    assert seconds <= 1.1 * 60 * minutes
    assert found.report.total["cost"] <= 0.45 * found.report.total["dense_cost"]
    assert found.report.total["minutes"] == pytest.approx(seconds / 60, abs=1e-3)


def test_more_time_is_used_and_less_loses_little(find):
    tried, losses = [], []
    for minutes in (0.5, 1, 2, 5, None):
        found, _ = find(minutes)
        tried.append(len(found.tried))
        losses.append(found.report.total["loss"])
    assert tried == sorted(tried) and tried[0] < tried[2]
    assert losses[-1] <= losses[0] and losses[2] <= 1.1 * losses[-1] <= 1.1 * 1.02 * min(losses)


def test_time_is_kept_for_refitting_the_weights(net, find, monkeypatch):
    """However many exchanges there are to try: what they were tried with loses more than uniform rules refitted."""
    fit, fits = losses.fit_interpolation, []

    def slow_fit(network, *given, **options):
        made = [each.config for each in network.modules() if isinstance(each, PerforatedConv2d)]
        seconds = sum(5.0 if config.correct == "weights" else 1.0 for config in made if config.interpolate == "fitted")
        time.monotonic.now += seconds
        fits.append({config.correct for config in made if config.interpolate == "fitted"})
        return fit(network, *given, **options)

    monkeypatch.setattr(losses, "fit_interpolation", slow_fit)
    monkeypatch.setattr(search_module._Search, "_mix", lambda run: None)  # it would find what has no weights to refit
    _, seconds = find(0.5)
    assert seconds <= 33 and {"scale"} in fits and {"weights"} in fits


def test_minutes_are_those_of_the_call(find, tmp_path):
    """A search that resumes has its time anew, and starts from what was measured before."""
    first, _ = find(1, folder=tmp_path)
    again, seconds = find(1, folder=tmp_path)
    assert seconds <= 66 and len(again.tried) > len(first.tried)
    assert again.report.total["loss"] <= first.report.total["loss"]


def test_too_little_time_says_how_far_it_came(find):
    with pytest.raises(ConversionError, match=r"macs=0\.45 cannot be met: .*; give more minutes|no time to measure"):
        find(0.05, macs=0.45)
    assert Record(Target("speedup", 2.0)).best is None

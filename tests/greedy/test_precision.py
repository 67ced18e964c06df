"""A search among layers in eight bits."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.convert import convolutions
from accel.greedy.candidates import default_candidates, label_of, open_space
from accel.greedy.losses import Judge
from accel.greedy.table import DENSE, Table
from accel.inputs import as_batch
from accel.nn.quantized_linear import QuantizedLinear

WHOLE = Perforate(keep=1.0, mask="lattice", precision="int8")
HALF = Perforate(keep=0.5, mask="lattice", interpolate="fitted", correct="scale", precision="int8")
REFITTED = Perforate(keep=0.5, mask="lattice", interpolate="fitted", precision="int8")


@pytest.fixture(scope="module")
def net():
    """Its second convolution has too few MACs to be searched."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1, groups=16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def table_of(net, costs):
    """A table in which every layer that is searched has these costs."""
    return Table({name: dict(costs) for name in convolutions(net)}, rest=0.0)


def search(net, pictures, **options):
    return accel.search(net, example_inputs=pictures[:1], calibration=[pictures], minutes=None, **options)


def test_whole_layers_in_eight_bits_come_first_and_their_loss_counts(net, pictures):
    costs = {DENSE: 3.0, label_of(WHOLE): 1.0, label_of(HALF): 0.9, label_of(REFITTED): 0.9}
    found = search(net, pictures, speedup=2.5, candidates=[WHOLE, HALF, REFITTED], table=table_of(net, costs))
    assert found.chosen.kind == "whole" and {*found.values()} == {WHOLE}
    assert found.chosen.loss > 0  # measured, not taken for exact
    assert {row["precision"] for row in found.report.rows} == {"int8"}
    assert all("in eight bits" in row["note"] for row in found.report.rows if "MACs" not in row["note"])


def test_then_positions_are_left_out(net, pictures):
    found = search(net, pictures, macs=0.7, precision="int8")
    kept = {name: config.keep for name, config in found.items()}
    assert all(config.in_bytes for config in found.values()) and min(kept.values()) < 1
    assert kept["2"] == 1.0 and "too few to matter" in found.report.rows[1]["note"]
    fast = accel.convert_model(net, found, example_inputs=pictures[:1], calibration=[pictures])
    assert accel.count_macs(fast, pictures[:1]) <= 0.7 * accel.count_macs(net, pictures[:1])
    with torch.no_grad():
        assert (fast(pictures) - net(pictures)).square().mean() < 0.5 * net(pictures).var()


def test_a_layer_may_go_back_to_fp32(net, pictures):
    """Where it is eight bits that lose the most, and the target lets one layer be whole in fp32."""
    costs = {DENSE: 1.2, label_of(WHOLE): 1.0}
    found = search(net, pictures, speedup=1.1, candidates=[WHOLE], table=table_of(net, costs))
    start = next(tried for tried in found.tried if tried.kind == "whole")
    assert found.chosen.loss <= start.loss and found.chosen.speedup >= 1.1


def test_small_layers_that_eight_bits_make_slow_stay_in_fp32(net, pictures):
    costs = {DENSE: 3.0, label_of(WHOLE): 1.0}
    table = Table({**table_of(net, costs).costs, "2": {DENSE: 0.1, label_of(WHOLE): 0.2}}, rest=0.0)
    found = search(net, pictures, speedup=2.5, candidates=[WHOLE], table=table)
    assert {name: config is not None for name, config in found.items()} == {"0": True, "2": False, "4": True, "6": True}


@pytest.mark.parametrize("decided", [None, Perforate(keep=0.25, mask="lattice")])
def test_what_a_rule_says_of_a_small_layer_holds(net, pictures, decided):
    table = table_of(net, {DENSE: 3.0, label_of(WHOLE): 1.0, "lattice 0.25 nearest": 2.0})
    options = {"speedup": 1.3, "candidates": [WHOLE], "table": table, "rules": {"2": decided}}
    found = search(net, pictures, **options)
    assert found["2"] == decided and found["4"] == WHOLE
    assert found.report.rows[1]["note"] == "decided by a rule"


def test_a_target_of_a_rule_knows_the_precision(net, pictures):
    config = Perforate(macs=0.6, precision="int8")
    fast = accel.convert_model(net, config, example_inputs=pictures[:1], calibration=[pictures])
    assert all(layer.config.in_bytes for layer in convolutions(fast).values())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_networks_that_are_timed_run_before_anything_is_calibrated(net, pictures, precision):
    candidates = default_candidates(precision=precision)
    space = open_space(net, pictures[:1], [pictures], candidates, None, None)
    with torch.no_grad():
        for label in map(label_of, candidates):
            out = space.network(space.uniform(label))(pictures[:1])
            assert out.shape == (1, 4, 16, 16) and out.isfinite().all()


class Classifier(nn.Module):
    """A convolution, and two linear layers on its means."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 16, 5, padding=2), nn.Conv2d(16, 24, 3, padding=1)
        self.hidden, self.head = nn.Linear(24, 32), nn.Linear(32, 10)

    def forward(self, x):
        means = self.wide(self.conv(x).relu()).relu().mean((2, 3))
        return self.head(self.hidden(means).relu())


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier().eval()


def test_linear_layers_come_along(classifier, pictures):
    found = search(classifier, pictures, macs=0.7, precision="int8")
    assert [*found] == ["conv", "wide", "hidden", "head"] and all(config.in_bytes for config in found.values())
    assert found["hidden"].keep == found["head"].keep == 1
    notes = {row["layer"]: row["note"] for row in found.report.rows}
    assert "one position" in notes["hidden"] and "one position" in notes["head"]
    fast = accel.convert_model(classifier, found, example_inputs=pictures[:1], calibration=[pictures])
    assert type(fast.hidden) is type(fast.head) is QuantizedLinear
    judge = Judge(classifier(pictures[1::2]), as_batch(pictures[1::2]))
    refit = accel.convert_model(classifier, found, example_inputs=pictures[:1], calibration=[pictures[::2]])
    with torch.no_grad():
        assert judge.loss(refit(pictures[1::2])) == pytest.approx(found.chosen.loss, rel=1e-4), "what was measured"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"head": None}, {"hidden": WHOLE, "head": None}),
        ({"hidden": None, "head": HALF}, {"hidden": None, "head": WHOLE}),
        ({"h*": None}, {"hidden": None, "head": None}),
    ],
)
def test_what_a_rule_says_of_a_linear_layer_holds(classifier, pictures, rules, expected):
    found = search(classifier, pictures, macs=0.8, precision="int8", rules=rules)
    assert {name: found.get(name) for name in expected} == expected
    fast = accel.convert_model(classifier, found, example_inputs=pictures[:1], calibration=[pictures])
    kinds = {name: nn.Linear if config is None else QuantizedLinear for name, config in expected.items()}
    assert {name: type(fast.get_submodule(name)) for name in expected} == kinds


def test_in_fp32_linear_layers_are_in_bytes_by_a_rule_only(classifier, pictures):
    assert {*search(classifier, pictures, macs=0.7)} == {"conv", "wide"}
    found = search(classifier, pictures, macs=0.7, rules={"head": WHOLE})
    assert found["head"] == WHOLE and "hidden" not in found and not found["wide"].in_bytes


def test_linear_layers_that_eight_bits_make_slow_stay_in_fp32(classifier, pictures):
    costs, lazy = {DENSE: 3.0, label_of(WHOLE): 1.0}, {DENSE: 0.1, label_of(WHOLE): 0.2}
    table = Table({"conv": costs, "wide": costs, "hidden": costs, "head": lazy}, rest=0.0)
    found = search(classifier, pictures, speedup=2, candidates=[WHOLE], table=table)
    assert found["hidden"] == WHOLE and "head" not in found
    fast = accel.convert_model(classifier, found, example_inputs=pictures[:1], calibration=[pictures])
    assert type(fast.head) is nn.Linear


def test_a_target_of_a_rule_speaks_of_linear_layers_too(classifier, pictures):
    target = Perforate(macs=0.8, precision="int8")
    every, some, spared = (
        accel.convert_model(classifier, rules, example_inputs=pictures[:1], calibration=[pictures])
        for rules in (target, {"conv": None, "wide": target}, {"head": None, "*": target})
    )
    assert type(every.head) is type(every.hidden) is type(spared.hidden) is QuantizedLinear
    assert type(some.head) is type(some.hidden) is type(spared.head) is nn.Linear


def test_a_rule_may_speak_of_a_shared_layer_by_any_of_its_names(pictures):
    torch.manual_seed(0)
    net = Classifier().eval()
    net.again, net.twin = net.head, net.wide
    options = {"macs": 0.88, "precision": "int8", "rules": {"again": None, "twin": WHOLE}}
    found = search(net, pictures, **options)
    assert "head" not in found and found["wide"] == WHOLE and found["hidden"] == WHOLE
    rules = {"again": None, "twin": WHOLE, "*": Perforate(macs=0.88, precision="int8")}
    fast = accel.convert_model(net, rules, example_inputs=pictures[:1], calibration=[pictures])
    assert type(fast.head) is nn.Linear and type(fast.hidden) is QuantizedLinear and fast.wide.config == WHOLE

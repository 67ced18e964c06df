"""Searches that choose low ranks, shifted lattices and iterative impact, each where it is best."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.convert import perforated_layers
from accel.greedy import measure as measure_module
from accel.greedy.candidates import default_candidates, label_of, open_space
from accel.greedy.losses import Losses
from accel.greedy.table import DENSE, Table, _segments, time_layers
from accel.inputs import Batch, as_batch
from accel.low_rank import LowRankConv2d, ranks_of

LOW = Perforate(keep=1.0, mask="lattice", rank=1 / 3)
BOTH = Perforate(keep=0.5, mask="lattice", rank=1 / 3, interpolate="fitted", neighbors=4)
HALF = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)


class Net(nn.Module):
    """Its middle convolution has rank 3 exactly, the others have all of it."""

    def __init__(self, rank=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 8, 3, padding=1)
        with torch.no_grad():
            self.middle.weight.copy_((torch.randn(12, rank) @ torch.randn(rank, 108)).view(12, 12, 3, 3) / 12)

    def forward(self, x):
        return self.last(self.middle(self.first(x).relu()).relu())


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def search(net, pictures, **options):
    return accel.search(net, example_inputs=pictures[:1], calibration=[pictures], **options)


def loss_of(net, found, pictures):
    """On the other half of the pictures, of the network that the rules make of the first half."""
    fast = accel.convert_model(net, found, example_inputs=pictures[:1], calibration=[pictures[::2]])
    with torch.no_grad():
        return fast, float(F.mse_loss(fast(pictures[1::2]), net(pictures[1::2])))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_layer_of_low_rank_gets_it(net, pictures, precision, tmp_path):
    found = search(net, pictures, macs=0.7, precision=precision)
    ranks = {name: config and config.rank for name, config in found.items()}
    assert ranks["middle"] in (3, 4, 5, 6) and found["middle"].keep == 1 and ranks["first"] is None
    assert {row["layer"]: row["rank"] for row in found.report.rows} == ranks
    fast, loss = loss_of(net, found, pictures)
    assert loss == pytest.approx(found.report.total["loss"], rel=1e-2 if precision == "int8" else 1e-3, abs=1e-8)
    assert accel.count_macs(fast, pictures[:1]) <= 0.7 * accel.count_macs(net, pictures[:1])
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, Net().eval())
    dense = accel.revert_model(loaded)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), fast(pictures))
        lost = F.mse_loss(dense(pictures), net(pictures))
    assert ranks_of(dense)["middle"] == ranks["middle"] and not perforated_layers(dense)
    assert lost < 1e-6 or ranks["last"] is not None
    assert dict(accel.Rules.from_dict(accel.Rules(found).to_dict())) == dict(found)


def test_by_the_clock_it_is_taken_where_it_is_fast(net, pictures):
    """The written times decide: with low rank as slow as dense, positions are left out instead."""
    for low, wanted in ((2.0, LOW), (11.0, HALF)):
        row = {DENSE: 10.0, label_of(LOW): low, label_of(HALF): 5.0}
        slow = {**row, label_of(LOW): 11.0}
        table = Table({"middle": row, "first": slow, "last": slow}, 1.0)
        found = search(net, pictures, speedup=1.15, table=table, candidates=[LOW, HALF])
        taken = {name: config for name, config in found.items() if config is not None}
        if wanted is LOW:
            assert taken == {"middle": dataclasses.replace(LOW, rank=3)} and found.chosen.loss < 1e-6
        else:
            assert taken and {config.rank for config in taken.values()} == {None}


@pytest.mark.parametrize("config", [LOW, BOTH, dataclasses.replace(BOTH, precision="int8")], ids=label_of)
def test_a_look_and_a_whole_network_tell_what_a_conversion_loses(net, pictures, config):
    wide, label = Net(rank=8).eval(), label_of(config)
    space = open_space(wide, pictures[:1], [pictures], [config], None, None)
    losses = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=2)
    look = losses.look({}, {"middle": [label]})
    _, expected = loss_of(wide, {"middle": config}, pictures)
    assert losses.measure({"middle": label}).loss == pytest.approx(expected, rel=1e-3)
    assert look.extra["middle"][label] == pytest.approx(expected, rel=1e-3 if config is LOW else 0.1)
    after = losses.look({"middle": label}, {"last": [label]})
    assert after.loss == pytest.approx(look.extra["middle"][label], rel=1e-4)
    assert space.executed("middle", label) == config.keep * 3 * (108 + 12) / (108 * 12)
    assert losses.seconds({"middle": label}, {}) > 0 and "low rank" in losses._fit_seconds["look"]


class Aside(Net):
    """Its middle is for single pictures, and fits see several."""

    def forward(self, x):
        return self.last(self.first(x) if len(x) > 1 else self.middle(self.first(x)))


@pytest.mark.parametrize("config", [LOW, dataclasses.replace(BOTH, precision="int8")], ids=label_of)
@pytest.mark.parametrize("kind", [Aside, Net])
def test_pictures_that_tell_nothing_of_a_layer_tell_no_rank(pictures, kind, config):
    net, label = kind().eval(), label_of(config)
    with torch.no_grad():
        net.middle.weight.mul_(0 if kind is Net else 1)
    space = open_space(net, pictures[:1], [pictures], [config], None, None)
    losses = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=1)
    tells = kind is Net and config is LOW  # zeros have a rank, but no range
    assert (losses.measure({"middle": label}).loss < math.inf) == tells
    assert (losses.look({}, {"middle": [label]}).extra["middle"][label] < math.inf) == tells
    assert losses.measure({"first": label}).loss < math.inf


def test_the_time_of_both_convolutions_is_the_layers(net, pictures):
    space = open_space(net, pictures[:1], [pictures], [LOW, BOTH], None, None)
    label, batch = label_of(BOTH), as_batch(pictures[:1])
    network = space.network(space.uniform(label))
    assert isinstance(network.middle, LowRankConv2d)
    table = time_layers({DENSE: net, label: network}, {name: {label: label} for name in space.candidates}, batch)
    assert all(row[label] > 0 for row in table.costs.values())
    seen = _segments(network, [*space.candidates], batch)
    assert seen.keys() == {"", "first", "middle", "last"} and all(spent > 0 for spent in seen.values())


def test_a_model_that_asks_its_convolutions_for_more_is_searched_without(pictures):
    class Asks(Net):
        def forward(self, x):
            return super().forward(x.to(self.middle.weight.dtype))

    with pytest.warns(UserWarning, match="low ranks are no candidates"):
        found = search(Asks().eval(), pictures, macs=0.6)
    assert all(config is None or config.rank is None for config in found.values())


def test_a_rule_may_decide_a_rank(net, pictures):
    found = search(net, pictures, macs=0.7, candidates=[HALF], rules={"middle": LOW})
    assert found["middle"] == dataclasses.replace(LOW, rank=3)
    assert next(row["note"] for row in found.report.rows if row["layer"] == "middle") == "decided by a rule"


def test_the_default_candidates_can_win():
    low = [config for config in default_candidates() if config.rank is not None]
    assert low and all(config.rank <= 0.7 and config.mask == "lattice" for config in low)
    assert {config.shift for config in default_candidates() if config.keep == 0.25} == {0, 1}


def odd_rows(outputs, batch):
    """What is computed there is not lost."""
    return -outputs[:, :, 1::2].abs().sum()


def test_a_shifted_lattice_is_taken_where_it_is_best(pictures):
    """Only odd rows of the last layer count, and what is skipped is zero."""
    quarter = Perforate(keep=0.25, mask="lattice", interpolate="zero")
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    options = {"loss": odd_rows, "candidates": [quarter, dataclasses.replace(quarter, shift=1)], "macs": 0.25}
    with torch.no_grad():
        nn.init.zeros_(net[1].weight)
        nn.init.ones_(net[1].bias)
    found = search(net, pictures, **options)
    assert found["1"].shift == 1
    space = open_space(net, pictures[:1], [pictures], options["candidates"], None, None)
    plain, shifted = map(label_of, options["candidates"])
    assert space.alternating(shifted) == {"0": plain, "1": shifted}
    assert space.timed_as()["1"] == {plain: plain, shifted: plain}, "it takes no time of its own"


def test_iterative_impact_is_measured_after_the_layers_before(net, pictures):
    masks = [Perforate(keep=0.5, mask=mask) for mask in ("impact", "iterative_impact")]
    losses = {mask.mask: loss_of(net, mask, pictures)[1] for mask in masks}
    found = search(net, pictures, macs=0.51, candidates=masks)
    best = min(losses, key=losses.__getitem__)
    tried = {each.origin: each.loss for each in found.tried}
    assert found.report.total["loss"] <= tried[f"{best} 0.5 nearest everywhere"] * (1 + 1e-6)
    assert tried["impact 0.5 nearest everywhere"] != tried["iterative_impact 0.5 nearest everywhere"]
    space = open_space(net, pictures[:1], [pictures], masks, None, None)
    measured = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=2)
    state = space.uniform(label_of(masks[1]))
    assert measured.measure(state).loss == pytest.approx(tried["iterative_impact 0.5 nearest everywhere"], rel=1e-4)


def test_what_there_is_no_time_for_is_left_out(net, pictures, monkeypatch):
    """A table of all candidates takes longer than there is: the nearest to what is aimed at come first."""
    seen = []

    class Enough(Exception):
        pass

    def only(_, labels):
        seen.extend(labels)
        raise Enough

    monkeypatch.setattr(measure_module.Measurements, "_time_dense", lambda _: {"dense_nchw": 500.0})
    monkeypatch.setattr(measure_module.Space, "only", only)
    with pytest.raises(Enough):
        search(net, pictures, speedup=3.0, minutes=1)
    low = [label for label in seen if label.startswith("rank")]
    assert low and len(seen) < len(default_candidates()) and "lattice 1 nearest" in seen

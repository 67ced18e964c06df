"""The search: its steps against brute force, targets, resuming, and what it tells."""

import csv
import json

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.config import Rules
from accel.errors import ConfigError, ConversionError, DataError
from accel.greedy import descent as descent_module
from accel.greedy import measure as measure_module
from accel.greedy import search as search_module
from accel.greedy.losses import Losses
from accel.greedy.table import DENSE, Table, time_layers
from accel.greedy.uniform import uniform_rules
from accel.inputs import Batch
from accel.tests.greedy.small_search import CONFIGS, HALF, QUARTER, TABLE, find


def brute_force(losses: Losses, target: float) -> list[tuple[str, str]]:
    """The paper's search: in every step all candidate networks are measured whole (time by the table)."""
    state, steps = {}, []
    while TABLE.price({}) / TABLE.price(state) < target:
        costs = {}
        for name, row in TABLE.costs.items():
            for label in (HALF, QUARTER):
                after = {**state, name: label}
                if row[label] < row[state.get(name, DENSE)]:
                    saved = TABLE.price({}) - TABLE.price(after)
                    costs[name, label] = losses.look(after, {}).loss / saved if saved > 0 else float("inf")
        step = min(costs, key=costs.__getitem__)
        steps.append(step)
        state[step[0]] = step[1]
    return steps


def test_steps_are_those_of_brute_force(net, pictures, monkeypatch):
    monkeypatch.setattr(descent_module, "STEPS_PER_LAYER", 0)  # so that every estimate is a measurement
    found = find(net, pictures, speedup=1.7)
    space = search_module.open_space(net, pictures[:1], [pictures], CONFIGS, None, None)
    expected = brute_force(Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=1), 1.7)
    assert [(step.layer, step.label) for step in found.steps] == expected and len(expected) >= 2


def test_a_uniform_rule_is_mixed_with_one_that_there_was_no_time_to_measure(net, pictures, monkeypatch):
    def measure_one(run):
        run.uniform = uniform_rules(run.measured, 1.5)
        run.measured.tried(run.uniform[0].state, run.uniform[0].origin, "uniform")

    monkeypatch.setattr(search_module._Search, "_try_uniform", measure_one)
    found = find(net, pictures, speedup=1.5)
    mixed = [tried for tried in found.tried if tried.kind == "mixture"]
    assert [tried.kind for tried in found.tried].count("uniform") == 1
    assert mixed and all({*tried.state.values()} == {HALF, QUARTER} for tried in mixed)
    assert {tried.origin.split(", then ")[0] for tried in mixed} <= {
        f"first {each} everywhere" for each in (HALF, QUARTER)
    }
    assert all(tried.price <= TABLE.price({}) / 1.5 for tried in mixed)


def test_time_that_is_left_goes_to_a_mixture(net, pictures, monkeypatch):
    monkeypatch.setattr(search_module._Search, "_improve", lambda run, kept: None)
    assert "mixture" in {tried.kind for tried in find(net, pictures, speedup=1.5).tried}


def test_the_cost_is_relative_to_the_original(net, pictures):
    found = find(net, pictures, speedup=1.7)
    for step in found.steps:
        assert step.cost == pytest.approx(step.loss / (TABLE.price({}) - step.price))
        assert step.speedup == pytest.approx(TABLE.price({}) / step.price)
    assert found.steps[-1].speedup >= 1.7 > found.steps[-2].speedup


def test_a_layer_slower_than_dense_stays_dense_and_says_so(net, pictures):
    found = find(net, pictures, speedup=1.7)
    assert found["4"] is None and found["2"] is not None
    note = next(row["note"] for row in found.report.rows if row["layer"] == "4")
    assert note.startswith("slower than dense") and "2.1" in note


def test_a_sensitive_layer_says_so(net, pictures):
    found = find(net, pictures, speedup=1.05)
    dense = [row for row in found.report.rows if row["keep"] == 1 and row["layer"] != "4"]
    assert dense and all(row["note"].startswith("too sensitive") for row in dense)


def test_a_target_out_of_reach_is_refused(net, pictures):
    with pytest.raises(ConversionError, match=r"speedup=5 cannot be met: .* 1/1\.76.*, search with precision=int8"):
        find(net, pictures, speedup=5)


def test_macs_need_no_clock(net, pictures):
    found = find(net, pictures, macs=0.6, table=None)
    fast = accel.convert_model(net, found, example_inputs=pictures[:1])
    share = accel.count_macs(fast, pictures) / accel.count_macs(net, pictures)
    assert share <= 0.6 and found.report.total["cost"] / found.report.total["dense_cost"] == pytest.approx(share)


def test_max_drop_is_kept(net, pictures):
    losses = {}
    for limit in (0.05, 0.1):
        found = find(net, pictures, max_drop=limit)
        fast = accel.convert_model(net, found, example_inputs=pictures[:1])
        with torch.no_grad():
            losses[limit] = float((fast(pictures) - net(pictures)).abs().mean())
        assert losses[limit] == pytest.approx(found.report.total["drop"], rel=1e-4) and losses[limit] <= limit
    assert 0 < losses[0.05] < losses[0.1]


def test_rules_decide_first(net, pictures):
    found = find(net, pictures, macs=0.75, table=None, rules={"0": None, "4": Perforate(keep=0.5, mask="uniform")})
    assert found["0"] is None and found["4"].mask == "uniform" and found["2"].keep < 1
    with pytest.raises(ConfigError, match="matches no convolution"):
        find(net, pictures, macs=0.75, table=None, rules={"7": None})


def test_candidates_may_correct_the_weights(net):
    pictures = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    both = [
        Perforate(keep=0.5, mask="lattice", interpolate="fitted", correct=correct) for correct in ("scale", "weights")
    ]
    space = search_module.open_space(net, pictures[:1], [pictures], both, None, None)
    losses = Losses(space.model, space.candidates, Batch((pictures,)), None, 1)
    lost = []
    for label in ("lattice 0.5 fitted 12", "lattice 0.5 fitted 12 weights"):
        state = dict.fromkeys(("0", "2"), label)
        assert not any(type(space.network(state)[int(name)]) is nn.Conv2d for name in state)  # what is timed, unfitted
        lost.append(losses.look(state, {}).loss)
    assert lost[0] > lost[1] > 0


@pytest.mark.parametrize(("given", "judged"), [(4, 2), (24, 18), (40, 22)])
def test_whole_networks_are_judged_on_as_many_more_pictures_as_there_are(net, given, judged, monkeypatch):
    monkeypatch.setattr(measure_module, "_PICTURES", (12, 16))
    fitted = [Perforate(keep=0.5, mask="lattice", interpolate=fill) for fill in ("nearest", "fitted")]
    monkeypatch.setattr(measure_module.Measurements, "_affordable", lambda run: 12)
    x, sizes = torch.randn(given, 3, 12, 12, generator=torch.Generator().manual_seed(1)), set()

    def loss(outputs, batch):
        sizes.add(len(outputs))
        return outputs.square().sum() / outputs[0].numel()

    accel.search(net, example_inputs=x[:1], calibration=[x[:2], x[2:]], macs=0.6, candidates=fitted, loss=loss)
    assert sizes == {min(6, judged), judged}


def test_calibration_data_may_go_on_with_pictures_of_another_size(net, monkeypatch):
    monkeypatch.setattr(measure_module.Measurements, "_affordable", lambda run: 8)
    x, wide = torch.randn(8, 3, 12, 12), torch.randn(8, 3, 12, 16)
    found = accel.search(net, example_inputs=x[:1], calibration=[x, wide], macs=0.6, candidates=CONFIGS)
    assert found.report.total["loss"] > 0


def test_an_interrupted_search_goes_on(net, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(descent_module, "STEPS_PER_LAYER", 0)
    whole = find(net, pictures, speedup=1.7)
    looks = 0
    look = Losses.look

    def counted(self, *args):
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt
        return look(self, *args)

    monkeypatch.setattr(Losses, "look", counted)
    with pytest.raises(KeyboardInterrupt):
        find(net, pictures, speedup=1.7, folder=tmp_path)
    first, looks = looks, 3
    resumed = find(net, pictures, speedup=1.7, folder=tmp_path)
    total = looks - 3 + first - 1
    assert dict(resumed) == dict(whole) and resumed.steps == whole.steps
    looks = 3
    assert dict(find(net, pictures, speedup=1.7, folder=tmp_path)) == dict(whole)
    assert looks == 3 < total + 3  # the third time everything was there


def test_a_journal_of_another_search_is_refused(net, pictures, tmp_path):
    find(net, pictures, speedup=1.1, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"journal\.json belongs to another search \(candidates differ\)"):
        find(net, pictures, speedup=1.1, folder=tmp_path, candidates=CONFIGS[:1])
    with pytest.raises(ConfigError, match="calibration differ"):
        find(net, pictures.flip(0), speedup=1.1, folder=tmp_path)
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(ConfigError, match="is no journal of a search"):
        find(net, pictures, speedup=1.1, folder=tmp_path)


def test_what_the_folder_holds(net, pictures, tmp_path):
    found = find(net, pictures, speedup=1.7, folder=tmp_path / "new")
    read = Rules.from_dict(json.loads((tmp_path / "new" / "rules.json").read_text()))
    assert dict(read) == dict(found)
    rows = list(csv.DictReader((tmp_path / "new" / "trace.csv").open()))
    assert [(row["layer"], row["label"]) for row in rows] == [(step.layer, step.label) for step in found.steps]
    assert (tmp_path / "new" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "new" / "report.json").read_text())["total"]["drop"] > 0
    assert not list(tmp_path.glob("new/.*.partial"))


def test_a_folder_that_cannot_be_written(net, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        find(net, pictures, speedup=1.1, folder=tmp_path / "file")


def test_convert_model_searches(net, pictures):
    rules = {"0": None, "*": Perforate(macs=0.6)}
    fast = accel.convert_model(net, rules, example_inputs=pictures[:1], calibration=[pictures])
    assert type(fast[0]) is nn.Conv2d
    assert accel.count_macs(fast, pictures) <= 0.6 * accel.count_macs(net, pictures)
    with pytest.raises(ConfigError, match="macs is searched for on real inputs"):
        accel.convert_model(net, Perforate(macs=0.6), example_inputs=pictures[:1])
    with pytest.raises(ConversionError, match=r"macs=1 is best met by the model as it is"):
        accel.convert_model(net, Perforate(macs=1.0), example_inputs=pictures[:1], calibration=[pictures])
    with pytest.raises(ConfigError, match="give one"):
        both = {"0": Perforate(macs=0.6), "2": Perforate(speedup=2)}
        accel.convert_model(net, both, example_inputs=pictures[:1], calibration=[pictures])


def test_layer_times_add_up_to_the_time_of_the_whole(net, monkeypatch):
    """Every layer gets the time from its start to the start of the next; a clock that ticks once per reading."""
    from accel.greedy import table as table_module

    ticks = iter(range(10_000))
    monkeypatch.setattr(table_module, "_now_ms", lambda: float(next(ticks) ** 2))
    # second run: readings 6..11 are thrown away before, begin, layers 0, 2, 4, end
    monkeypatch.setattr(table_module, "_whole_ms", lambda networks, *_: {DENSE: 3 * (11.0**2 - 7.0**2)})
    found = time_layers({DENSE: net}, {"0": {}, "2": {}}, Batch((torch.zeros(1, 3, 8, 8),)), range(2))
    assert found.costs == {"0": {DENSE: 3 * (9.0**2 - 8.0**2)}, "2": {DENSE: 3 * (10.0**2 - 9.0**2)}}
    assert found.rest == 3 * ((8.0**2 - 7.0**2) + (11.0**2 - 10.0**2))


def test_a_table_survives_json_and_must_fit(net, pictures):
    assert Table.from_dict(json.loads(json.dumps(TABLE.to_dict()))) == TABLE
    with pytest.raises(ConfigError, match="no table of a search"):
        Table.from_dict({"costs": 3})
    short = Table({name: row for name, row in TABLE.costs.items() if name != "2"}, 0.0)
    with pytest.raises(ConfigError, match="no cost of layer '2' under 'dense'"):
        find(net, pictures, speedup=1.5, table=short)


def test_no_drop_at_all_with_one_candidate(net, pictures):
    """The dense network is the answer, and its time is known too."""
    found = accel.search(
        net, example_inputs=pictures[:1], calibration=[pictures], max_drop=0, candidates=[Perforate(keep=0.5)]
    )
    assert set(found.values()) == {None} and found.report.total["drop"] == 0 and found.report.total["speedup"] > 0
    found = find(net, pictures, max_drop=0, candidates=CONFIGS[:1])
    assert set(found.values()) == {None} and found.report.total["cost"] == found.report.total["dense_cost"]


@pytest.mark.parametrize("target", [{"speedup": 1}, {"macs": 1}])
def test_a_target_that_is_met_leaves_layers_dense_and_says_so(net, pictures, target):
    found = find(net, pictures, **target, table=None if "macs" in target else TABLE)
    assert set(found.values()) == {None} and not found.steps and found.chosen.kind == "whole"
    notes = {row["layer"]: row["note"] for row in found.report.rows}
    assert notes["2"] == "not needed: the target is met with every position"


def test_a_target_met_by_fusion_alone(net, pictures, monkeypatch):
    """The times of the layers are those of the converted network without a candidate: they add up."""
    monkeypatch.setattr(measure_module.Measurements, "_timed", lambda *_: 1.5)
    found = find(net, pictures, speedup=1.4, table=None)
    assert found.report.total["speedup"] == 1.5 and found.chosen.kind == "whole"
    assert all("too sensitive" not in row["note"] for row in found.report.rows)


def uniform_losses(net, pictures, configs, target):
    """label -> the loss of every uniform rule that meets the target by the table."""
    space = search_module.open_space(net, pictures[:1], [pictures], configs, None, None)
    losses = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=4)
    table, found = space.mac_table(), {}
    for label in dict.fromkeys(label for row in space.candidates.values() for label in row):
        for without in ((), ("0",), ("0", "4")):
            state = dict.fromkeys(without, DENSE)
            state = {name: other for name, other in {**space.uniform(label), **state}.items() if other != DENSE}
            if table.price(state) <= target * table.price({}):
                found[label, without] = losses.look(state, {}).loss
    return found


@pytest.mark.parametrize("macs", [0.3, 0.55, 0.7])
def test_never_worse_than_a_uniform_rule(net, pictures, macs):
    found = find(net, pictures, macs=macs, table=None, candidates=None)
    rivals = uniform_losses(net, pictures, search_module.default_candidates(), macs)
    assert rivals and found.report.total["loss"] <= min(rivals.values()) * (1 + 1e-5)
    assert found.chosen.loss == min(tried.loss for tried in found.tried if tried.speedup >= 1 / macs * (1 - 1e-9))
    assert {tried.kind for tried in found.tried} >= {"whole", "uniform"}


def test_refitted_weights_are_candidates(net):
    pictures = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    found = find(net, pictures, macs=0.5, table=None, candidates=None)
    assert any(config is not None and config.correct == "weights" for config in found.values())
    assert dict(find(net, pictures, macs=0.5, table=None, candidates=None)) == dict(found)  # and it is deterministic


def test_what_is_handed_out_is_what_was_measured(net, pictures):
    found = find(net, pictures, macs=0.5, table=None, candidates=None)
    fast = accel.convert_model(net, found, example_inputs=pictures[:1], calibration=[pictures[::2]])
    with torch.no_grad():
        loss = float((fast(pictures[1::2]) - net(pictures[1::2])).square().mean())
    assert loss == pytest.approx(found.report.total["loss"], rel=1e-3)


@pytest.mark.parametrize("output", ["dict", "list", "column"])
def test_outputs_of_every_form(net, pictures, output):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            out = self.net(x)
            return {
                "dict": {"a": out, "b": out.mean((2, 3))},
                "list": [out, 3],
                "column": out.mean((1, 2, 3))[:, None],
            }[output]

    found = find(Wrapped().eval(), pictures, macs=0.7, table=None)
    assert found.report.total["loss"] > 0  # of one column a softmax would never tell a difference


def test_losses_that_are_no_numbers(net, pictures):
    with pytest.raises(DataError, match="loss of the dense network is inf"):
        find(net, pictures, macs=0.7, table=None, loss=lambda outputs, _: outputs.sum() * float("nan"))
    with torch.no_grad():
        dense = net(pictures)

    def only_dense(outputs, batch):
        return outputs.sum() * (0.0 if torch.allclose(outputs, dense, atol=1e-6) else float("nan"))

    with pytest.raises(ConversionError, match=r"macs=0\.7 cannot be met: .* at a loss of inf"):
        find(net, pictures, macs=0.7, table=None, loss=only_dense)
    found = find(net, pictures, max_drop=1.0, table=None, loss=only_dense)
    assert set(found.values()) == {None}


def test_a_constant_loss_still_meets_the_target(net, pictures):
    found = find(net, pictures, macs=0.6, table=None, loss=lambda outputs, _: outputs.sum() * 0)
    assert found.report.total["loss"] == 0 and found.report.total["cost"] <= 0.6 * found.report.total["dense_cost"]

"""Tables: the numbers add up, and every format holds them."""

import csv
import io
import json
import time

import pytest
import torch
from torch import nn

import accel
from accel import Perforate, Rules
from accel.errors import ConfigError
from accel.fills.sums import nearest_fit
from accel.profiling.grouping import grouped, tree
from accel.profiling.layers import Plan, plan_of
from accel.profiling.peaks import Peaks
from accel.profiling.sides import fastest_form
from accel.reports.tables import Report, show_macs
from accel.running import record_calls
from accel.zoo.registry import get_model


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 64, 5))
    x = torch.randn(2, 3, 12, 12)
    return dense, accel.convert_model(dense, Rules({"0": None, "2": Perforate(keep=0.25)}), example_inputs=x), x


def test_profile_of_both_sides(nets):
    dense, fast, x = nets
    forward = dict(fast[2].__dict__)
    profile = accel.profile(fast, x, baseline=dense, repeats=2)
    rows = {row["layer"]: row for row in profile.rows}
    assert list(rows) == ["0", "2", "4", "everything else"]
    assert rows["2"]["dense_macs"] == 4 * rows["2"]["executed_macs"] == 2 * 64 * 8 * 72
    assert rows["2"]["keep"] == 0.25 and rows["0"]["keep"] is None
    for key in ("ms", "baseline_ms"):
        assert all(rows[name][key] > 0 for name in "024")
        assert sum(row[key] for row in profile.rows) == pytest.approx(profile.total[key])
    assert all(row[key] is None or row[key] >= 0 for row in profile.rows for key in ("ms", "baseline_ms"))
    assert profile.total["baseline_format"] in ("nchw", "channels_last")
    assert f"beside its dense form in {profile.total['baseline_format']}" in profile.title
    assert rows["2"]["speedup"] == rows["2"]["baseline_ms"] / rows["2"]["ms"]
    assert profile.total["executed_macs"] == accel.count_macs(fast, x)
    assert profile.total["baseline_peak_bytes"] == 2 * 2 * 8 * 10 * 10 * 4  # the first map, and its activation
    assert 0 < profile.total["peak_bytes"] <= profile.total["baseline_peak_bytes"]
    assert "activations take at most" in profile.title
    assert fast[2].__dict__ == forward and "forward" not in dense[0].__dict__


def test_what_follows_from_counts_and_times(nets):
    dense, fast, x = nets
    profile = accel.profile(fast, x, baseline=dense, repeats=2)
    rows = {row["layer"]: row for row in profile.rows}
    assert [rows[name]["parameters"] for name in "024"] == [8 * 28, 8 * 73, 5 * 513]
    assert rows["everything else"]["parameters"] == 0
    assert profile.total["parameters"] == sum(each.numel() for each in fast.parameters())
    assert sum(row["share"] for row in profile.rows) == pytest.approx(1)
    assert rows["2"]["gops"] == pytest.approx(2 * rows["2"]["executed_macs"] / (1e6 * rows["2"]["ms"]))
    assert rows["everything else"]["gops"] is None
    assert rows["2"]["bytes"] == 4 * (2 * 8 * 100 + 2 * 8 * 64 + 8 * 73)  # in, out, parameters
    assert [rows[name]["op"] for name in "024"] == ["3x3 convolution", "3x3 convolution", "linear"]


def test_parameters_belong_to_the_innermost_layer():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.conv, self.norm = nn.Parameter(torch.ones(3, 3)), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return nn.functional.linear(self.norm(self.conv(x)).mean((2, 3)), self.scale)

    profile = accel.profile(nn.Sequential(Scaled(), nn.Linear(3, 2)), torch.randn(1, 3, 4, 4), repeats=1)
    found = {row["layer"]: row["parameters"] for row in profile.rows}
    assert found == {
        "0.conv": 12,
        "0": 9 + 6,
        "1": 8,
        "everything else": 0,
    }  # the norm is in no other layer that counts


def test_rows_stand_for_groups(nets):
    dense, fast, x = nets
    profile = accel.profile(fast, x, baseline=dense, repeats=2)
    ops = {row["layer"]: row for row in grouped(profile, "op").rows}
    assert list(ops) == ["3x3 convolution", "linear", "everything else"]
    both, single = ops["3x3 convolution"], [row for row in profile.rows if row["layer"] in "02"]
    for key in ("parameters", "dense_macs", "executed_macs", "ms", "baseline_ms", "bytes"):
        assert both[key] == pytest.approx(sum(row[key] for row in single))
    assert both["keep"] == both["executed_macs"] / both["dense_macs"] and both["shape"] == "2 layers"
    assert both["speedup"] == both["baseline_ms"] / both["ms"] and both["note"] is None
    assert [row.get("precision") for row in profile.rows] == ["fp32", "fp32", "fp32", None]
    assert both["precision"] == "fp32"
    nested = nn.Sequential(dense, nn.Linear(5, 5))
    deep = accel.profile(nested, x, repeats=1)
    assert [row["layer"] for row in grouped(deep, "stage").rows] == ["0", "1", "everything else"]
    assert [row["layer"] for row in grouped(deep, depth=2).rows] == ["0.0", "0.2", "0.4", "1", "everything else"]
    assert [row["layer"] for row in grouped(deep).rows] == [row["layer"] for row in deep.rows]
    with pytest.raises(ConfigError, match="by layer, op, stage, got 'kind'"):
        grouped(deep, "kind")
    with pytest.raises(ConfigError, match="at least 1, got 2 by op"):
        grouped(deep, "op", 2)


def test_a_tree_has_a_row_for_whatever_holds_several_layers():
    def pair(*inside):
        return nn.Sequential(nn.Conv2d(3, 3, 1), *inside)

    class Own(nn.Sequential):
        def forward(self, x):
            return nn.functional.conv2d(super().forward(x), self[0].weight)

    net, x = nn.Sequential(nn.Sequential(pair(pair(), Own(nn.Conv2d(3, 3, 1)))), pair()), torch.randn(2, 3, 4, 4)
    profile = accel.profile(net, x, repeats=3)
    shown = {row["layer"]: row for row in tree(profile).rows}
    assert list(shown) == [
        "0.0",
        "  0.0.0",
        "  0.0.1.0",
        "  0.0.2",
        "    0.0.2, itself",
        "    0.0.2.0",
        "1.0",
        "everything else",
    ]
    assert shown["0.0"]["shape"] == "4 layers" and shown["0.0"]["executed_macs"] == 4 * 2 * 16 * 9
    inside = [row for row in profile.rows if row["layer"].startswith("0.0")]
    assert shown["0.0"]["ms"] == pytest.approx(sum(row["ms"] for row in inside))
    sums = [sum(each) for each in zip(*(row["samples_ms"] for row in inside))]
    assert shown["0.0"]["samples_ms"] == pytest.approx(sums)
    assert min(sums) <= shown["0.0"]["q10_ms"] <= shown["0.0"]["q90_ms"] <= max(sums)
    assert [row["layer"] for row in tree(profile, 2).rows] == ["0.0", "1.0", "everything else"]


def test_shares_of_what_the_machine_reaches(nets):
    dense, fast, x = nets
    profile = accel.profile(fast, x, baseline=dense, repeats=3, peaks=Peaks({"fp32": 50.0}, 10.0))
    for row in profile.rows[:-1]:
        assert row["of_peak"] == row["gops"] / 50 and row["q10_ms"] <= row["ms"] <= row["q90_ms"]
    assert profile.total["of_peak"] == profile.total["gops"] / 50 and profile.rows[-1]["of_peak"] is None
    assert [row["activations"] for row in profile.rows] == [4 * 2 * 8 * 100, 4 * 2 * 8 * 64, 4 * 2 * 5, None]
    assert accel.profile(fast, x, repeats=1).total["of_peak"] is None
    for report in (grouped(profile), tree(profile)):  # empty columns are not shown, and a page's width is kept
        assert "note" not in report.cells()[0] and max(map(len, str(report).splitlines())) <= 160


def test_times_within_others_count_once_and_nothing_is_negative():
    class Slow(nn.Conv2d):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.inner = nn.Parameter(torch.randn(3, 3, 1, 1)), Slow(3, 3, 1)

        def forward(self, x):
            return nn.functional.conv2d(self.inner(x), self.weight)

    model = nn.Sequential(Outer(), nn.Sequential(nn.Conv2d(3, 3, 1)))
    profile = accel.profile(model, torch.zeros(1, 3, 4, 4), repeats=3)
    rows = {row["layer"]: row["ms"] for row in profile.rows}
    assert list(rows) == ["0.inner", "0", "1.0", "everything else"]
    assert rows["0"] < rows["0.inner"] > 10 and sum(rows.values()) == pytest.approx(profile.total["ms"])
    assert min(rows.values()) >= 0


def test_a_dense_form_that_cannot_run_is_left_out():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    dense, x = Views(), torch.randn(1, 3, 8, 8)
    form, side = fastest_form(dense, x)
    assert form == "nchw"
    with torch.inference_mode():
        assert torch.equal(side(), dense(x))


def test_what_could_not_be_counted_stands_in_the_title():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pair = nn.Conv2d(3, 4, 3), nn.Bilinear(4, 4, 2)

        def forward(self, x):
            rows = self.conv(x).mean((2, 3))
            return self.pair(rows, rows)

    x = torch.randn(1, 3, 8, 8)
    profile = accel.profile(Net(), x, repeats=1)
    assert "NOT COUNTED: aten.bilinear in pair" in profile.title
    rows = {row["layer"]: row for row in profile.rows}
    assert rows["pair"]["executed_macs"] is rows["pair"]["dense_macs"] is None  # unknown, which is not 0
    assert rows["pair"]["note"] == "not counted: aten.bilinear" and profile.total["executed_macs"] == 36 * 4 * 27
    assert grouped(profile, "stage").rows[1]["note"] == tree(profile).rows[1]["note"] == rows["pair"]["note"]
    assert "NOT COUNTED: aten.bilinear in pair" in str(
        accel.plan_conversion(Net(), Perforate(keep=0.5), example_inputs=x)
    )


def test_a_network_that_is_adaptive_has_a_profile():
    model = get_model("zoo:resnet32_cifar_sact")
    profile = accel.profile(model, torch.randn(2, 3, 32, 32), baseline=accel.revert_model(model), repeats=1)
    rows = {row["layer"]: row for row in profile.rows}
    assert rows["layer1"]["keep"] == rows["layer1"]["executed_macs"] / rows["layer1"]["dense_macs"]
    assert all(row["ms"] is None or row["ms"] >= 0 for row in profile.rows)


def test_profile_of_one_side_has_no_baseline(nets):
    profile = accel.profile(nets[0], nets[2], repeats=1)
    assert all(row.get("baseline_ms") is None and row["speedup"] is None for row in profile.rows)
    assert profile.total["dense_macs"] == profile.total["executed_macs"]


def test_every_format_holds_every_row(nets):
    dense, _, x = nets
    plan = accel.plan_conversion(dense, Perforate(keep=0.25, mask="lattice"), example_inputs=x)
    text = str(plan)
    assert max(map(len, text.splitlines())) <= 160
    assert all(word in text for word in ("dense MACs", "lattice", "3x3 3>8", "512>5", "total"))
    table = list(csv.DictReader(io.StringIO(plan.to_csv())))
    assert [row["layer"] for row in table] == ["0", "2", "4"]
    assert [int(row["executed_macs"]) for row in table] == [row["executed_macs"] for row in plan.rows]
    data = json.loads(plan.to_json())
    assert data["rows"] == plan.rows and data["total"] == plan.total
    lines = plan.to_markdown().splitlines()
    assert len(lines) == 2 + len(plan.rows) + 1 and len({line.count(" | ") for line in lines}) == 1


def test_cells_may_hold_anything():
    class Table(Report):
        columns = Plan.columns[:1]

    table = Table("title", [{"layer": "a|b"}, {"layer": None}], {"layer": "total"})
    assert "a\\|b" in table.to_markdown() and "a|b" in str(table)


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (999, "999"), (1000, "1 k"), (12_345_678, "12.3 M"), (1.81e9, "1.81 G"), (1e15, "1e+03 T")],
)
def test_macs_are_printed_with_three_digits(value, text):
    assert show_macs(value) == text


def test_a_report_says_where_nearest_filling_stood_in_for_a_fit():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)).eval(),
        torch.randn(4, 3, 8, 8),
    )
    config = Perforate(keep=0.5, mask="lattice", interpolate="fitted")
    fast = accel.convert_model(model, config, example_inputs=x, calibration=[x])
    fast[0].set_fit(fast[0].fit.with_nearest(torch.tensor([True, False, False, True])))
    fast[1].set_fit(nearest_fit(4))
    for report in (plan_of(fast, x, record_calls(fast, dict(fast.named_children()), x), {}), accel.profile(fast, x)):
        notes = [row["note"] for row in report.rows[:2]]
        assert "nearest in 2 of 4 channels" in notes[0] and "nearest in 4 of 4 channels" in notes[1]
        assert "nearest in 2 of 4 channels" in str(report)
    plan = accel.plan_conversion(model, Perforate(keep=0.5), example_inputs=x)
    assert not any("channels" in (row["note"] or "") for row in plan.rows)

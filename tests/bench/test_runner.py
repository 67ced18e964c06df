"""The bench frame: case files, correctness before the clock, saved rows, bars."""

import json
import types

import pytest

from accel.bench import runner as bench
from accel.cli import main
from accel.errors import ConfigError

NEAREST = """
kind = "nearest"
[[case]]
name = "small"
height = 16
width = 24
keep = 0.5
mask = "uniform"
[[case]]
name = "other"
height = 9
width = 9
keep = 0.25
mask = "grid"
[[bar]]
column = "seconds"
at_most = 1.0
"""


@pytest.fixture
def case_file(tmp_path):
    path = tmp_path / "nearest.toml"
    path.write_text(NEAREST)
    return path


def test_rows_are_measured_printed_and_saved(case_file, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    argv = ["bench", str(case_file), "--quick", "--output", str(output), "--format", "json"]
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert [(row["case"], row["kept"], row["correct"]) for row in printed] == [
        ("small", 192, True),
        ("other", 16, True),
    ]
    assert all(0 < row["seconds"] < 60 for row in printed)
    assert "bar seconds: reached, 2 of 2 rows at most 1.0" in captured.err

    assert main.main([*argv, "--only", "other", "--seed", "5"]) == 0
    saved = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["case"], row["seed"], row["kind"]) for row in saved] == [
        ("small", 0, "nearest"),
        ("other", 0, "nearest"),
        ("other", 5, "nearest"),
    ]
    assert all(row["machine"] and row["schema"] == bench.ROW_SCHEMA for row in saved)


def test_a_wrong_side_fails_the_run(case_file, monkeypatch, capsys):
    kind = types.SimpleNamespace(rows=lambda case, settings: [{"error": 0.25, "correct": case["name"] == "other"}])
    monkeypatch.setattr(bench, "load_kind", lambda name: kind)
    assert main.main(["bench", str(case_file)]) == 1
    assert "wrong result in small: error 0.25, nothing was timed" in capsys.readouterr().err


def test_a_grid_runs_every_case_with_each_combination(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(NEAREST.replace("[[case]]", "[grid]\nkeep = [0.5, 1.0]\nseed = [3, 4]\n[[case]]", 1))
    cases = bench.read_cases(path)["case"]
    assert [one["name"] for one in cases[:3]] == ["small, 0.5, 3", "other, 0.5, 3", "small, 0.5, 4"]
    assert len(cases) == 8 and [one["seed"] for one in cases] == [3, 3, 4, 4] * 2
    assert cases[5]["keep"] == 0.25  # the case's own key wins
    assert [one["name"] for one in bench.read_cases(path, "other, 1.0, 4")["case"]] == ["other, 1.0, 4"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "kind = None"),
        ('kind = "dance"', "kind = 'dance'"),
        ('kind = "nearest"', r"needs \[\[case\]\]"),
        ('kind = "nearest"\n[[case]]\nheight = 3', "each with a name"),
    ],
)
def test_bad_case_files(tmp_path, text, complaint):
    path = tmp_path / "cases.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        bench.read_cases(path)


def test_an_unknown_case_name(case_file):
    with pytest.raises(ConfigError, match="no case 'big', only small, other"):
        bench.read_cases(case_file, "big")


def test_bars_judge_rows():
    rows = [{"speedup": value, "keep": keep} for value, keep in [(1.0, 0.5), (1.5, 0.5), (4.0, 0.25)]]
    assert bench.judge({"column": "speedup", "at_least": 1.2, "where": {"keep": 0.5}}, rows).startswith(
        "bar speedup, keep 0.5: MISSED, 1 of 2 rows at least 1.2 (wanted 2), worst 1"
    )
    assert "reached, 2 of 3 rows" in bench.judge({"column": "speedup", "at_least": 1.2, "count": 2}, rows)
    assert "reached, 3 of 3 rows at most 4.0" in bench.judge({"column": "speedup", "at_most": 4.0}, rows)
    assert "reached, geometric mean of 3 rows 1.817" in bench.judge(
        {"column": "speedup", "at_least": 1.8, "mean": "geometric"}, rows
    )
    assert bench.judge({"column": "ms", "at_least": 1.0}, rows) == "bar ms: not measured"


def test_the_case_files_of_the_project_are_sound():
    folder = bench.pathlib.Path(__file__).resolve().parents[2] / "profiles" / "cases"
    files = sorted(folder.glob("*.toml"))
    assert files
    for path in files:
        assert bench.read_cases(path)["case"]


def test_missing_keys_of_a_case_are_those_of_every(tmp_path):
    path = tmp_path / "cases.toml"
    path.write_text('kind = "nearest"\n[every]\nkeep = 0.5\nmask = "grid"\n[[case]]\nname = "a"\nkeep = 0.25\n')
    assert bench.read_cases(path)["case"] == [{"name": "a", "keep": 0.25, "mask": "grid"}]

"""Sequence tasks by repeats: trained once, gone on with, refused where another run lies; the step that solves."""

import json

import pytest

from accel.bench import repeats, trainings
from accel.bench.runner import Settings, read_cases
from accel.cli.main import main
from accel.errors import DataError, WeightsError

CASE = """
kind = "repeats"
[every]
folder = "{0}/runs"
seeds = 1
solved = 0.0
recipe = "parity"
task = "parity of 4"
method = "ACT"
[[case]]
name = "parity, ACT"
set = ["sequence.length=4", "cell.hidden=4", "cell.max_steps=3", "data.batch=4", "fit.steps=101"]
"""


def test_rows_of_trainings_that_run_once(tmp_path, capsys, monkeypatch):
    path, output = tmp_path / "case.toml", tmp_path / "rows.jsonl"
    path.write_text(CASE.format(tmp_path))
    bench = ["bench", str(path), "--quiet", "--output", str(output)]
    assert main(bench) == 0
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    found = json.loads((tmp_path / "runs" / "parity_ACT" / "seed_0" / "results.json").read_text())
    for name in ("accuracy", "repeats", "ponder"):
        assert row[name] == pytest.approx(found[name], abs=1e-4)
    assert row["steps"] == 101 and row["seeds"] == 1 and row["solved_at"] == 100 and row["correct"]
    monkeypatch.setattr(trainings, "_run", lambda command, folder: pytest.fail("a run that has ended ran again"))
    assert main(bench) == 0
    (case,) = read_cases(path)["case"]
    with pytest.raises(WeightsError, match="holds the run of another recipe or seed"):
        next(repeats.rows({**case, "set": [*case["set"], "fit.lr=0.1"]}, Settings()))


def test_a_training_that_fails_says_why(tmp_path):
    case = {"name": "a", "recipe": "parity", "folder": tmp_path, "set": ["data.batch=0"]}
    with pytest.raises(DataError, match=r"a/seed_0 failed: accel: .*give a batch that fits"):
        trainings.trained(case, 0)


def test_the_step_that_solves(tmp_path):
    log = tmp_path / "loss.csv"
    accuracies = [0.5] * 150 + [1.0] * 150
    log.write_text("step,loss,accuracy\n" + "".join(f"{k + 1},0.1,{value}\n" for k, value in enumerate(accuracies)))
    assert repeats.solved_at(log, 0.98) == 150 + 96  # 96 of 100 at 1, four at 1/2
    assert repeats.solved_at(log, 0.5) == 100 and repeats.solved_at(log, 1.01) is None


def test_the_cases_describe_tasks(request):
    file = read_cases(request.config.rootpath / "profiles/cases/repeats.toml")
    methods = [case["method"] for case in file["case"] if case["task"] == "parity of 64"]
    assert methods == ["ACT", "PACT", "fixed 1", "fixed 2", "fixed 3"]
    for case in file["case"]:
        recipe = trainings.read_recipe(request.config.rootpath / case["recipe"], case.get("set", []))
        kind = recipe["adaptive"]["kind"]
        assert case["method"] == (f"fixed {recipe['adaptive']['repeats']}" if kind == "fixed" else kind.upper())

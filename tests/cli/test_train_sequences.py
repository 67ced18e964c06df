"""`accel train` of recurrent networks that repeat their steps: it ends, says what they reach, and refuses."""

import csv
import json
import pathlib

import pytest
import torch

from accel.cli.main import main
from accel.cli.sequence_training import sequence_task
from accel.train.parallel import Place
from accel.zoo.runs import read_recipe

SMALL = ("sequence.length=6", "cell.hidden=8", "cell.max_steps=3", "data.batch=4", "fit.steps=3", "fit.warmup=0.0")
KINDS = {
    "ACT": 'adaptive={kind="act",tau=0.1}',
    "PACT": 'adaptive={kind="pact",tau=0.1}',
    "DisARM": 'adaptive={kind="pact",tau=0.1,estimator="DisARM",spatial=false}',
    "fixed": 'adaptive={kind="fixed",repeats=2}',
}


def arguments(output, *changes, recipe="parity"):
    given = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return ["train", recipe, "--quiet", "-o", str(output), *given]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.cli.sequence_training._REPORTED", 50)
    assert main([*arguments(tmp_path / "a", KINDS[kind]), "--seeds", "2"]) == 0
    for seed in range(2):
        folder = tmp_path / "a" / f"seed_{seed}"
        found = json.loads((folder / "results.json").read_text())
        assert 0 <= found["accuracy"] <= 1 <= found["repeats"] <= 3 and found["seed"] == seed
        assert (folder / "model.safetensors").is_file()
        with (folder / "loss.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        assert len(rows) == 3 and all(1 <= row["repeats"] <= 3 for row in rows)
        if kind in ("ACT", "PACT"):
            assert rows[0]["loss"] == pytest.approx(rows[0]["cross_entropy"] + 0.1 * rows[0]["ponder_cost"], rel=1e-4)
        if kind == "fixed":
            assert rows[0]["loss"] == pytest.approx(rows[0]["cross_entropy"], rel=1e-4) and rows[0]["repeats"] == 2
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["seeds"] == [0, 1]


def test_examples_are_a_function_of_seed_and_step():
    recipe = read_recipe(pathlib.Path("parity"), SMALL)

    def examples(seed, step):
        task = sequence_task(recipe, None, seed, Place(0, 1, torch.device("cpu")))
        return task.draw(4, task.epochs.generator(step)).x

    assert torch.equal(examples(0, 5), examples(0, 5))
    assert not torch.equal(examples(0, 5), examples(0, 6)) and not torch.equal(examples(0, 5), examples(1, 5))


@pytest.mark.parametrize("name", ["parity", "addition"])
def test_the_packaged_recipes(name):
    recipe = read_recipe(pathlib.Path(name))
    task = sequence_task(recipe, None, 0, Place(0, 1, torch.device("cpu")))
    assert torch.isfinite(task.loss_of_step(task.model, 0))


def test_what_is_refused_is_one_line(tmp_path, capsys):
    for changes, more, message in (
        ([], ["--data", "."], "draws its examples: leave --data out"),
        ([], ["--weights", "w.pt"], "leave out --weights"),
        (["sequence.task='sorting'"], [], "no task of sequences is called 'sorting'"),
        (["sequence.digits=2"], [], "the task parity has no such option"),
        (["cell.depth=2"], [], "the recipe does not fit"),
        (["data.pad=2"], [], "holds batch, a whole number, and nothing else"),
        (['adaptive={kind="sact"}'], [], "kind must be act, pact or fixed, got 'sact'"),
        (['model={name="zoo:resnet20_cifar"}'], [], "must have the sections"),
    ):
        assert main([*arguments(tmp_path / "a", *changes), *more]) == 1
        assert message in capsys.readouterr().err
    assert main(arguments(tmp_path / "a")) == 0
    assert main(arguments(tmp_path / "a", "sequence.length=7")) == 1
    assert "whose [sequence] is another" in capsys.readouterr().err

"""`accel train` of VAEs: by recipe, resumed, in two processes, and refused where it would be another run."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from accel.cli.main import main
from accel.cli.vae_training import read_vae, vae_task
from accel.errors import DataError, WeightsError
from accel.train.loop import fit
from accel.train.parallel import Place
from accel.vae.pictures import BitPictures
from accel.zoo.runs import read_recipe, recipe_path
from accel.zoo.weights_io import read_tensors

pytest.importorskip("sklearn")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["fit.steps=6", "fit.checkpoint_every=2", "vae.hidden=[16]", "data.batch=32"]


def arguments(output, *changes, recipe="vae_digits"):
    given = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return ["train", recipe, *given, "-o", str(output), "--quiet"]


def losses(folder):
    with (folder / "loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_recipe_of_the_package_by_name(tmp_path, capsys):
    assert main(arguments(tmp_path / "a")) == 0
    assert "test -log p(x) " in capsys.readouterr().out
    vae, recipe = read_vae(str(tmp_path / "a"))
    assert recipe["vae"]["shape"] == [1, 8, 8] and abs(recipe["vae"]["intensity"] - 0.3059) < 1e-3
    assert vae.latents[0].kind == "von_mises" and float(vae.log_alpha) == recipe["bound"]["log_alpha"]
    assert main(arguments(tmp_path / "b")) == 0
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "changes",
    [
        ['bound={kind="iwae", num_samples=3, gradient="dreg"}'],
        ['bound={kind="elbo"}', 'vae.latent={kind="bernoulli", dim=8}', 'vae.estimator="disarm"'],
        ['bound={kind="elbo"}', 'vae.latent=[{kind="normal", dim=2}, {kind="gamma", dim=2}]'],
        ['bound={kind="elbo"}', 'vae.likelihood="normal"', 'data.binarise="none"', "data.noise=0"],
        ['bound={kind="elbo"}', 'vae.likelihood="two_component"', 'data.binarise="static"'],
        [
            'bound={kind="halting"}',
            'vae={latent={kind="normal",dim=2},network="residual",hidden=[16],width=4,units=2,halting={target=0.5}}',
        ],
    ],
    ids=["iwae", "bits", "product", "grey", "two_component", "halting"],
)
def test_other_bounds_latents_and_data(tmp_path, changes):
    assert main(arguments(tmp_path / "a", *changes)) == 0
    assert len(losses(tmp_path / "a")) == 6
    read_vae(str(tmp_path / "a"))


def test_an_interrupted_run_ends_like_a_whole_one(tmp_path, monkeypatch):
    assert main(arguments(tmp_path / "whole")) == 0
    taken = []
    take = BitPictures.take

    def stop_at_the_fourth(self, rows, generator=None):
        taken.append(rows)
        if len(rows) == 32 and sum(len(some) == 32 for some in taken) == 4:
            raise KeyboardInterrupt
        return take(self, rows, generator)

    with monkeypatch.context() as patched:
        patched.setattr(BitPictures, "take", stop_at_the_fourth)
        assert main(arguments(tmp_path / "stopped")) == 130
    with pytest.raises(WeightsError, match="its training has not ended"):
        read_vae(str(tmp_path / "stopped"))
    assert main(arguments(tmp_path / "stopped")) == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_average_what_each_of_them_draws(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "accel"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *arguments(tmp_path / "two")], env=environment, cwd=tmp_path, check=True, timeout=240)
    recipe = read_recipe(recipe_path("vae_digits"), SMALL)
    first, second = (vae_task(recipe, None, 0, Place(rank, 2, torch.device("cpu"))) for rank in range(2))
    assert not set(first.epochs.rows(1).tolist()) & set(second.epochs.rows(1).tolist())
    fit(first.model, lambda m, step: (first.loss_of_step(m, step) + second.loss_of_step(m, step)) / 2, first.settings)
    expected, found = first.model.vae.state_dict(), read_tensors(tmp_path / "two" / "model.safetensors")
    assert all(torch.allclose(found[name].float(), expected[name].float(), atol=1e-5) for name in expected)


def test_a_folder_with_another_run_is_refused(tmp_path, capsys):
    assert main(arguments(tmp_path / "a")) == 0
    capsys.readouterr()
    assert main(arguments(tmp_path / "a", 'vae.latent={kind="normal", dim=3}')) == 1
    assert "holds a run whose [vae] is another than this recipe's" in capsys.readouterr().err
    assert main(arguments(tmp_path / "a", "data.noise=0.5")) == 1
    assert "whose [data] is another" in capsys.readouterr().err
    assert main(arguments(tmp_path / "a", "fit.steps=8")) == 0  # a longer run goes on
    assert len(losses(tmp_path / "a")) == 8


def test_damaged_runs_are_one_line(tmp_path):
    assert main(arguments(tmp_path / "a")) == 0
    path = tmp_path / "a" / "recipe.json"
    record = json.loads(path.read_text())
    for text, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({**record, "schema": 9}), "has schema 9, this version reads 1"),
        (
            json.dumps({**record, "vae": {**record["vae"], "latent": {"kind": "von_mises", "dim": 3}}}),
            "give the weights of this model",
        ),
    ):
        path.write_text(text)
        with pytest.raises(WeightsError, match=message):
            read_vae(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.batch=4000"], "a step takes 4000 examples in each of 1 processes, and there are 2876"),
        (["data.batch='many'"], "data.batch must be a whole number of examples, got 'many'"),
        (["data.sise=8"], r"table [data] does not fit"),
        (["bound.kind='elbo'"], "log_alpha is a finite number of nats for the robust bound"),
        (["bound.speed=3"], "the recipe does not fit"),
        (["vae.shape=[1, 9, 9]"], "the VAE is of examples of shape [1, 9, 9], these have [1, 8, 8]"),
        (["teacher.labels=0.1"], "must have the sections ['data', 'fit', 'vae']"),
    ],
)
def test_recipes_that_cannot_be_are_one_line(tmp_path, capsys, changes, message):
    assert main(arguments(tmp_path / "a", *changes)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def test_missing_data_and_options_of_classifiers_are_one_line(tmp_path, capsys):
    assert main(arguments(tmp_path / "a", recipe="vae")) == 1
    assert "say with --data where" in capsys.readouterr().err
    assert main([*arguments(tmp_path / "a"), "--weights", "a.safetensors"]) == 1
    assert "leave out --weights" in capsys.readouterr().err
    assert main(["train", "resnet32_cifar_dense", "-o", str(tmp_path / "b")]) == 1
    assert "a classifier is trained on labelled pictures" in capsys.readouterr().err
    assert main(["train", "no_such_recipe", "-o", str(tmp_path / "b")]) == 1
    assert "cannot read no_such_recipe" in capsys.readouterr().err
    with pytest.raises(DataError, match="on your disk"):
        vae_task(read_recipe(recipe_path("vae")), None, 0, Place(0, 1, torch.device("cpu")))


def test_topics_by_recipe(tmp_path, capsys):
    lines = [f"2 {k % 4}:3 {4 + k % 3}:2" for k in range(60)]
    (tmp_path / "texts.ldac").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts.tokens").write_text("\n".join("abcdefg") + "\n")
    data = ["--data", str(tmp_path / "texts.ldac")]
    small = ["--set", "fit.steps=4", "--set", "data.batch=16", "--set", "vae.hidden=[8]"]
    for latent in ("dirichlet", "logistic_normal"):
        kind = ["--set", f'vae.latent={{kind="{latent}", dim=3}}']
        assert main(["train", "topics", *data, *small, *kind, "-o", str(tmp_path / latent), "--quiet"]) == 0
        vae, recipe = read_vae(str(tmp_path / latent))
        assert recipe["vae"]["shape"] == [7] and vae.decoder.weight.shape == (3, 7)
    assert main(["train", "topics", *data, *small, "--set", "data.noise=1.0", "-o", str(tmp_path / "c")]) == 1
    assert "texts have no binarise and no noise" in capsys.readouterr().err

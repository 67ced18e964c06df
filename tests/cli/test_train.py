"""`accel train` on a few drawn pictures: it ends, goes on where it stopped, and refuses what it cannot read."""

import csv
import gzip
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import accel
from accel.cli.main import main
from accel.cli.models import resolve
from accel.cli.training import Task, Teacher, build, save_state, task_of
from accel.errors import ConfigError, WeightsError
from accel.nn.adaptive import adaptive_configs
from accel.train.batches import PictureBatches
from accel.train.parallel import Place
from accel.zoo.datasets import load_pictures
from accel.zoo.registry import get_model
from accel.zoo.runs import read_recipe, write_summary
from accel.zoo.weights_io import read_tensors

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = """
[model]
name = "zoo:resnet20_cifar"
{model}
[data]
batch = {batch}
pad = {pad}
[fit]
steps = {steps}
lr = 0.01
optimizer = "sgd"
checkpoint_every = 2
{fit}
"""
ADAPTIVE = """
[adaptive]
kind = "sact"
target = 0.6
"""


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "data"


def arguments(tmp_path, data, output, *, adaptive="", model="", batch=4, pad=2, steps=4, fit=""):
    recipe = tmp_path / f"{output}.toml"
    recipe.write_text(RECIPE.format(model=model, batch=batch, pad=pad, steps=steps, fit=fit) + adaptive)
    return ["train", str(recipe), "--data", str(data), "-o", str(tmp_path / output), "--quiet"]


def train(tmp_path, data, output, **options):
    return main(arguments(tmp_path, data, output, **options))


def rows(folder):
    with (folder / "loss.csv").open() as file:
        return list(csv.DictReader(file))


def environment():
    """That of a child process that computes with as many threads as this one: sums come out in the same order."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


def test_two_runs_of_one_seed_give_the_same_weights(tmp_path, data, capsys):
    assert train(tmp_path, data, "a") == 0
    assert "on 12 pictures" in capsys.readouterr().out
    assert train(tmp_path, data, "b") == 0
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(path.name.endswith(".partial") for path in (tmp_path / "a").iterdir())


def test_seeds_are_runs_of_their_own_that_go_on_where_they_stopped(tmp_path, data, capsys):
    seeds = ["--seed", "3", "--seeds", "2"]
    assert main([*arguments(tmp_path, data, "both", adaptive=ADAPTIVE), *seeds]) == 0
    said = capsys.readouterr().out
    assert main([*arguments(tmp_path, data, "alone", adaptive=ADAPTIVE), "--seed", "4"]) == 0
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in ("both/seed_4", "alone"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = [json.loads((tmp_path / "both" / f"seed_{k}" / "results.json").read_text()) for k in (3, 4)]
    assert [row["seed"] for row in found] == [3, 4] and {"accuracy", "macs_share"} <= found[0].keys()
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    shares = np.array([row["macs_share"] for row in found])
    assert summary["seeds"] == [3, 4] and summary["macs_share"]["values"] == shares.tolist() and shares.std() > 0
    assert summary["macs_share"]["deviation"] == pytest.approx(shares.std(ddof=1))
    assert f"macs_share over seeds 3, 4: mean {shares.mean():.4f}, deviation {shares.std(ddof=1):.4f}" in said
    (tmp_path / "both" / "seed_4" / "checkpoint.pt").unlink()  # as if it had been interrupted after the first seed
    before = (tmp_path / "both" / "seed_3" / "loss.csv").stat().st_mtime_ns
    assert main([*arguments(tmp_path, data, "both", adaptive=ADAPTIVE), *seeds]) == 0
    assert json.loads((tmp_path / "both" / "summary.json").read_text()) == summary
    assert (tmp_path / "both" / "seed_3" / "loss.csv").stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused(tmp_path, data, capsys):
    assert train(tmp_path, data, "a", adaptive=ADAPTIVE, steps=2) == 0
    before = read_tensors(tmp_path / "a" / "model.safetensors")
    for options, more, message in (
        ({"adaptive": ADAPTIVE}, ["--seed", "1"], "a run of seed 0, not 1"),
        ({"adaptive": ADAPTIVE}, ["--set", "adaptive.target=0.7"], "whose [adaptive] is another"),
        ({"batch": 2}, [], "whose [adaptive] is another"),
    ):
        assert main([*arguments(tmp_path, data, "a", steps=3, **options), *more]) == 1
        assert message in capsys.readouterr().err
    after = read_tensors(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_seed_has_no_deviation(tmp_path):
    assert write_summary(tmp_path, {7: {"nll": 2.0}}) == "nll over seeds 7: mean 2.0000"
    assert json.loads((tmp_path / "summary.json").read_text())["nll"]["deviation"] is None


def test_unreadable_data_and_recipes_are_one_line(tmp_path, data, capsys):
    assert train(tmp_path, tmp_path / "nowhere", "a") == 1
    assert "no data set at" in capsys.readouterr().err
    (data / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 of 12 pictures left out; cannot read the picture .*0\.png"):
        assert len(load_pictures(data, "train")) == 11
    (tmp_path / "bad.toml").write_text("[model]\nname = 'zoo:resnet20_cifar'\n")
    assert main(["train", str(tmp_path / "bad.toml"), "--data", str(data), "-o", str(tmp_path / "c")]) == 1
    assert "must have the sections" in capsys.readouterr().err


def test_batches_depend_on_the_step_alone_and_processes_share_an_epoch():
    pictures = torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 3, 8, 8)
    labels = torch.arange(24)

    def batches(**options):
        return PictureBatches(pictures, labels, lambda p: p.float(), **options)

    one = batches(batch=4, pad=1, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one(7), batches(batch=4, pad=1, seed=3)(7)))
    assert sorted(torch.cat([one(step)[1] for step in range(6)]).tolist()) == list(range(24))
    whole = batches(batch=8, seed=3)(1)[1]
    halves = [batches(batch=4, seed=3, rank=rank, world=2)(1)[1] for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)


def test_a_killed_run_ends_like_a_whole_one(tmp_path, data):
    assert train(tmp_path, data, "whole", adaptive=ADAPTIVE, steps=24) == 0
    command = [sys.executable, "-m", "accel", *arguments(tmp_path, data, "killed", adaptive=ADAPTIVE, steps=24)]
    child = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    log, deadline = tmp_path / "killed" / "loss.csv", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 7) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    done = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"]
    assert 4 <= done < 24
    assert train(tmp_path, data, "killed", adaptive=ADAPTIVE, steps=24) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_have_the_losses_of_one_with_the_doubled_batch(tmp_path, data):
    model = get_model("zoo:resnet20_cifar")
    model.linear.weight.data.mul_(0.01)  # drawn weights with idle norms give logits, and losses, of order 10
    save_state(model, tmp_path / "start.safetensors")
    start = ["--weights", str(tmp_path / "start.safetensors")]
    options = {"adaptive": '[adaptive]\nkind = "sact"\ntau = 0.1\n', "pad": 0, "fit": "freeze_norms = true"}
    assert main([*arguments(tmp_path, data, "one", batch=8, **options), *start]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "accel", *arguments(tmp_path, data, "two", batch=4, **options), *start]
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True, timeout=240)
    one, two = ([float(row["loss"]) for row in rows(tmp_path / run)] for run in ("one", "two"))
    assert len(one) == 4 and one[0] != one[-1]
    assert two == pytest.approx(one, abs=1e-5)
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_the_log_of_an_adaptive_run(tmp_path, data, capsys):
    assert train(tmp_path, data, "a", adaptive=ADAPTIVE) == 0
    found = re.search(r"mean (\S+) of the dense network's (\S+) a picture", capsys.readouterr().out)
    assert 0.3 < float(found[1]) < 1.1
    dense = accel.count_macs(get_model("zoo:resnet20_cifar"), torch.ones(1, 3, 16, 16))
    assert float(found[2]) == pytest.approx(dense, rel=1e-3)
    for row in rows(tmp_path / "a"):
        values = {name: float(value) for name, value in row.items()}
        assert values["loss"] == pytest.approx(
            values["cross_entropy"] + values["tau"] * values["ponder_cost"], rel=1e-4
        )
        assert 0 < values["executed_share"] < 1.1
        assert 6 <= values["ponder_cost"] <= 12  # three stages of three units, each between 2 and 4


@pytest.mark.parametrize(
    "table",
    ["", 'estimator = "DisARM"', 'estimator = { name = "ScoreFunction", baseline = { name = "LeaveOneOut" } }'],
    ids=["relaxed", "DisARM", "leave one out"],
)
def test_the_log_of_a_run_of_pact(tmp_path, data, table):
    adaptive = f'[adaptive]\nkind = "pact"\nspatial = false\ntau = 0.05\n{table}\n'
    assert train(tmp_path, data, "a", adaptive=adaptive, steps=2) == 0
    for row in rows(tmp_path / "a"):
        values = {name: float(value) for name, value in row.items()}
        assert values["tau"] == 0.05 and 3 <= values["ponder_cost"] <= 9  # three stages of three units
        if not table:
            expected = values["cross_entropy"] + 0.05 * values["ponder_cost"]
            assert values["loss"] == pytest.approx(expected, rel=1e-4)
    resolved = resolve("zoo:resnet20_cifar", str(tmp_path / "a" / "model.safetensors"))
    assert {type(config) for config in adaptive_configs(resolved.model).values()} == {accel.PACT}
    assert not any(config.spatial for config in adaptive_configs(resolved.model).values())


def test_the_packaged_recipe_of_pact():
    table = read_recipe(pathlib.Path("resnet32_cifar_pact"))["adaptive"]
    net = build("zoo:resnet14_cifar", "none", table)
    assert set(adaptive_configs(net).values()) == {
        accel.PACT(tau=0.01, target=0.575, estimator=accel.mc.Concrete(0.667), spatial=True)
    }


def test_weights_of_an_adaptive_network_fill_the_heads(tmp_path, data):
    assert train(tmp_path, data, "a", adaptive=ADAPTIVE) == 0
    weights = str(tmp_path / "a" / "model.safetensors")
    table = {"kind": "sact", "target": 0.6}
    found = build("zoo:resnet20_cifar", weights, table).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in read_tensors(weights).items())
    with pytest.raises(WeightsError, match="weights of another model"):
        build("zoo:resnet20_cifar", weights, {"kind": "act"})


def test_adaptive_tables_that_describe_nothing(tmp_path, data, capsys):
    for table, message in (
        ("kind = 'perforate'", "must be act, sact or pact"),
        ("kind = 'act'\nbudget = 1", "budget"),
        ("kind = 'pact'\nestimator = 'Pathwise'", "unknown estimator 'Pathwise'"),
    ):
        assert train(tmp_path, data, "a", adaptive=f"[adaptive]\n{table}\n") == 1
        assert message in capsys.readouterr().err


def test_tensorboard_events(tmp_path, data):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    assert main([*arguments(tmp_path, data, "a"), "--tensorboard"]) == 0
    events = reading.EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(int(row["step"]), float(row["loss"])) for row in rows(tmp_path / "a")]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_tensorboard_without_its_package_names_the_remedy(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    assert main([*arguments(tmp_path, data, "a"), "--tensorboard"]) == 1
    assert "pip install 'skimconv[train]'" in capsys.readouterr().err


def test_grey_pictures_and_other_models(tmp_path, capsys):
    (tmp_path / "grey").mkdir()
    for stem, name, header, payload in (
        ("train", "images-idx3", 16, bytes(range(196)) * 32),
        ("train", "labels-idx1", 8, bytes(range(8))),
        ("t10k", "images-idx3", 16, bytes(range(196)) * 8),
        ("t10k", "labels-idx1", 8, bytes([0, 9])),
    ):
        with gzip.open(tmp_path / "grey" / f"{stem}-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + payload)
    assert train(tmp_path, tmp_path / "grey", "a", steps=1) == 0
    assert "on 2 pictures" in capsys.readouterr().out
    assert train(tmp_path, tmp_path / "grey", "b", steps=1, model="num_classes = 12") == 0
    assert read_tensors(tmp_path / "b" / "model.safetensors")["linear.weight"].shape == (12, 64)
    assert train(tmp_path, tmp_path / "grey", "c", steps=1, model="classes = 12") == 1
    assert "the recipe does not fit" in capsys.readouterr().err


class Table(torch.nn.Module):
    """Logits that are parameters, whatever the pictures."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x):
        return self.logits


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def task_with(model, teacher, labels):
    """A task of five pictures with the given labels."""
    batches = lambda step: (torch.zeros(5, 3, 2, 2), labels)  # noqa: E731
    return Task(model, batches, None, None, Place(0, 1, torch.device("cpu")), {}, teacher)


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.3, 4.0), (0.9, 0.5)])
def test_the_loss_of_a_taught_model_is_the_closed_form(share, temperature):
    teacher, model, labels = Table(3 * drawn(0, 5, 7)), Table(drawn(1, 5, 7)), torch.tensor([0, 6, 3, 3, 1])
    taught = Teacher(network=teacher, labels=share, temperature=temperature)
    loss = task_with(model, taught, labels).loss_of_step(model, 0)
    p, q = ((table.logits.detach().double() / temperature).softmax(1) for table in (teacher, model))
    entropy = -model.logits.detach().double().softmax(1).log()[torch.arange(5), labels].mean()
    divergence = (p * (p / q).log()).sum(1).mean()
    assert loss.item() == pytest.approx(float(share * entropy + (1 - share) * temperature**2 * divergence), rel=1e-5)
    loss.backward()
    one_hot = torch.nn.functional.one_hot(labels, 7)
    gradient = share * (model.logits.detach().double().softmax(1) - one_hot) + (1 - share) * temperature * (q - p)
    torch.testing.assert_close(model.logits.grad.double(), gradient / 5, rtol=1e-4, atol=1e-6)
    assert teacher.logits.grad is None


def test_with_all_the_weight_on_the_labels_the_loss_is_the_plain_one():
    model, labels = Table(drawn(1, 5, 7)), torch.tensor([0, 6, 3, 3, 1])
    taught = task_with(model, Teacher(network=Table(drawn(0, 5, 7)), labels=1.0), labels).loss_of_step(model, 0)
    assert torch.equal(taught, task_with(model, None, labels).loss_of_step(model, 0))


TEACHER = '[teacher]\nname = "zoo:resnet14_cifar"\nlabels = 0.5\n'


def test_the_teacher_is_left_as_it_was(tmp_path, data):
    teacher = get_model("zoo:resnet14_cifar")
    save_state(teacher, tmp_path / "teacher.safetensors")
    arguments(tmp_path, data, "a", adaptive=ADAPTIVE + TEACHER)
    recipe = read_recipe(tmp_path / "a.toml")
    task = task_of(recipe, data, None, 0, Place(0, 1, torch.device("cpu")), str(tmp_path / "teacher.safetensors"))
    network = task.teacher.network
    task.loss_of_step(task.model.train(), 0).backward()
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(now, teacher.state_dict()[name]) for name, now in network.state_dict().items())
    assert task.model.conv1.weight.grad.abs().sum() > 0


def test_a_taught_run_needs_its_teacher_and_only_a_taught_one(tmp_path, data, capsys):
    save_state(get_model("zoo:resnet14_cifar"), tmp_path / "teacher.safetensors")
    given = ["--teacher", str(tmp_path / "teacher.safetensors")]
    assert main([*arguments(tmp_path, data, "a", adaptive=TEACHER, steps=1), *given]) == 0
    assert main([*arguments(tmp_path, data, "b", steps=1), *given]) == 1
    assert "leave --teacher out, or add the section" in capsys.readouterr().err
    assert main(arguments(tmp_path, data, "c", adaptive=TEACHER, steps=1)) == 1
    assert "give --teacher FILE" in capsys.readouterr().err
    assert main([*arguments(tmp_path, data, "d", adaptive="[teacher]\nweight = 1\n", steps=1), *given]) == 1
    assert "weights of another model" in capsys.readouterr().err
    assert main([*arguments(tmp_path, data, "e", adaptive=TEACHER + "weight = 1\n", steps=1), *given]) == 1
    assert "the recipe does not fit" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"labels": -0.1}, {"labels": 1.1}, {"temperature": 0.0}, {"temperature": math.nan}])
def test_teachers_out_of_range(wrong):
    with pytest.raises(ConfigError, match=r"needs labels in \[0, 1\] and a finite temperature above 0"):
        Teacher(network=torch.nn.Identity(), **wrong)


def test_values_set_in_place_of_the_recipes(tmp_path, data, capsys):
    arguments(tmp_path, data, "a", adaptive=ADAPTIVE)
    before, path = read_recipe(tmp_path / "a.toml"), tmp_path / "a.toml"
    after = read_recipe(path, ['adaptive.kind = "act"', "adaptive.target=0.5", "adaptive.tau=0.25", "fit.steps=3"])
    assert after["adaptive"] == {"kind": "act", "target": 0.5, "tau": 0.25}
    assert after["fit"] == {**before["fit"], "steps": 3} and after["model"] == before["model"]
    for change, message in (
        ("steps=3", "names no section"),
        ("fit.steps=three", "--set fit.steps=three is no TOML"),
        ("fits.steps=3", "must have the sections"),
        ("fit.step=3", "the recipe does not fit"),
        ("adaptive.tau_max=3", "does not fit"),
        ("model.wieghts_of='zoo:resnet32_cifar'", "the recipe does not fit"),
    ):
        assert main([*arguments(tmp_path, data, "a", adaptive=ADAPTIVE), "--set", change]) == 1
        assert message in capsys.readouterr().err
    assert main([*arguments(tmp_path, data, "a"), "--set", "fit.steps=3", "--set", "data.batch=2"]) == 0
    assert len(rows(tmp_path / "a")) == 3


def test_a_network_of_fewer_units_takes_the_weights_of_the_first_ones(tmp_path):
    whole = get_model("zoo:resnet32_cifar")
    save_state(whole, tmp_path / "whole.safetensors")
    part = build("zoo:resnet20_cifar", str(tmp_path / "whole.safetensors"), weights_of="zoo:resnet32_cifar")
    assert [len(stage) for stage in (part.layer1, part.layer2, part.layer3)] == [3, 3, 3]
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in part.state_dict().items())
    for stage in (whole.layer1, whole.layer2, whole.layer3):
        del stage[3:]
    x = drawn(0, 2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(part(x), whole(x))
    with pytest.raises(WeightsError, match=r"is no part of CifarResNet: 72 missing or of another shape \(layer1\.3\."):
        build("zoo:resnet32_cifar", "none", weights_of="zoo:resnet20_cifar")

"""Damaged recipes and benchmark cases: each is refused in one line, or still means something; no traceback, no hang."""

from __future__ import annotations

import random
import signal
import warnings

import numpy as np
import PIL.Image
import pytest

from accel.bench import runner
from accel.cli import main
from accel.tests.damage import damage_bytes, damage_json, one_line, write_toml

EACH = 10
LONGEST = 60  # seconds
FIT = {"steps": 2, "lr": 0.01, "warmup": 0.1, "schedule": "cosine", "optimizer": "adamw", "lr_factors": {"*": 2.0}}
RECIPES = {
    "classifier": {
        "model": {"name": "zoo:resnet14_cifar"},
        "adaptive": {"kind": "pact", "tau": 0.01, "estimator": {"name": "Concrete", "temperature": 0.66}},
        "data": {"batch": 2, "pad": 1, "held_out": 1},
        "fit": FIT,
    },
    "recurrent network": {
        "sequence": {"task": "parity", "length": 4, "prefix": True},
        "cell": {"kind": "rnn", "hidden": 4, "max_steps": 2, "flag": True},
        "adaptive": {"kind": "act", "tau": 0.01},
        "data": {"batch": 2},
        "fit": FIT,
    },
    "segmenting network": {
        "segmentation": {"size": 80},
        "adaptive": {"kind": "sact", "tau": 0.02},
        "data": {"batch": 2},
        "fit": FIT,
    },
    "VAE": {
        "vae": {"latent": {"kind": "normal", "dim": 2}, "hidden": [4], "activation": "tanh"},
        "bound": {"kind": "robust", "variant": "iwae", "num_samples": 2, "log_alpha": -30.0, "anneal_steps": 5},
        "data": {"name": "digits", "batch": 4, "binarise": "dynamic", "noise": 1.0},
        "fit": FIT,
    },
    "inpainter": {
        "vaeac": {"channels": 3, "widths": [4, 8], "blocks": [1, 1], "latent": 2},
        "data": {"name": "shapes", "crop": 16, "batch": 2, "masks": "any"},
        "fit": FIT,
    },
}
CASES = {
    "nearest": {"height": 8, "width": 9, "keep": 0.5, "mask": "uniform"},
    "masked": {"channels": 4, "size": [9, 7], "batch": 2, "active": 0.3},
    "layers": {
        **{"model": "zoo:resnet14_cifar", "size": [8, 8], "distinct": True, "batch": [1], "keep": [0.5]},
        **{"mask": "lattice", "sides": ["nchw"]},
    },
    "backward": {
        **{"channels_in": 3, "channels_out": 4, "kernel": 3, "size": [9, 8], "batch": 2, "keep": 0.5},
        "mask": "lattice",
    },
}


class Reached(BaseException):
    """A recipe or a case that is damaged, and still means something."""


class Late(BaseException):
    """It hangs."""


@pytest.fixture(autouse=True)
def no_hang():
    """Nothing of this takes longer than a minute."""

    def late(*_):
        raise Late(f"still at it after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def end_of(argv: list[str], capsys) -> bool:
    """Whether the command was refused; if so in one line."""
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main.main(argv)
    except Reached:
        code = 0
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 0 or (code == 1 and err[-1].startswith("accel: ") and one_line(err[-1])), (code, err)
    return code == 1


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(kind, tmp_path, capsys, monkeypatch):
    from accel.train import loop

    def reached(loss):
        raise Reached

    monkeypatch.setattr(loop, "mean_over_processes", reached)  # the first step has a loss
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(3):
            folder = tmp_path / "data" / split / f"class{number}"
            folder.mkdir(parents=True)
            PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    recipe, refused = tmp_path / "recipe.toml", 0
    data = ["--data", str(tmp_path / "data")] if kind == "classifier" else []
    for seed in range(EACH + 1):
        draw, out = random.Random(seed), tmp_path / f"out{seed}"
        write_toml(recipe, tables := damaged(RECIPES[kind], draw if seed else None))
        if seed % 5 == 4:
            damage_bytes(recipe, draw)
        found = end_of(["train", str(recipe), *data, "-o", str(out), "--quiet"], capsys)
        assert seed or not found, tables
        refused += found
        assert not out.exists() or {path.name for path in out.iterdir()} <= {"recipe.json", "loss.csv"}
    assert EACH / 4 < refused < EACH + 1


@pytest.mark.parametrize("kind", CASES)
def test_cases(kind, tmp_path, capsys, monkeypatch):
    file, refused = tmp_path / "cases.toml", 0
    monkeypatch.setattr(runner.Settings, "repeats", 1)
    for seed in range(EACH + 1):
        draw = random.Random(seed)
        whole = {"kind": kind, "every": CASES[kind], "case": [{"name": "a"}], "bar": [{"column": "x", "at_least": 1}]}
        write_toml(file, damaged(whole, draw if seed else None))
        if seed % 5 == 4:
            damage_bytes(file, draw)
        found = end_of(["bench", str(file), "--quick", "--output", str(tmp_path / "rows.jsonl")], capsys)
        assert seed or not found
        refused += found
    assert EACH / 4 < refused < EACH + 1


def damaged(tables: dict, draw: random.Random | None) -> dict:
    """A copy with one value replaced, left out or renamed; none without a draw."""
    import copy

    found = copy.deepcopy(tables)
    if draw is not None:
        damage_json(found, draw)
    return found

"""`accel train` on a few drawn pictures: it ends, goes on where it stopped, and refuses what it cannot read."""

import numpy as np
import pytest
import torch
from PIL import Image

from accel.cli.main import main
from accel.errors import DataError
from accel.train.batches import PictureBatches
from accel.zoo.datasets import load_pictures
from accel.zoo.weights_io import read_tensors

RECIPE = """
[model]
name = "zoo:resnet20_cifar"
[data]
batch = 4
pad = 2
[fit]
steps = {steps}
lr = 0.01
optimizer = "sgd"
checkpoint_every = 2
"""


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "data"


def train(tmp_path, data, output, steps=4):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(steps=steps))
    return main(["train", str(recipe), "--data", str(data), "-o", str(tmp_path / output), "--quiet"])


def test_two_runs_of_one_seed_give_the_same_weights(tmp_path, data, capsys):
    assert train(tmp_path, data, "a") == 0
    assert "on 12 pictures" in capsys.readouterr().out
    assert train(tmp_path, data, "b") == 0
    first, second = (read_tensors(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(path.name.endswith(".part") for path in (tmp_path / "a").iterdir())


def test_unreadable_data_and_recipes_are_one_line(tmp_path, data, capsys):
    assert train(tmp_path, tmp_path / "nowhere", "a") == 1
    assert "no data set at" in capsys.readouterr().err
    (data / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture"):
        load_pictures(data, "train")
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

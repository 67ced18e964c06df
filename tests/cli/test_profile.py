"""`accel profile`: its groups, the spread over pictures, the page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import accel
from accel.cli import main, profile
from accel.errors import AccelError
from accel.profiling import grouping
from accel.profiling.flops import macs_spread
from accel.zoo.registry import get_model, preprocess

SACT = "zoo:resnet32_cifar_sact"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    drawn = np.random.default_rng(0)
    for k in range(4):
        picture = drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8) if k else np.full((32, 32, 3), 90, np.uint8)
        Image.fromarray(picture).save(folder / f"{k}.png")
    return folder


def profiled(capsys, *more):
    assert main.main(["profile", *more, "--quiet", "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_pictures_differ_in_what_they_take(photos, capsys):
    found = profiled(capsys, SACT, "--data", str(photos), "--by", "stage")
    pictures = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in sorted(photos.iterdir())])
    x = preprocess(SACT, pictures.permute(0, 3, 1, 2))
    counts = torch.cat([accel.count_macs(get_model(SACT), each, per_image=True) for each in x.split(1)]).double()
    spread = found["summary"]["per_picture"]
    assert spread["images"] == 4 and spread["mean"] == pytest.approx(float(counts.mean()))
    assert spread["deviation"] == pytest.approx(float(counts.std(correction=0))) and spread["deviation"] > 0
    assert spread["5%"] <= spread["50%"] <= spread["95%"] <= float(counts.max())
    assert [row["layer"] for row in found["rows"]] == [
        "conv1",
        "layer1",
        "layer2",
        "layer3",
        "linear",
        "everything else",
    ]


def test_a_plain_network_takes_the_same_of_every_picture(photos, capsys):
    assert main.main(["profile", "zoo:resnet14_cifar", "--weights", "none", "--data", str(photos), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "executed MACs of a picture, over 4: mean" in printed and "standard deviation 0," in printed
    with pytest.raises(AccelError, match="give at least one batch"):
        macs_spread(get_model("zoo:resnet14_cifar"), [])


def test_a_page_with_everything_inside(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["zoo:resnet14_cifar", "--weights", "none", "--keep", "0.5", "--threads", "1", "-o", str(out)]
    threads = torch.get_num_threads()
    found = profiled(capsys, *command)
    assert torch.get_num_threads() == threads and "1 threads" in found["title"]
    page, numbers = (out / "profile.html").read_text(), json.loads((out / "profile.json").read_text())
    assert numbers["rows"] == found["rows"] and numbers["peaks"]["gops"]["fp32"] > 0
    assert all(f"<td>{row['layer']}</td>" in page for row in found["rows"])
    assert page.count("data:image/png;base64,") == 1 and "http" not in page.replace("http-equiv", "")
    assert "Where the time of zoo:resnet14_cifar goes" in page and "faster than dense" in page
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("mine")
    assert main.main(["profile", "zoo:resnet14_cifar", "-o", str(tmp_path / "own")]) == 1
    assert "holds files that this command did not write" in capsys.readouterr().err


def test_the_parser_knows_every_way_to_group():
    assert profile._BY == grouping.BY


def test_depth_is_of_layers(capsys):
    found = profiled(capsys, "zoo:resnet14_cifar", "--weights", "none", "--depth", "2")
    assert [row["layer"] for row in found["rows"]][:3] == ["conv1", "layer1.0", "layer1.1"]
    assert main.main(["profile", "zoo:resnet14_cifar", "--by", "op", "--depth", "2"]) == 1
    assert "depth is a number of parts of a layer's name" in capsys.readouterr().err

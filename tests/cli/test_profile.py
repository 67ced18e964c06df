"""`accel profile`: its groups, the spread over pictures, the page."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import accel
from accel.cli import main, profile
from accel.errors import AccelError
from accel.profiling import grouping
from accel.profiling.flops import macs_of_images
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
    spread, rows = found["summary"]["per_picture"], {row["layer"]: row for row in found["rows"]}
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
    assert rows["conv1"]["picture_deviation"] == 0 and rows["layer1"]["picture_deviation"] > 0
    assert sum(row.get("picture_mean", 0) for row in found["rows"]) == pytest.approx(spread["mean"])
    assert found["total"]["picture_95%"] == spread["95%"] and "picture_mean" not in rows["everything else"]


def test_a_plain_network_takes_the_same_of_every_picture(photos, capsys):
    assert main.main(["profile", "zoo:resnet14_cifar", "--weights", "none", "--data", str(photos), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "executed MACs of a picture, over 4: mean" in printed and "standard deviation 0," in printed
    with pytest.raises(AccelError, match="give at least one batch"):
        macs_of_images(get_model("zoo:resnet14_cifar"), [])


def test_a_page_with_everything_inside(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["zoo:resnet14_cifar", "--weights", "none", "--keep", "0.5", "--threads", "1", "-o", str(out)]
    threads = torch.get_num_threads()
    found = profiled(capsys, *command)
    assert torch.get_num_threads() == threads and "1 thread," in found["title"]
    page, numbers = (out / "profile.html").read_text(), json.loads((out / "profile.json").read_text())
    assert numbers["rows"] == found["rows"] and numbers["peaks"]["gops"]["fp32"] > 0
    assert all(f"{row['layer']}</td>" in page for row in found["rows"])
    assert page.count("data:image/png;base64,") == 1 and "http" not in page.replace("http-equiv", "")
    assert "Where the time of zoo:resnet14_cifar goes" in page and "as fast as its dense form" in page
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


PLAIN = ("zoo:resnet14_cifar", "--weights", "none")


def test_several_batch_sizes(tmp_path, capsys):
    out = tmp_path / "out"
    sizes = ["--batch-size", "1", "3", "--by", "stage", "-o", str(out)]
    found = profiled(capsys, *PLAIN, *sizes)
    one, three = found["batches"]
    assert (one["batch"], three["batch"]) == (1, 3) and three["total"]["executed_macs"] == 3 * one["total"][
        "executed_macs"
    ]
    assert "1x3x32x32" in one["title"] and "3x3x32x32" in three["title"]
    assert json.loads((out / "profile.json").read_text())["batches"] == found["batches"]
    page = (out / "profile.html").read_text()
    assert "3 at a time" in page and page.count("data:image/png;base64,") == 2
    for kind in ("table", "md"):
        assert main.main(["profile", *PLAIN, "--batch-size", "1", "3", "--quiet", "--format", kind]) == 0
        printed = capsys.readouterr().out
        assert printed.count("layer1.0.conv1") == 2 and "ms a picture" in printed.split("total")[-1]
    assert main.main(["profile", *PLAIN, "--batch", "1", "3", "--quiet", "--format", "csv", "--by", "op"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["batch"] for row in rows] == ["1"] * (len(rows) // 2) + ["3"] * (len(rows) // 2)
    assert {"q10_ms", "activations", "of_peak", "picture_5%"} <= rows[0].keys()


def test_the_tree_sums_up_what_lies_in_a_module(capsys):
    assert main.main(["profile", *PLAIN, "--quiet", "--depth", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[2:20].rstrip() for line in lines if "MACs" not in line]
    assert [name for name in names if name.strip().startswith("layer1")] == ["layer1", "  layer1.0", "  layer1.1"]
    assert "of peak" in next(line for line in lines if "dense MACs" in line)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(dtype, capsys):
    """Alone, and converted beside the dense form, whose MACs are the same as in single precision."""
    short = dtype.replace("float", "f") if dtype == "bfloat16" else "fp16"
    found = profiled(capsys, *PLAIN, "--dtype", dtype, "--channels-last")
    assert f"1x3x32x32 {dtype} channels_last" in found["title"]
    assert {row["precision"] for row in found["rows"]} == {short, None} and found["total"]["of_peak"] > 0
    assert found["rows"][0]["activations"] == 2 * 16 * 32 * 32
    half = profiled(capsys, *PLAIN, "--dtype", dtype, "--keep", "0.5")
    single = profiled(capsys, *PLAIN, "--keep", "0.5")
    assert [row["executed_macs"] for row in half["rows"]] == [row["executed_macs"] for row in single["rows"]]
    assert {row["precision"] for row in half["rows"]} == {short, None} and half["total"]["speedup"] > 0


def test_another_model_beside_it(capsys):
    found = profiled(capsys, *PLAIN, "--baseline", "zoo:resnet20_cifar")
    assert "beside zoo:resnet20_cifar in" in found["title"] and found["total"]["baseline"] == "zoo:resnet20_cifar"
    assert found["total"]["speedup"] == found["total"]["baseline_ms"] / found["total"]["ms"]
    found = profiled(capsys, SACT, "--baseline")
    assert "beside its dense form in" in found["title"]


def test_under_torch_compile(capsys, monkeypatch):
    """The compiler itself is tested elsewhere: here stands another in its place, and one that fails."""
    monkeypatch.setattr(torch, "compile", lambda net, **_: lambda *args: net(*args))
    assert main.main(["profile", *PLAIN, "--keep", "0.5", "--compile", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "the network, compiled by torch as a whole, takes" in printed
    assert "its dense form, compiled by torch as a whole, takes" in printed

    def fails(*_, **__):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", fails)
    assert main.main(["profile", *PLAIN, "--compile", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said == "accel: torch cannot compile CifarResNet (RuntimeError: no compiler here)\n"


REFUSED = {
    "--baseline": "has no dense original: say with --baseline MODEL",
    "--baseline zoo:resnet33_cifar": "zoo:resnet33_cifar",
    "--keep 0.5 --channels-last": "computes in that format anyway",
    "--images PHOTOS --batch-size 1 8": "--images has 4 pictures for a batch of 8",
    "--images PHOTOS --precision int8 --dtype bfloat16": "is in int8: leave out one of the two",
    "--baseline FOREIGN": "cannot run on 1x3x32x32 float32",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_makes_no_sense_together_is_refused_in_one_line(given, photos, tmp_path, capsys):
    (tmp_path / "nets.py").write_text("from torch import nn\n\ndef net():\n    return nn.Conv2d(4, 4, 3)\n")
    line = given.replace("PHOTOS", str(photos)).replace("FOREIGN", f"{tmp_path}/nets.py:net")
    assert main.main(["profile", *PLAIN, *line.split()]) == 1
    captured = capsys.readouterr()
    assert REFUSED[given] in captured.err and captured.err.count("\n") == 1 and captured.out == ""

"""The verbs search and finetune end to end, on small networks of the user's own."""

import csv
import json

import PIL.Image
import pytest
import torch

import accel
from accel.cli import main

NETS = """
import torch
from torch import nn

def edges():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid(),
    )

def classes():
    torch.manual_seed(0)
    return nn.Sequential(edges()[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for index in range(8):
        split, kind = ("train", "test")[index > 5], "ab"[index % 2]
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        PIL.Image.fromarray(pixels.numpy()).save(folder / split / kind / f"{index}.png")
    return folder


def accel_(verb, *argv):
    return main.main([verb, "--quiet", *map(str, argv)])


def test_search_convert_finetune(nets, photos, tmp_path, capsys):
    found, out, tuned = (tmp_path / name for name in ("found", "out", "tuned"))
    model, pictures = f"{nets}:edges", ["--images", photos, "--size", "24x32"]
    assert accel_("search", model, *pictures, "--macs", "0.5", "--dense", "0", "-o", found) == 0
    printed = capsys.readouterr().out
    assert "decided by a rule" in printed and "the whole network: drop 0.0" in printed
    assert sorted(p.name for p in found.iterdir()) == [
        "journal.json",
        "networks.csv",
        "report.json",
        "rules.json",
        "search.html",
        "trace.csv",
        "trace.png",
    ]
    page = (found / "search.html").read_text()
    assert "Asked for was 0.5 of the dense multiply-accumulates" in page and page.count("data:image/png") == 1
    assert page.count("class=ours") == 2  # the network that was chosen, and the total of the layers
    assert accel_("convert", model, *pictures, "--rules", found / "rules.json", "-o", out) == 0
    capsys.readouterr()
    teacher = ["--teacher", model, "--steps", "3", "-o", tuned, "--format", "json"]
    assert accel_("finetune", out / "model", *pictures, *teacher) == 0
    before, after = json.loads(capsys.readouterr().out)
    assert before["pictures"] == after["pictures"] == 2 and 0 < after["mean_abs_difference"] < 0.5
    assert len(list(csv.DictReader((tuned / "loss.csv").open()))) == 3
    assert (tuned / "model" / "config.json").is_file() and (tuned / "checkpoint.pt").is_file()


def test_labels(nets, photos, tmp_path, capsys):
    data = ["--data", photos, "--batch", "2"]
    assert (
        accel_("search", f"{nets}:classes", *data, "--macs", "0.6", "-o", tmp_path / "found", "--format", "json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["dense_loss"] > 0 and report["total"]["cost"] <= 0.6 * report["total"]["dense_cost"]
    namespace = {}
    exec(NETS, namespace)
    dense = namespace["classes"]().eval()
    fast = accel.convert_model(dense, accel.Perforate(keep=0.5), example_inputs=torch.zeros(1, 3, 24, 32))
    accel.save_converted(fast, tmp_path / "fast")
    options = ["--teacher", f"{nets}:classes", "--steps", "2", "--labels", "0.5", "--format", "json"]
    assert accel_("finetune", tmp_path / "fast", *data, *options, "-o", tmp_path / "tuned") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["pictures"] for row in rows] == [2, 2] and all(0 <= row["accuracy"] <= 1 for row in rows)
    trained = [trained_conv(tmp_path / "tuned", dense)]
    for name, more in {"sgd": ("--optimizer", "sgd", "--lr", "0.01"), "cropped": ("--pad", "4")}.items():
        assert accel_("finetune", tmp_path / "fast", *data, *options, *more, "-o", tmp_path / name) == 0
        trained.append(trained_conv(tmp_path / name, dense))
    assert not any(torch.equal(trained[0], other) for other in trained[1:])


def trained_conv(folder, dense):
    network = accel.load_converted(folder / "model", dense)
    return next(module.weight for module in network.modules() if isinstance(module, torch.nn.Conv2d))


@pytest.mark.parametrize(
    "argv, code, said",
    [
        (["search", "nets.py:edges", "--images", "photos", "-o", "x"], 2, "one of the arguments --speedup"),
        (["search", "nets.py:edges", "--speedup", "2", "-o", "x"], 2, "one of the arguments --images"),
        (["search", "nets.py:edges", "--images", "none", "--macs", "0.5", "-o", "x"], 1, "no folder or picture none"),
        (["search", "nets.py:edges", "--images", "photos", "--macs", "7", "-o", "x"], 1, "macs is the share"),
        (["finetune", "nowhere", "--teacher", "nets.py:edges", "--images", "photos", "-o", "x"], 1, "cannot read"),
    ],
)
def test_bad_input_is_one_line(argv, code, said, nets, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(argv) == code
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out

"""Models of the user's own on the command line: how they are found, what they read, and their errors in one line."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
import torch

import accel
from accel.cli import main, models
from accel.errors import AccelError, ConfigError, WeightsError
from accel.zoo.registry import list_models

NEIGHBOUR = """
from torch import nn

def block():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
"""
NETS = """
import torch
from torch import nn
from near import block

def net():
    import near
    return near.block()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = block()

    def forward(self, x):
        return self.block(x)

made = Net()

class Breaks(Net):
    def forward(self, x):
        return self.blok(x)

def raises():
    return dict()['key']

def leaves():
    raise SystemExit(3)

def wants(width):
    return block()

def classes():
    torch.manual_seed(0)
    return nn.Sequential(block(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 2))

number = 7
"""


def line(text):
    return f"line {NETS.splitlines().index(text) + 1}"


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # undone afterwards, with what the command adds
    monkeypatch.delitem(__import__("sys").modules, "near", raising=False)
    (tmp_path / "near.py").write_text(NEIGHBOUR)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        pixels = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"{seed}.png")
    return folder


@pytest.mark.parametrize("name", ["net", "Net", "made"])
def test_a_function_a_class_or_an_instance_with_neighbours(nets, name):
    model = models.resolve(f"{nets}:{name}").model
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 4, 4) and not model.training


def test_a_file_of_a_package_imports_what_is_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = tmp_path / "parcel" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (tmp_path / "parcel" / "near.py").write_text(NEIGHBOUR)
    (inner / "nets.py").write_text("from ..near import block\n")
    assert len(models.resolve(f"{inner / 'nets.py'}:block").model) == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nets.py:raises", "nets.py, " + line("    return dict()['key']") + ": KeyError: 'key'"),
        ("nets.py:leaves", "nets.py, " + line("    raise SystemExit(3)") + ": SystemExit: 3"),
        ("nets.py:wants", r"TypeError: wants\(\) missing 1 required positional argument: 'width'"),
        ("nets.py:number", r"number of .*nets.py returned int"),
        ("nets.py:nothing", "defines no function 'nothing'"),
        ("none.py:f", "no file .*none.py"),
        ("broken.py:f", r"broken.py, line 2: SyntaxError"),
        ("lonely.py:f", r"lonely.py, line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_errors_of_the_users_own_are_named_with_their_place(nets, spec, said):
    (nets.parent / "broken.py").write_text("x = 1\ndef f(:\n")
    (nets.parent / "lonely.py").write_text("import no_such_thing\n")
    with pytest.raises(AccelError, match=said) as caught:
        models.resolve(str(nets.parent / spec))
    assert "\n" not in str(caught.value)


def test_an_error_in_a_forward_is_named_with_its_place(nets, capsys):
    for verb in ("plan", "profile"):
        assert main.main([verb, f"{nets}:Breaks", "--size", "8"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"nets.py, {line('        return self.blok(x)')}: AttributeError" in said


def test_standardise():
    pictures = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    own = models.Standardise(mean=(0.1, 0.2, 0.3), std=(0.5,), scale=128)
    expected = (pictures.float() / 128 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    assert torch.equal(own(pictures), expected)
    registered = models.resolve("torchvision:alexnet", "none").prepare(pictures)
    assert torch.allclose(models.Standardise()(pictures), registered)
    for wrong in ({"std": (0.0,)}, {"scale": 0.0}, {"mean": (1.0, 2.0)}, {"mean": (float("nan"),)}):
        with pytest.raises(ConfigError, match="--"):
            models.Standardise(**wrong)


def test_what_a_model_reads_is_saved_with_it(nets, photos, tmp_path, capsys):
    """The verbs that load the folder prepare pictures as the conversion did."""
    given = ["--mean", "0.5", "--std", "0.25,0.5,0.25", "--scale", "128", "--size", "12x16", "--quiet"]
    out = tmp_path / "out"
    assert main.main(["convert", f"{nets}:Net", "--images", str(photos), "-o", str(out), *given]) == 0
    saved = models.resolve(str(out / "model"), source=f"{nets}:Net")
    assert saved.converted and saved.standardise == models.Standardise((0.5,), (0.25, 0.5, 0.25), 128)
    summary = json.loads((out / "report.json").read_text())["summary"]
    dense, x = models.resolve(f"{nets}:Net").model, []
    for path in sorted(photos.iterdir()):
        pixels = torch.from_numpy(np.array(PIL.Image.open(path))).permute(2, 0, 1)[None]
        x.append((pixels.float() / 128 - 0.5) / torch.tensor([0.25, 0.5, 0.25]).view(1, 3, 1, 1))
    with torch.inference_mode():
        differences = torch.cat([(dense(each) - saved.model(each)).abs().flatten() for each in x])
    assert summary["mean_abs_difference"] == pytest.approx(float(differences.mean()), rel=1e-4)
    tuned = ["finetune", str(out / "model"), "--teacher", f"{nets}:Net", "--images", str(photos), "--size", "12x16"]
    assert main.main([*tuned, "--steps", "1", "-o", str(tmp_path / "tuned"), "--quiet"]) == 0
    again = models.resolve(str(tmp_path / "tuned" / "model"), source=f"{nets}:Net")
    assert again.standardise == saved.standardise


def test_models_of_the_registry_keep_their_own_preprocessing(photos, tmp_path, capsys):
    arguments = ["convert", "zoo:demo_resnet", "--images", str(photos), "-o", str(tmp_path / "out"), "--mean", "0.5"]
    assert main.main(arguments) == 1
    assert "zoo:demo_resnet brings its own preprocessing: leave out --mean" in capsys.readouterr().err


@pytest.fixture
def saved(nets, photos, tmp_path):
    out = tmp_path / "out"
    command = ["convert", f"{nets}:classes", "--images", str(photos), "-o", str(out), "--size", "12x16", "--quiet"]
    assert main.main(command) == 0
    return out / "model"


def test_a_saved_model_of_ones_own_is_profiled_planned_and_evaluated(nets, photos, saved, tmp_path, capsys):
    capsys.readouterr()
    given = [str(saved), "--source", f"{nets}:classes"]
    for verb in ("profile", "plan"):
        assert main.main([verb, *given, "--size", "12x16", "--format", "csv"]) == 0
        rows = {row["layer"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
        assert int(rows["0.0"]["dense_macs"]) == 12 * 16 * 27 * 8
        assert 0.4 < float(rows["0.0"]["keep"]) < 0.6
    for name in ("a", "b"):
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        (photos / "0.png").rename(folder / "0.png") if name == "a" else (photos / "1.png").rename(folder / "1.png")
    evaluated = ["eval", *given, "--data", str(tmp_path / "data"), "--no-compile", "--format", "json"]
    assert main.main(evaluated) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert 0.4 < row["macs_share"] < 0.6 and row["pictures"] == 2


def test_a_folder_runs_no_file_that_the_user_does_not_name(saved, nets, capsys, tmp_path):
    capsys.readouterr()
    trap = tmp_path / "ran"
    nets.write_text(f"open({str(trap)!r}, 'w')\n{NETS}")
    assert main.main(["profile", str(saved)]) == 1
    said = capsys.readouterr().err
    assert "nets.py:classes" in said and "--source" in said and not trap.exists()
    with pytest.raises(WeightsError, match="another model"):
        models.resolve(str(saved), source=f"{nets}:Net")
    assert trap.exists()
    with pytest.raises(ConfigError, match="is none: leave it out"):
        models.resolve("zoo:resnet20_cifar", source=f"{nets}:Net")
    with pytest.raises(WeightsError, match=f"give {saved}"):
        models.resolve(str(saved.parent))


def test_a_folder_saved_in_python_is_loaded_by_its_source(nets, tmp_path):
    dense = models.resolve(f"{nets}:Net").model
    fast = accel.convert_model(dense, accel.Perforate(keep=0.5), example_inputs=torch.zeros(1, 3, 12, 16))
    accel.save_converted(fast, tmp_path / "by_hand")
    with pytest.raises(WeightsError, match="--source"):
        models.resolve(str(tmp_path / "by_hand"))
    x = torch.randn(1, 3, 12, 16)
    with torch.inference_mode():
        assert torch.equal(models.resolve(str(tmp_path / "by_hand"), source=f"{nets}:Net").model(x), fast(x))


def test_one_picture_and_damaged_ones(nets, photos, tmp_path, capsys):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])
    command = ["convert", f"{nets}:Net", "--size", "12x16", "-o", str(tmp_path / "out"), "--format", "json", "--images"]
    assert main.main([*command, str(photos)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["summary"]["pictures"] == 3
    assert captured.err.count("1 of 4 pictures left out") == 1 and "1.png" in captured.err
    assert [path.name for path in sorted((tmp_path / "out" / "pictures").iterdir())][1] == "0001_2.png"
    assert main.main([*command, str(photos / "0.png")]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["pictures"] == 1


def test_fits_are_calibrated_on_pictures_or_the_option_is_named(nets, photos, capsys):
    command = ["plan", f"{nets}:Net", "--interpolate", "fitted", "--mask", "lattice", "--size", "12x16"]
    assert main.main(command) == 1
    said = capsys.readouterr().err
    assert "--images" in said and "calibration=" not in said and said.count("\n") == 1
    assert main.main([*command, "--images", str(photos), "--format", "csv"]) == 0
    assert "fitted" in capsys.readouterr().out


SMALL = ("zoo:resnet14_cifar", "zoo:resnet32_cifar_sact", "zoo:demo_resnet", "torchvision:mobilenet_v2")
# of the registry's other models, tests/zoo/test_registry.py runs every one


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("verb", ["plan", "profile"])
def test_models_and_verbs(name, verb, capsys):
    assert name in list_models()
    assert main.main([verb, name, "--weights", "none", "--size", "64", "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"]["dense_macs"] == sum(row["dense_macs"] or 0 for row in printed["rows"]) > 0
    if verb == "profile":
        assert all(row["ms"] is None or row["ms"] >= 0 for row in printed["rows"])

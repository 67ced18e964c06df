"""The bench of foreign networks: its drawn weights hide nothing, its oracle is right, and a fault becomes a row."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import PIL.Image
import pytest
import torch
from torch import nn

import accel
from accel.bench import foreign as bench_foreign
from accel.bench import foreign_checks, foreign_nets, foreign_own, runner
from accel.cli import main
from accel.errors import ConfigError, DataError

SQUEEZENET = {"name": "torchvision:squeezenet1_1", "size": [64, 64], "other": [80, 48]}
RESNET = {"name": "torchvision:resnet18", "size": [64, 64], "other": [64, 96]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """Smooth ones, so that fitting has something to gain."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(24):
        coarse = torch.rand(1, 3, 6, 6, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(72, 96), mode="bicubic").clamp(0, 1)
        pixels = smooth[0].permute(1, 2, 0).mul(255).byte().numpy()
        PIL.Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.mark.parametrize("case", [SQUEEZENET, RESNET], ids=lambda case: case["name"])
def test_a_sound_network_passes_every_check(case, pictures):
    row = bench_foreign.examine(case, sorted(pictures.iterdir()), seed=0)
    assert row["correct"], row["reason"]
    assert set(foreign_checks.LIMITS) <= set(row)
    assert row["fast"] == 1 and row["outside"] == ""
    assert row["fitted"] == row["loss_fitted"] / row["loss_nearest"] <= 1
    assert row["loss_nearest"] > 0.01  # a half that loses nothing would prove nothing


def test_what_is_wrong_is_named(pictures, monkeypatch):
    convert = accel.convert_model

    def heavier(model, *args, **kwargs):
        fast = convert(model, *args, **kwargs)
        with torch.no_grad():
            fast.features[0].weight.mul_(1.01)
        return fast

    monkeypatch.setattr(accel, "convert_model", heavier)
    monkeypatch.setattr(accel, "save_converted", lambda model, folder: 1 / 0)
    row = bench_foreign.examine(SQUEEZENET, sorted(pictures.iterdir()), seed=0)
    assert not row["correct"]
    for check in ("keep_1", "half", "reverted", "other_size"):
        assert row[check] > 1e-4 and f"{check}: 0.0" in row["reason"]
    assert row["saved"] == float("inf") and "saved: ZeroDivisionError: division by zero" in row["reason"]
    assert row["copied"] == 0


def test_a_network_that_crashes_or_hangs_is_a_row(pictures, monkeypatch):
    monkeypatch.setattr(bench_foreign, "PRELOADED", [])  # the extra takes seconds to import
    isolated = bench_foreign.isolated
    assert "died with exit code -6" in isolated(os.abort, 60)
    assert isolated(functools.partial(time.sleep, 60), 1) == "gave up after 1 s"
    assert isolated(functools.partial(int, "x"), 60).startswith("ValueError: invalid literal")
    assert isolated(functools.partial(signal.raise_signal, signal.SIGINT), 60) is None  # Ctrl-C is the parent's
    monkeypatch.setattr(bench_foreign, "isolated", lambda work, seconds: "the process died with exit code -11")
    (row,) = bench_foreign.rows({**SQUEEZENET, "images": str(pictures)}, runner.Settings())
    assert (row["correct"], row["error"]) == (False, float("inf"))
    assert row["reason"] == "the process died with exit code -11"


ENDLESS = """
import functools, os, pathlib, sys, time
from accel.bench import foreign as bench_foreign

def work(path):
    pathlib.Path(path).write_text(f"{os.getpid()}\\n")
    time.sleep(600)

if __name__ == "__main__":
    bench_foreign.PRELOADED = []
    bench_foreign.isolated(functools.partial(work, sys.argv[1]), 600)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_a_killed_bench_leaves_no_network_running(tmp_path):
    script, told = tmp_path / "endless.py", tmp_path / "pid"
    script.write_text(ENDLESS)
    root = pathlib.Path(accel.__file__).parents[1]
    bench_process = subprocess.Popen([sys.executable, script, told], env={**os.environ, "PYTHONPATH": str(root)})
    until(lambda: told.exists() and told.read_text().endswith("\n"))
    bench_process.kill()
    bench_process.wait()
    until(lambda: not pathlib.Path("/proc", told.read_text().strip()).exists())


def until(condition, seconds=120):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def test_pictures_are_asked_for_before_anything_is_built(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        list(bench_foreign.rows({**SQUEEZENET, "images": str(tmp_path / "none")}, runner.Settings()))


def test_resume_keeps_what_is_right(pictures, tmp_path, monkeypatch, capsys):
    cases = tmp_path / "cases.toml"
    cases.write_text(
        'kind = "foreign"\n'
        + "".join(f'[[case]]\nname = "{name}"\n' for name in ("one", "two", "three"))
        + '[[bar]]\ncolumn = "keep_1"\nat_most = 1e-4\n'
    )
    asked = []

    def measure(case, settings):
        asked.append(case["name"])
        right = case["name"] != "two" or len(asked) > 3
        yield {
            "keep_1": 1e-6 if right else float("inf"),
            "error": 0.0,
            "correct": right,
            "reason": "" if right else "no",
        }

    monkeypatch.setattr(bench_foreign, "rows", measure)
    output = tmp_path / "rows.jsonl"
    argv = ["bench", str(cases), "--output", str(output)]
    assert main.main(argv) == 1
    captured = capsys.readouterr().err
    assert "wrong result in two: no" in captured
    assert "bar keep_1: MISSED, 2 of 3 rows at most 0.0001 (wanted 3), worst inf" in captured
    assert main.main([*argv, "--resume"]) == 0
    assert asked == ["one", "two", "three", "two"]
    assert "bar keep_1: reached, 3 of 3 rows" in capsys.readouterr().err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted((row["case"], row["correct"]) for row in rows) == [("one", True), ("three", True), ("two", True)]


class Branches(nn.Module):
    """All that an initialiser leaves alike: norms, biases, a layer scale, the zeros at the end of a residual unit."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.last, self.scale = nn.Conv2d(8, 8, 1), nn.Parameter(1e-6 * torch.ones(8, 1, 1))
        nn.init.zeros_(self.norm.weight)
        nn.init.constant_(self.conv.bias, 0.0)

    def forward(self, x):
        return self.scale * self.last(self.norm(self.conv(x)))


def test_drawing_leaves_nothing_alike():
    network = foreign_nets.Foreign(Branches().eval(), lambda x: (x,), lambda model, args: model(*args))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    foreign_checks.draw(network, x, torch.Generator().manual_seed(2))
    model = network.model
    for parameter in (model.norm.weight, model.norm.bias, model.conv.bias, model.scale):
        assert parameter.std() > 0.02 and parameter.abs().max() < 2
    with torch.no_grad():
        seen = model.conv(x)
        assert abs(float((seen - model.conv.bias[:, None, None]).square().mean()) - 1) < 1e-4
        ratio = model.norm.running_var / seen.var((0, 2, 3))
        assert ratio.min() > 0.4 and ratio.max() < 2.1 and ratio.std() > 0.05
        assert 0.05 < model(x).std() < 20


def test_the_oracle_fills_by_the_map_of_the_converted_network():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2, padding=1))
    x = torch.randn(2, 3, 11, 9)
    fast = accel.convert_model(model, accel.Rules({"2": accel.Perforate(keep=0.3, mask="uniform")}), example_inputs=x)
    positions = fast[2].position_set(5, 4)
    with torch.no_grad():
        full = model(x)
        with foreign_checks.filled_by_nearest(model, fast):
            filled = model(x)
        assert torch.equal(model(x), full)  # and it lets go
    for position in range(20):
        kept = int(positions.positions[positions.nearest[position]])
        assert torch.equal(filled.flatten(2)[..., position], full.flatten(2)[..., kept])


@pytest.mark.parametrize("name", foreign_own.NETWORKS)
def test_our_own_networks_run_and_hold_convolutions(name):
    network = foreign_nets.build(f"own:{name}")
    with torch.no_grad():
        outputs = network.read(network.model, network.inputs(torch.randn(2, 3, 32, 24)))
    assert foreign_checks.worst(outputs, outputs) == 0
    assert sum(isinstance(module, nn.Conv2d) for module in network.model.modules()) >= 3


def test_names_that_are_none(monkeypatch):
    for name, complaint in [
        ("resnet18", "give FAMILY:NAME"),
        ("own:resnet18", "no network 'resnet18', only dncnn"),
        ("torchvision:nothing", "nothing"),
    ]:
        with pytest.raises((ConfigError, ValueError), match=complaint):
            foreign_nets.build(name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'skimconv\[bench\]'"):
        foreign_nets.build("timm:resnet18")


def test_the_networks_of_the_table_are_known():
    timm = pytest.importorskip("timm", reason="the extra bench is not installed")
    import torchvision

    folder = pathlib.Path(__file__).resolve().parents[2] / "profiles" / "cases"
    names = [case["name"].split(":") for case in runner.read_cases(folder / "foreign.toml")["case"]]
    assert len(names) >= 70 and len({tuple(name) for name in names}) == len(names)
    assert all(timm.is_model(name) for family, name in names if family == "timm")
    assert {name for family, name in names if family == "torchvision"} <= set(torchvision.models.list_models())
    assert {name for family, name in names if family == "own"} == set(foreign_own.NETWORKS)

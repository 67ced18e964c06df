"""Bad command lines: one line on stderr that names the thing, nothing on stdout, and the right exit code."""

import pathlib

import PIL.Image
import pytest

from accel.cli import main

CIFAR, DEMO, SACT = "zoo:resnet20_cifar", "zoo:demo_resnet", "zoo:resnet32_cifar_sact"
OUT = "-o out"

BAD = [
    ("", 2, "VERB"),
    ("dance", 2, "invalid choice: 'dance'"),
    ("profile", 2, "MODEL"),
    (f"plan {CIFAR} --keep abc", 2, "--keep: invalid float value: 'abc'"),
    (f"plan {CIFAR} --size 3x4x5", 2, "no image size"),
    (f"plan {CIFAR} --batch 0", 2, "not a whole number of at least 1"),
    (f"profile {CIFAR} --mean a", 2, "'a' is no number"),
    ("list models --format yaml", 2, "invalid choice: 'yaml'"),
    (f"convert {DEMO} --images ok", 2, "-o/--output"),
    (f"search {DEMO} --images ok {OUT}", 2, "--speedup"),
    (f"search {DEMO} --images ok --data ok --macs 0.5 {OUT}", 2, "not allowed with argument"),
    ("plan nets.py", 1, "no model 'nets.py'"),
    ("plan zoo:nothing", 1, "zoo:nothing"),
    (f"plan {CIFAR} --keep 2", 1, "(0, 1]"),
    (f"plan {CIFAR} --mask spiral", 1, "spiral"),
    (f"plan {CIFAR} --mask impact", 1, "--images"),
    (f"profile {CIFAR} --interpolate fitted", 1, "--images"),
    (f"plan {SACT} --keep 0.5", 1, "converted already"),
    (f"plan {CIFAR} --rules none.json", 1, "none.json"),
    (f"plan {CIFAR} --rules empty.json", 1, "empty.json"),
    (f"profile {CIFAR} --weights notes.txt", 1, "suffix '.txt'"),
    (f"profile {CIFAR} --weights none.pt", 1, "none.pt"),
    (f"profile {CIFAR} --source nets.py:f", 1, "--source"),
    (f"profile {CIFAR} --std 0.5", 1, "brings its own preprocessing: leave out --std"),
    (f"profile {CIFAR} --batch 1000000000", 1, "out of memory"),
    ("profile empty", 1, "source.json"),
    (f"profile {CIFAR} --images cut", 1, "none of 1 pictures can be read"),
    (f"eval {CIFAR} --data none", 1, "no data set at none"),
    (f"eval {CIFAR} --data empty", 1, "no data set at empty"),
    (f"ponder {SACT} --images none {OUT}", 1, "no folder or picture none"),
    (f"ponder {SACT} --images cut {OUT}", 1, "cut.jpg"),
    (f"ponder {CIFAR} --images ok {OUT}", 1, "not adaptive"),
    (f"ponder {SACT} --images ok -o notes.txt", 1, "notes.txt"),
    (f"convert {CIFAR} --images ok {OUT}", 1, "pass --weights FILE"),
    (f"convert {SACT} --images ok {OUT}", 1, "perforate the plain network instead"),
    (f"convert {DEMO} --images empty {OUT}", 1, "holds no pictures"),
    (f"convert {DEMO} --images ok --interpolate fitted {OUT}", 1, "two or more with --images"),
    (f"convert {DEMO} --images ok --speedup 2 --keep 0.5 {OUT}", 1, "leave out --keep"),
    (f"search {DEMO} --images ok --speedup -1 {OUT}", 1, "at least 1"),
    (f"finetune empty --teacher {DEMO} --images ok {OUT}", 1, "config.json"),
    (f"train none.toml --data empty {OUT}", 1, "none.toml"),
    ("bench none.toml", 1, "none.toml"),
    ("demo -o notes.txt", 1, "notes.txt"),
]


@pytest.mark.parametrize(("line", "code", "named"), BAD, ids=[line for line, *_ in BAD])
def test_a_bad_command_line_is_one_line(line, code, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "ok", "cut"):
        pathlib.Path(folder).mkdir()
    PIL.Image.new("RGB", (40, 40)).save("ok/black.png")
    PIL.Image.effect_noise((64, 64), 50).save("cut/cut.jpg")
    cut = pathlib.Path("cut/cut.jpg")
    cut.write_bytes(cut.read_bytes()[:900])
    pathlib.Path("empty.json").write_text("{}")
    pathlib.Path("notes.txt").write_text("notes")
    assert main.main(line.split()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("accel"), captured.err
    assert named in captured.err and "calibration=" not in captured.err and "Traceback" not in captured.err
    assert not pathlib.Path("out").exists() and not list(tmp_path.rglob("*.partial"))

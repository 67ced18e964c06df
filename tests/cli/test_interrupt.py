"""Ctrl-C in the middle of every long verb: one line, exit status 130, no half-written file, and what can goes on."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import PIL.Image
import pytest
import torch

import accel
from accel.cli import main, user_models

NETS = """
from torch import nn

def edges():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
    return nn.Sequential(*layers, nn.Sigmoid())
"""
CLASSIFIER = """
model.name = "zoo:resnet14_cifar"
adaptive = { kind = "sact", tau = 0.01 }
data.batch = 4
fit = { steps = 6, lr = 0.01, checkpoint_every = 2 }
"""
CASES = "kind = 'nearest'\nevery = { keep = 0.5, mask = 'uniform', height = 8 }\n" + "".join(
    f"[[case]]\nname = '{width}'\nwidth = {width}\n" for width in (8, 9, 10)
)
MODEL, PICTURES = "nets.py:edges", "--images data/test --size 16"


def changed(*changes: str) -> str:
    return " ".join(f"--set {change}" for change in ("fit.steps=6", "fit.checkpoint_every=2", *changes))


SEQUENCE = changed("sequence.length=6", "cell.hidden=8", "cell.max_steps=3", "data.batch=4")
INPAINTER = changed("vaeac.widths=[8,8]", "vaeac.blocks=[1,1]", "data.crop=16", "data.batch=4")
FCN, VAE = changed("segmentation.size=80", "data.batch=2"), changed("data.batch=20")
TUNED = f"converted --teacher {MODEL} {PICTURES} --steps 6 --checkpoint-every 2"
A_STEP = "accel.train.loop:mean_over_processes 4"  # the fourth: two are in the checkpoint

# name -> (the command, the call that it is interrupted at and which of them)
WHOLE = {  # what they write is there as a whole, or not at all
    "convert": (f"convert {MODEL} {PICTURES} -o out", "accel.cli.convert:save_verified 1"),
    "convert --speedup": (f"convert {MODEL} {PICTURES} --speedup 1.1 -o out", "accel.greedy.measure:compare 1"),
    "profile": (f"profile {MODEL} --size 16 --keep 0.5 -o out", "accel.cli.profile:_write 1"),
    "export": (f"export {MODEL} --size 16 -o out.onnx", "accel.export.onnx:_write 1"),
    "eval": ("eval zoo:resnet14_cifar --data data --no-compile", "accel.profiling.latency:compare 1"),
    "eval of a VAE": ("eval zoo:vae_digits --samples 2 --limit 9 -o out", "accel.cli.vae_report:_facts 1"),
    "ponder": ("ponder zoo:resnet32_cifar_sact --images data/test -o out", "accel.cli.ponder:draw 2"),
    "impute": ("impute table.csv -m 2 --epochs 1 --no-check -o out", "accel.cli.impute_report:write_report 1"),
    "inpaint": ("inpaint --model inpainter -n 1 -o out", "accel.cli.inpaint:_write 2"),
    "demo": ("demo -o out", "accel.zoo.shapes:normalise 1"),
    "demo of the VAE": ("demo vae -o out", "accel.cli.vae_report:_facts 1"),
    "bench of a study": ("bench mc --quick --output out", "accel.bench.mc:bias_grid 1"),
    "plan": (f"plan {MODEL} --size 16", "accel.cli.conversion:example 1"),
}
GOES_ON = {  # and the file that tells how far they were
    "train": ("train classifier.toml --data data -o out", A_STEP, "checkpoint.pt"),
    "train a recurrent network": (f"train parity -o out {SEQUENCE}", A_STEP, "checkpoint.pt"),
    "train a segmenting network": (f"train shape_fcn -o out {FCN}", A_STEP, "checkpoint.pt"),
    "train a VAE": (f"train vae_digits -o out {VAE}", A_STEP, "checkpoint.pt"),
    "train an inpainter": (f"train inpaint_shapes -o out {INPAINTER}", A_STEP, "checkpoint.pt"),
    "finetune": (f"finetune {TUNED} -o out", A_STEP, "checkpoint.pt"),
    "search": (
        f"search {MODEL} {PICTURES} --macs 0.5 --dense 0 --dense 4 -o out",
        "accel.greedy.journal:write_text 3",
        "journal.json",
    ),
    "bench": (
        "bench cases.toml --quick --resume --output out/rows.jsonl",
        "accel.bench.runner:write_text 2",
        "rows.jsonl",
    ),
}
QUICK = {
    "accel.cli.demo:_TEST_PICTURES": 8,
    "accel.cli.inpaint:_SIZE": 80,
    "accel.cli.inpaint:_DRAWN": 2,
    "accel.cli.inpainter_training:_REPORTED": 2,
    "accel.cli.segmentation_training:_REPORTED": 2,
    "accel.cli.sequence_training:_REPORTED": 50,
    "accel.cli.vae_training:_REPORTED": 10,
    "accel.cli.vae_eval:_DEMO_SAMPLES": 2,
}
LOADED = (*(place.partition(":")[0] for place in QUICK), "torchvision", "matplotlib.figure", "pandas", "sklearn")
LOADED += ("accel.api", "accel.export", "accel.vae.imputer", "accel.cli.training", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def verbs(request):
    """(line, folder, place) -> what became of the verb that was interrupted there; without a place it ends."""
    script = pathlib.Path(__file__).with_name("forked_verbs.py")
    server = subprocess.Popen(
        [sys.executable, str(script), json.dumps(LOADED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(line: str, folder: pathlib.Path, place: str) -> dict:
        function, count = place.split()
        asked = {"argv": line.split(), "folder": str(folder), "place": function, "count": int(count), "settings": QUICK}
        print(json.dumps(asked), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    with server:
        yield ask
        server.stdin.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory, verbs):
    """A folder of what the verbs read."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(4):
            path = folder / "data" / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    lines = [f"{rng.normal():.2f},{rng.choice(['red', ''])}" for _ in range(20)]
    for name, text in (
        ("nets.py", NETS),
        ("classifier.toml", CLASSIFIER),
        ("cases.toml", CASES),
        ("table.csv", "\n".join(["size,colour", *lines])),
    ):
        (folder / name).write_text(text)
    fast = accel.convert_model(
        user_models.build(f"{folder}/{MODEL}"), accel.Perforate(keep=0.5), example_inputs=torch.zeros(1, 3, 16, 16)
    )
    accel.save_converted(fast, folder / "converted")
    done = verbs(f"train inpaint_shapes -o inpainter {INPAINTER}", folder, f"{A_STEP[:-2]} 0")
    assert done["code"] == 0, done["err"]
    return folder


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def written(folder: pathlib.Path) -> list[str]:
    """Every file and folder below, but for those that were there."""
    found = (path for path in folder.iterdir() if not path.is_symlink())
    return sorted(str(path.relative_to(folder)) for top in found for path in (top, *top.rglob("*")))


def assert_interrupted(done: dict) -> None:
    assert done["code"] == 130, done
    last = done["err"].strip().splitlines()[-1]
    assert last == "accel: interrupted" and "Traceback" not in done["err"] and "ignored" not in done["err"], done["err"]


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_left_half_written(name, folder, verbs):
    line, place = WHOLE[name]
    assert_interrupted(verbs(line, folder, place))
    assert written(folder) == (["out"] if name == "bench of a study" else [])


@pytest.mark.parametrize("name", GOES_ON)
def test_the_same_command_goes_on(name, folder, verbs):
    line, place, file = GOES_ON[name]
    assert_interrupted(verbs(line, folder, place))
    assert not [path for path in written(folder) if "partial" in path or path.endswith("model.safetensors")]
    found = folder / "out" / file
    before, call = found.read_bytes(), place.rpartition(" ")[0]
    done = verbs(line, folder, f"{call} 0")
    assert done["code"] == 0, done["err"]
    assert not [path for path in written(folder) if "partial" in path]
    if file == "checkpoint.pt":
        assert done["calls"] == 4  # of the six steps, two are in the checkpoint
        rows = (folder / "out" / "loss.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3", "4", "5", "6"]
    elif file == "journal.json":
        kept, after = (json.loads(text)["found"] for text in (before, found.read_bytes()))
        assert len(kept) == 2 and kept.items() <= after.items() and done["calls"] == len(after) - 2
    else:
        assert found.read_bytes().startswith(before) and before.count(b"\n") == 1 and done["calls"] == 2


def test_what_an_interrupted_verb_would_have_replaced_stays(folder, verbs):
    line, place = WHOLE["ponder"]
    (folder / "out").mkdir()
    (folder / "out" / "ponder.json").write_text("{}")
    assert_interrupted(verbs(line, folder, place))
    assert written(folder) == ["out", "out/ponder.json"]


@pytest.fixture
def interruptible():
    """Processes of pytest-xdist ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_python_drops_comes_again(monkeypatch, capsys, interruptible):
    """What a callback of weakref raises goes nowhere."""

    def raised(_reference):
        raise KeyboardInterrupt

    def run(_args):
        dropped = torch.zeros(1)
        reference = weakref.ref(dropped, raised)
        del dropped
        for _ in range(1000):
            time.sleep(0.01)
        return 0 if reference() is None else 1

    monkeypatch.setattr("accel.cli.env.run", run)
    before = sys.unraisablehook
    assert main.main(["env"]) == 130
    assert capsys.readouterr().err == "accel: interrupted\n" and sys.unraisablehook is before

"""The main job end to end on a small network of the user's own, and every kind of bad input."""

import csv
import json
import pathlib
import shutil

import PIL.Image
import pytest
import torch

import accel
from accel.cli import main
from accel.cli.convert_report import in_words

NETS = """
import torch
from torch import nn

def edges():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 1), nn.Sigmoid(),
    )

def classes():
    torch.manual_seed(0)
    return nn.Sequential(edges()[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 32, 3))

def number():
    return 7
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        torch.manual_seed(seed)
        pixels = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"photo{seed}.png")
    return folder


def convert(model, photos, out, *more):
    size = () if "--size" in more else ("--size", "24x32")
    return main.main(["convert", str(model), "--images", str(photos), "-o", str(out), *size, *more])


def test_an_edge_detector(nets, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(f"{nets}:edges", photos, out, "--batch", "2", "--keep", "0.5", "--mask", "lattice") == 0
    captured = capsys.readouterr()
    assert "dense MACs" in captured.out and "executed MACs" in captured.out
    assert "\nspeed-up:  " in captured.out and "on 3 pictures, IoU at 0.5 " in captured.out
    assert "loaded back: same outputs" in captured.err
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [f"000{i}_photo{i}.png" for i in range(3)]
    assert PIL.Image.open(out / "pictures" / "0000_photo0.png").size == (4 * 32 + 3 * 4, 24)

    report = json.loads((out / "report.json").read_text())
    summary = report["summary"]
    assert summary["pictures"] == 3 and summary["size"] == "24x32" and summary["batch"] == 2
    assert summary["dense_macs"] == 2 * 24 * 32 * (27 * 8 + 72 * 8 + 8)
    assert summary["executed_macs"] == summary["dense_macs"] // 2
    assert summary["theoretical_speedup"] == 2
    assert 0 < summary["mean_abs_difference"] < 0.2
    assert 0 <= summary["iou_at_0.5"] <= 1
    assert summary["speedup"] > 0 and summary["fastest_dense"] in ("dense_nchw", "dense_channels_last")
    assert len(report["layers"]) >= 3
    page = (out / "report.html").read_text()
    assert (
        "On 3 pictures that nothing was calibrated on its maps differ by" in page and "for 2 pictures of 24x32" in page
    )
    assert page.count("data:image/png;base64,") == 1 + 3 and "0000_photo0: picture, dense output" in page
    assert all(f"<td>{row['layer']}</td>" in page for row in report["layers"])
    assert PIL.Image.open(out / "computed.png").width > 1000


def test_a_classifier_at_keep_1_agrees(nets, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(f"{nets}:classes", photos, out, "--keep", "1", "--format", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["summary"]["top1_agreement"] == 1
    assert printed["summary"]["mean_abs_difference"] < 1e-6
    assert not (out / "pictures").exists()


def test_low_rank_before(nets, photos, tmp_path, capsys):
    """What a rule leaves dense stays whole; what is saved loads on the network that was given."""
    out, rules = tmp_path / "out", tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlayers = "0"\ndense = true\n[[rule]]\nlayers = "*"\nkeep = 0.5\nmask = "lattice"\n')
    assert convert(f"{nets}:edges", photos, out, "--low-rank", "0.6", "--rules", str(rules)) == 0
    captured = capsys.readouterr()
    assert "calibrating on the first 1 picture" in captured.err and "loaded back: same outputs" in captured.err
    ranks = json.loads((out / "model" / "config.json").read_text())["ranks"]
    assert ranks.keys() == {"3"}
    summary = json.loads((out / "report.json").read_text())["summary"]
    assert summary["dense_macs"] == 24 * 32 * (27 * 8 + 72 * 8 + 8)
    assert summary["executed_macs"] < 0.6 * summary["dense_macs"]
    assert main.main(["profile", str(out / "model"), "--size", "24x32", "--source", f"{nets}:edges"]) == 0
    assert convert(f"{nets}:edges", photos, tmp_path / "b", "--low-rank", "1.5", "--keep", "0.5") == 1
    assert "macs is a share" in capsys.readouterr().err
    assert convert(f"{nets}:edges", photos, tmp_path / "c", "--low-rank", "0.5", "--speedup", "2") == 1
    assert "--speedup chooses low ranks by itself" in capsys.readouterr().err


def test_rules_give_ranks(nets, photos, tmp_path, capsys):
    """As those that a search leaves."""
    out, rules = tmp_path / "out", tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlayers = "3"\nkeep = 1.0\nrank = 2\n[[rule]]\nlayers = "*"\ndense = true\n')
    assert convert(f"{nets}:edges", photos, out, "--rules", str(rules)) == 0
    assert "loaded back: same outputs" in capsys.readouterr().err
    assert json.loads((out / "model" / "config.json").read_text())["ranks"] == {"3": 2}
    summary = json.loads((out / "report.json").read_text())["summary"]
    assert summary["dense_macs"] - summary["executed_macs"] == 24 * 32 * (72 * 8 - 2 * (72 + 8))


def test_a_saved_folder_loads_in_python(nets, photos, tmp_path):
    assert convert(f"{nets}:edges", photos, tmp_path / "out", "--keep", "0.4", "--quiet") == 0
    namespace = {}
    exec(NETS, namespace)
    torch.manual_seed(9)
    fast = accel.load_converted(tmp_path / "out" / "model", namespace["edges"]())
    x = torch.randn(1, 3, 24, 32)
    expected = accel.convert_model(namespace["edges"]().eval(), accel.Perforate(keep=0.4), example_inputs=x)
    with torch.inference_mode():
        assert torch.equal(fast.eval()(x), expected(x))


def test_rules_file_and_seed_are_obeyed(nets, photos, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlayers = "0"\ndense = true\n[[rule]]\nlayers = "*"\nkeep = 0.5\nmask = "lattice"\n')
    assert convert(f"{nets}:edges", photos, tmp_path / "out", "--rules", str(rules), "--quiet") == 0
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["summary"]
    assert summary["executed_macs"] == 24 * 32 * (27 * 8 + (72 * 8 + 8) // 2)


def test_a_fit_is_judged_on_pictures_it_did_not_see(nets, photos, tmp_path, capsys):
    options = ("--keep", "0.5", "--mask", "lattice", "--interpolate", "fitted")
    assert convert(f"{nets}:edges", photos, tmp_path / "out", *options) == 0
    assert "calibrating on the first 1 pictures, comparing on the other 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["summary"]["pictures"] == 2


def test_a_fit_needs_a_second_picture(nets, photos, tmp_path, capsys):
    options = ("--interpolate", "fitted", "--limit", "1")
    check_refused(capsys, tmp_path, convert(f"{nets}:edges", photos, tmp_path / "out", *options), "two or more")


BAD = [
    (["--keep", "0"], "(0, 1]"),
    (["--keep", "1.5"], "(0, 1]"),
    (["--keep", "nan"], "(0, 1]"),
    (["--mask", "spiral"], "spiral"),
    (["--interpolate", "magic"], "magic"),
    (["--rules", "none.toml"], "none.toml"),
    (["--weights", "none.safetensors"], "none.safetensors"),
    (["--size", "2x2", "--keep", "0.5", "--rules", "none.toml"], "--rules already says"),
]


@pytest.mark.parametrize(("more", "named"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_values_take_one_line_and_leave_nothing(nets, photos, tmp_path, capsys, more, named):
    check_refused(capsys, tmp_path, convert(f"{nets}:edges", photos, tmp_path / "out", *more), named)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("zoo:none", "zoo:none"),
        ("zoo:hed_vgg16", "--weights FILE"),
        ("torchvision:none", "torchvision:none"),
        ("vgg16", "'vgg16'"),
        ("none.py:f", "none.py"),
        ("{nets}:none", "no function 'none'"),
        ("{nets}:number", "returned int"),
        ("{nets}:linear", "no nn.Conv2d"),
    ],
)
def test_bad_models(nets, photos, tmp_path, capsys, model, named):
    check_refused(capsys, tmp_path, convert(model.format(nets=nets), photos, tmp_path / "out"), named)


def test_a_rule_that_matches_nothing(nets, photos, tmp_path, capsys):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nlayers = "encoder.*"\nkeep = 0.5\n')
    code = convert(f"{nets}:edges", photos, tmp_path / "out", "--rules", str(rules))
    check_refused(capsys, tmp_path, code, "encoder.*")


def test_bad_picture_folders(nets, photos, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    check_refused(capsys, tmp_path, convert(f"{nets}:edges", empty, tmp_path / "out"), "holds no pictures")
    check_refused(capsys, tmp_path, convert(f"{nets}:edges", tmp_path / "gone", tmp_path / "out"), "no folder")
    for photo in photos.iterdir():
        photo.write_bytes(b"\xff\xd8\xff nothing")
    check_refused(
        capsys, tmp_path, convert(f"{nets}:edges", photos, tmp_path / "out"), "none of 3 pictures can be read"
    )


def test_an_output_folder_that_cannot_be_written(nets, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code = convert(f"{nets}:edges", photos, tmp_path / "file" / "out")
    check_refused(capsys, tmp_path, code, "cannot write the folder")


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04 not a checkpoint"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_weights(nets, photos, tmp_path, capsys, content, suffix):
    weights = tmp_path / f"bad{suffix}"
    weights.write_bytes(content)
    code = convert(f"{nets}:edges", photos, tmp_path / "out", "--weights", str(weights))
    check_refused(capsys, tmp_path, code, f"bad{suffix}")


def test_foreign_weights(nets, photos, tmp_path, capsys):
    weights = tmp_path / "foreign.pt"
    torch.save({"encoder.weight": torch.zeros(3)}, weights)
    code = convert(f"{nets}:edges", photos, tmp_path / "out", "--weights", str(weights))
    check_refused(capsys, tmp_path, code, "foreign.pt")


@pytest.fixture(scope="module")
def saved_resnet(tmp_path_factory):
    """The folder of a converted CIFAR ResNet, as convert leaves it."""
    from accel.cli import models
    from accel.zoo.registry import get_model

    folder = tmp_path_factory.mktemp("saved")
    net = get_model("zoo:resnet20_cifar")
    accel.save_converted(
        accel.convert_model(net, accel.Perforate(keep=0.5), example_inputs=torch.randn(1, 3, 32, 32)), folder
    )
    models.write_source(folder, models.Resolved(net, "zoo:resnet20_cifar"))
    return folder


def damage(folder, tmp_path, file, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", lambda config: config.update(version=99), "99"),
        ("config.json", lambda config: config.update(format="other"), "copy"),
        ("source.json", lambda source: source.update(model="zoo:hed_vgg16"), "another model"),
        ("source.json", lambda source: source.update(model="zoo:unheard_of"), "unheard_of"),
        ("source.json", lambda source: source.update(model="evil.py:run"), "--source"),
        ("source.json", lambda source: source.update(schema=99), "99"),
        ("source.json", lambda source: source.clear(), "damaged"),
    ],
)
def test_a_saved_folder_of_another_model_or_version(saved_resnet, tmp_path, capsys, file, change, named):
    folder = damage(saved_resnet, tmp_path, file, change)
    check_refused(capsys, tmp_path, main.main(["profile", str(folder)]), named)


def test_folders_that_were_never_saved(saved_resnet, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    check_refused(capsys, tmp_path, main.main(["profile", str(tmp_path / "empty")]), "source.json")
    shutil.copytree(saved_resnet, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    check_refused(capsys, tmp_path, main.main(["profile", str(tmp_path / "cut")]), "cut")
    check_refused(capsys, tmp_path, main.main(["profile", str(saved_resnet), "--weights", "w.pt"]), "--weights")
    check_refused(capsys, tmp_path, main.main(["profile", str(saved_resnet), "--keep", "0.5"]), "converted already")


def test_a_saved_folder_is_profiled_beside_its_dense_form(saved_resnet, capsys):
    assert main.main(["profile", str(saved_resnet), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert 0.4 < printed["total"]["executed_macs"] / printed["total"]["dense_macs"] < 0.6


def test_plan_shows_what_would_be_done(capsys):
    assert main.main(["plan", "zoo:resnet20_cifar", "--keep", "0.25", "--mask", "lattice", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0]["layer"] == "conv1" and rows[0]["keep"] == ""
    perforated = [row for row in rows if row["keep"]]
    assert len(perforated) == 18
    assert all(int(row["executed_macs"]) * 4 == int(row["dense_macs"]) for row in perforated)


@pytest.mark.parametrize(("style", "mark"), [("table", "─"), ("md", "| --- |"), ("csv", "layer,shape,")])
def test_plan_prints_every_format(style, mark, capsys):
    assert main.main(["plan", "zoo:resnet20_cifar", "--format", style]) == 0
    printed = capsys.readouterr().out
    assert mark in printed and "layer3.2.conv2" in printed


def check_refused(capsys, tmp_path: pathlib.Path, code: int, named: str) -> None:
    """Exit code 1, one line on stderr that names the thing, nothing printed, nothing half-written."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("accel: ")]
    assert code == 1 and len(lines) == 1 and named in lines[0], captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_speedup_is_searched_for_on_pictures_that_are_not_compared(nets, photos, tmp_path, monkeypatch, capsys):
    asked = {}

    def search(_model, *, example_inputs, calibration, **options):
        asked.update(options, example=tuple(example_inputs.shape), known=[len(part) for part in calibration])
        return accel.Rules({"0": None, "3": accel.Perforate(keep=0.25), "*": None})

    monkeypatch.setattr(accel, "search", search)
    out = tmp_path / "out"
    assert (
        convert(
            f"{nets}:edges",
            photos,
            out,
            "--batch",
            "2",
            "--speedup",
            "1.5",
            "--minutes",
            "3",
            "--precision",
            "int8",
            "--seed",
            "4",
        )
        == 0
    )
    assert list(asked.pop("track")(range(2), "looking")) == [0, 1]
    assert asked == {
        "speedup": 1.5,
        "minutes": 3.0,
        "precision": "int8",
        "seed": 4,
        "example": (2, 3, 24, 32),
        "known": [1],
    }
    layers = {row["layer"]: row["keep"] for row in json.loads((out / "report.json").read_text())["layers"]}
    assert layers["3"] == pytest.approx(0.25, abs=0.05)
    assert json.loads((out / "report.json").read_text())["summary"]["pictures"] == 2
    assert "calibrating on the first 1 pictures, comparing on the other 2" in capsys.readouterr().err


def test_bf16_where_it_is_rounded_in_software_is_said(nets, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("accel.nn.precision.multiplies_bf16", lambda device: False)
    out = tmp_path / "out"
    assert convert(f"{nets}:edges", photos, out, "--keep", "0.5", "--precision", "bf16") == 0
    printed, report = capsys.readouterr(), json.loads((out / "report.json").read_text())
    said = report["summary"]["imitated"]
    assert said.startswith("precision 'bf16': this CPU has no bf16 instructions") and "\n" not in said
    assert f"accel: warning: {said}" in printed.err and said.split(",")[0] in printed.out
    assert "Beware: precision" in (out / "report.html").read_text()
    assert "bf16" in {row.get("precision") for row in report["layers"]}


def test_a_speedup_leaves_no_room_for_other_options(nets, photos, tmp_path, capsys):
    assert convert(f"{nets}:edges", photos, tmp_path / "out", "--speedup", "2", "--keep", "0.5") == 1
    assert "--speedup finds what to keep: leave out --keep" in capsys.readouterr().err
    assert convert(f"{nets}:edges", photos, tmp_path / "out", "--speedup", "0.5") == 1
    assert "speedup" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_page_says_when_a_conversion_is_of_no_use():
    summary = {
        **{"batch": 1, "size": "8x8", "threads": 2, "dense_macs": 10, "executed_macs": 5, "pictures": 1},
        **{"fastest_dense": "dense_nchw", "dense_nchw_ms": 1.0, "converted_ms": 1.25, "speedup": 0.8},
        **{"theoretical_speedup": 2.0, "mean_abs_difference": 0.125},
    }
    first, second, last = in_words(summary)
    assert "takes 1.25 milliseconds for 1 picture of 8x8 pixels" in first and "does 50 % of the" in first
    assert second == "That is slower than the original: this conversion is of no use on this machine."
    assert (
        last
        == "On 1 picture that nothing was calibrated on its outputs differ from the original's by 0.125 on average."
    )
    assert len(in_words({**summary, "speedup": 1.5})) == 2
    assert "same class as the original in 75.0 %" in in_words({**summary, "top1_agreement": 0.75})[-1]


def test_a_trained_adaptive_network_in_eight_bits(photos, tmp_path, capsys):
    """Its positions stay its own; anything else asked of it is refused, and the folder loads and runs again."""
    name, out = "zoo:resnet32_cifar_sact", tmp_path / "out"
    assert convert(name, photos, out, "--keep", "1", "--precision", "int8") == 0
    report = json.loads((out / "report.json").read_text())
    rows = {row["layer"]: row for row in report["layers"]}
    assert all(rows[stage]["precision"] == "int8" and 0 < rows[stage]["keep"] < 1 for stage in ("layer1", "layer3"))
    assert report["summary"]["mean_abs_difference"] < 1
    assert main.main(["profile", str(out / "model"), "--size", "24x32", "--format", "json"]) == 0
    capsys.readouterr()
    for asked, said in (
        (["--keep", "0.5"], "perforate the plain network instead, or give keep 1 and precision 'int8'"),
        (["--speedup", "2"], "is converted already"),
        (["--keep", "1", "--precision", "int8", "--low-rank", "0.5"], "is converted already"),
    ):
        assert convert(name, photos, tmp_path / "other", *asked) == 1
        assert said in capsys.readouterr().err

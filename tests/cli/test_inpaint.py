"""`accel train` of an inpainting model and `accel inpaint`: files in, samples and a contact sheet out."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from accel.cli.main import main
from accel.vae import PICTURE_MASKS
from accel.vae import inpaint as inpaint_pictures
from accel.vae.inpainting import psnr
from accel.zoo import runs
from accel.zoo.inpainters import build_inpainter, load_inpainter
from accel.zoo.shapes import draw_shapes
from accel.zoo.weights_io import save_half

GREY = {"channels": 1, "widths": [6, 8], "blocks": [1, 1], "latent": 2}
SMALL = (
    "fit.steps=4",
    "fit.checkpoint_every=2",
    "vaeac.widths=[8, 8]",
    "vaeac.blocks=[1, 1]",
    "data.crop=16",
    "data.batch=4",
)


def train(folder, *changes):
    given = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return main(["train", "inpaint_shapes", "-o", str(folder), "--quiet", *given])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(folder) == 0
    return folder


def save(path, pixels):
    path.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


@pytest.fixture
def files(tmp_path):
    """Two pictures of odd sizes, a mask for each."""
    for number, size in enumerate([(21, 30), (16, 17)]):
        rng = np.random.default_rng(number)
        save(tmp_path / "pictures" / f"p{number}.png", rng.integers(0, 256, (*size, 3)))
        mask = np.zeros(size)
        mask[5:12, 4:10] = 255
        save(tmp_path / "masks" / f"p{number}.png", mask)
    return tmp_path


def inpaint(*arguments):
    return main(["inpaint", *map(str, arguments), "--quiet", "--format", "json"])


def test_training_says_what_it_reaches_and_goes_on(tmp_path, capsys):
    assert train(tmp_path / "a") == 0
    first = capsys.readouterr().out
    assert " dB by the mean of 5 samples" in first
    assert train(tmp_path / "b", "fit.steps=4") == 0
    assert capsys.readouterr().out.replace("/b/", "/a/") == first
    assert train(tmp_path / "a", "data.masks='half'") == 1
    assert "[data] is another than this recipe's" in capsys.readouterr().err


def test_files_in_files_out(trained, files, capsys):
    out = files / "out"
    assert inpaint(files / "pictures", files / "masks", "-o", out, "-n", 2, "--model", trained) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["picture"] for row in rows] == ["p0", "p1"] and rows[0]["size"] == "21x30"
    assert rows[0]["hidden"] == pytest.approx(42 / 630, abs=1e-4) and all(row["seconds"] > 0 for row in rows)
    for name in ("p0", "p1"):
        picture, mask = (np.asarray(PIL.Image.open(files / folder / f"{name}.png")) for folder in ("pictures", "masks"))
        samples = [np.asarray(PIL.Image.open(out / f"{name}_{number}.png")) for number in (1, 2)]
        for sample in samples:
            assert (sample[mask == 0] == picture[mask == 0]).all()
        assert (samples[0] != samples[1]).any()
    sheet = np.asarray(PIL.Image.open(out / "contact_sheet.png"))
    high, wide = 9 * 16, 9 * 17  # of the second picture, each pixel nine by nine; the first is 5 * 21 by 5 * 30
    assert sheet.shape == (2 * (high + 4) + 4, 4 * (wide + 4) + 4, 3)
    last = np.asarray(PIL.Image.open(out / "p1_2.png"))
    assert (sheet[high + 8 :][:high, 3 * (wide + 4) + 4 :][:, :wide] == last.repeat(9, 0).repeat(9, 1)).all()


def test_one_mask_for_all_and_drawn_masks(trained, files, capsys):
    (files / "pictures" / "p1.png").unlink()
    assert inpaint(files / "pictures", files / "masks" / "p0.png", "-o", files / "a", "--model", trained) == 0
    assert inpaint(files / "pictures", "--masks", "centre", "-o", files / "b", "-n", 1, "--model", trained) == 0
    row = json.loads(capsys.readouterr().out.split("]\n")[1] + "]")[0]
    assert row["hidden"] == pytest.approx(0.25, abs=0.03)


def test_a_model_of_grey_pictures_reads_and_writes_them(tmp_path, files, trained, monkeypatch):
    torch.manual_seed(0)
    vaeac, recipe = build_inpainter(GREY), {"vaeac": GREY}
    monkeypatch.setattr("accel.zoo.inpainters.load_inpainter", lambda spec: (vaeac.eval(), recipe))
    grey = np.random.default_rng(0).integers(0, 256, (16, 17), dtype=np.uint8)
    save(files / "pictures" / "p1.png", grey)
    assert inpaint(files / "pictures", files / "masks", "-o", files / "out", "-n", 1, "--model", "any") == 0
    mask = np.asarray(PIL.Image.open(files / "masks" / "p1.png"))
    sample = np.asarray(PIL.Image.open(files / "out" / "p1_1.png"))
    assert sample.shape == (16, 17) and (sample[mask == 0] == grey[mask == 0]).all()
    assert PIL.Image.open(files / "out" / "p0_1.png").mode == "L"


def test_without_a_model_the_one_that_ships_is_taken(tmp_path, monkeypatch, capsys):
    """Its recipe is the packaged one; weights of that shape stand in for it here."""
    torch.manual_seed(0)
    vaeac = build_inpainter(runs.read_recipe(runs.recipe_path("inpaint_shapes"))["vaeac"])
    save_half(vaeac, tmp_path / "inpaint_shapes.safetensors")
    assert (tmp_path / "inpaint_shapes.safetensors").stat().st_size < 8e6
    monkeypatch.setattr(runs, "weights_path", lambda name: tmp_path / f"{name}.safetensors")
    monkeypatch.setattr("accel.cli.inpaint._DRAWN", 1)
    assert inpaint("-o", tmp_path / "out", "-n", 1) == 0
    assert [row["size"] for row in json.loads(capsys.readouterr().out)] == ["128x128"]
    found, recipe = load_inpainter("zoo:inpaint_shapes")
    assert recipe["data"]["name"] == "shapes" and not found.training
    assert torch.equal(found.prior.first.weight, vaeac.prior.first.weight.half().float())


SHIPPED = runs.weights_path("inpaint_shapes")


@pytest.mark.skipif(not SHIPPED.is_file(), reason=f"no weights ship yet: {SHIPPED.name} comes from a trained run")
def test_the_model_that_ships_fills_better_than_the_mean_of_what_is_seen():
    vaeac, _ = load_inpainter("zoo:inpaint_shapes")
    x = draw_shapes(8, 80, torch.Generator().manual_seed(2**40)).images
    hidden = PICTURE_MASKS["centre"](x)[:, 0]
    found = inpaint_pictures(vaeac, x, hidden, 4, generator=torch.Generator().manual_seed(0))
    seen = (~hidden)[:, None].expand_as(x)
    mean = (x * seen).sum((2, 3), True) / seen.sum((2, 3), True)
    assert psnr(found.mean(1), x, hidden).mean() > psnr(mean.expand_as(x), x, hidden).mean() + 1
    assert found.std(1)[hidden[:, None].expand_as(x)].mean() > 1e-3


def test_the_time_saved_is_said_once(trained, files, capsys):
    arguments = [files / "pictures", files / "masks", "-o", files / "out", "--model", trained]
    assert main(["inpaint", *map(str, arguments)]) == 0
    assert capsys.readouterr().err.count(" ms where all positions are computed (") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures", "masks/p0.png"], "the mask of p1 has 21x30 pixels, the picture 16x17: make them alike"),
        (["pictures", "nowhere"], "no folder or picture"),
        (["pictures", "masks", "--masks", "half"], "leave one of them out"),
        (["pictures", "--masks", "dots"], "masks of pictures are one of centre, half"),
        (["pictures", "masks", "--model", "zoo:resnet18"], "recipe.json"),
    ],
)
def test_bad_input_is_one_line(arguments, message, trained, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    model = [] if "--model" in arguments else ["--model", trained]
    assert inpaint(*arguments, "-o", "out", *model) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (files / "out").exists()


def test_a_mask_that_is_missing_is_named(trained, files, capsys):
    save(files / "pictures" / "other.png", np.zeros((21, 30, 3)))
    assert inpaint(files / "pictures", files / "masks", "-o", files / "out", "--model", trained) == 1
    assert "holds no mask called other" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(trained, tmp_path, capsys):
    record = json.loads((trained / "recipe.json").read_text())
    record["vaeac"]["widths"] = [8, 12]
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    assert inpaint("-o", tmp_path / "out", "--model", tmp_path) == 1
    assert "give the weights of this model" in capsys.readouterr().err


def test_recipes_that_do_not_fit(tmp_path, capsys):
    for change, message in [
        ("vaeac.widths=[8]", "as many levels"),
        ("vaeac.latent=0", "whole numbers from 1"),
        ("data.crop=17", "halves its pictures down to 1/2"),
        ("data.masks='dots'", "masks of pictures are one of"),
        ("vaeac.channels=1", "the model is of 1 channels, the pictures have 3"),
    ]:
        assert train(tmp_path / "x", change) == 1
        assert message in capsys.readouterr().err

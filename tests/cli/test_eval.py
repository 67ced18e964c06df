"""`accel eval` and `accel ponder` on drawn pictures: what they print is what the model did."""

import copy
import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

import accel
from accel.cli import ponder
from accel.cli.main import main
from accel.cli.models import Resolved, resolve, write_source
from accel.cli.training import save_state
from accel.zoo.datasets import load_pictures
from accel.zoo.registry import get_model, preprocess

NAME, CLASSES, EACH = "zoo:resnet20_cifar", 10, 3


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = tmp_path / "data" / "test" / f"class{label}"
        folder.mkdir(parents=True)
        for k in range(EACH):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "data"


def adaptive(config: accel.ACT) -> torch.nn.Module:
    """Halting heads whose scores differ between positions and pictures."""
    torch.manual_seed(0)
    net = accel.convert_model(get_model(NAME, weights="none"), config, example_inputs=torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        for name, module in net.named_modules():
            if name.endswith("halting.conv"):
                module.bias.fill_(-0.5)
                module.weight.mul_(6)
    return net


def printed(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)


def evaluate(*more: object) -> int:
    return main(["eval", NAME, "--no-compile", "--format", "json", "--quiet", *map(str, more)])


@pytest.mark.parametrize(
    "config", [accel.SACT(), accel.ACT(), accel.SACT(target=0.7), accel.PACT(), accel.PACT(spatial=False)]
)
def test_the_row_of_an_adaptive_model_is_what_it_did(tmp_path, data, capsys, config):
    net = adaptive(config)
    save_state(net, tmp_path / "net.safetensors")
    assert evaluate("--weights", tmp_path / "net.safetensors", "--data", data, "--batch", 7) == 0
    (row,) = printed(capsys)
    pictures = load_pictures(data, "test")
    with torch.inference_mode():
        out = net.eval()(preprocess(NAME, pictures.pictures))
    macs = accel.count_macs(net, preprocess(NAME, pictures.pictures), per_image=True).double()
    assert row["pictures"] == CLASSES * EACH
    assert row["accuracy"] == pytest.approx(float((out.logits.argmax(1) == pictures.labels).float().mean()), abs=1e-4)
    assert row["macs"] == round(float(macs.mean())) and row["macs_5%"] <= row["macs_50%"] <= row["macs_95%"]
    assert row["macs_deviation"] == round(float(macs.std(unbiased=False)))
    assert row["macs_95%"] == round(float(torch.quantile(macs, 0.95)))
    for k, stage in enumerate(out.stages):
        assert row[f"units_{k + 1}"] == pytest.approx(float(stage.num_units.double().mean()), abs=1e-3)
    assert row["speedup_fastest"] > 0 and row["ms_model"] > 0 and row["batch"] == 7


def test_the_packaged_adaptive_network_is_compared_with_the_dense_one(data, capsys):
    arguments = ["--no-compile", "--format", "json", "--quiet", "--data", data, "--batch", 10]
    assert main(["eval", "zoo:resnet32_cifar_sact", *map(str, arguments)]) == 0
    (row,) = printed(capsys)
    plain = accel.count_macs(get_model("zoo:resnet32_cifar", "none"), torch.zeros(1, 3, 32, 32))
    assert row["dense_macs"] == plain and row["macs_share"] == pytest.approx(row["macs"] / plain, abs=1e-4)
    assert row["macs_deviation"] > 0 and row["speedup_fastest"] > 0


def test_dense_and_perforated_models_have_the_same_row(tmp_path, data, capsys):
    model = get_model(NAME, weights="none")
    assert evaluate("--weights", "none", "--data", data, "--limit", 8) == 0
    (dense,) = printed(capsys)
    assert dense["macs_share"] == 1 and dense["macs_deviation"] == 0 and dense["pictures"] == 8
    fast = accel.convert_model(model, accel.Perforate(keep=0.5), example_inputs=torch.zeros(1, 3, 32, 32))
    accel.save_converted(fast, tmp_path / "saved")
    write_source(tmp_path / "saved", Resolved(fast, NAME))
    assert main(["eval", str(tmp_path / "saved"), "--data", str(data), "--no-compile", "--format", "json"]) == 0
    (row,) = printed(capsys)
    assert row["macs"] == accel.count_macs(fast, torch.zeros(1, 3, 32, 32)) < dense["macs"] == row["dense_macs"]
    assert row["speedup_nchw"] > 0


def test_a_limit_draws_the_same_pictures_for_the_same_seed(data):
    pictures = load_pictures(data, "test")
    first, again, other = (pictures.drawn(10, seed) for seed in (0, 0, 1))
    assert torch.equal(first.pictures, again.pictures) and len(first) == 10
    assert not torch.equal(first.pictures, other.pictures)


def test_more_classes_than_outputs_are_refused(tmp_path, data, capsys):
    extra = data / "test" / "class_extra"
    extra.mkdir()
    Image.new("RGB", (32, 32)).save(extra / "0.png")
    assert evaluate("--data", data) == 1
    assert "10 classes apart" in capsys.readouterr().err


@pytest.mark.parametrize("config", [accel.SACT(), accel.ACT()])
def test_ponder_maps_are_the_models_and_add_up(tmp_path, capsys, config):
    net = adaptive(config)
    save_state(net, tmp_path / "net.safetensors")
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (45, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "field.png")
    command = ["ponder", NAME, "--weights", str(tmp_path / "net.safetensors"), "--images", str(photos)]
    assert main([*command, "-o", str(tmp_path / "maps"), "--format", "json", "--quiet"]) == 0
    (row,) = printed(capsys)
    arrays = np.load(tmp_path / "maps" / "000_field.npz")
    with torch.inference_mode():
        out = net.eval()(preprocess(NAME, torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    spatial = isinstance(config, accel.SACT)
    for k, stage in enumerate(out.stages):
        expected = stage.ponder_cost[0] if spatial else stage.ponder_cost[:, None]
        assert arrays[f"ponder_{k + 1}"] == pytest.approx(expected.numpy(), abs=1e-5)
        assert (arrays[f"units_{k + 1}"].astype(int) == stage.num_units[0].numpy()).all()
    assert arrays["ponder"].shape == arrays["units"].shape == (45, 64)
    assert arrays["ponder"][0, 0] == pytest.approx(sum(arrays[f"ponder_{k}"][0, 0] for k in (1, 2, 3)), abs=1e-5)
    assert row["ponder"] == pytest.approx(float(arrays["ponder"].mean()), abs=1e-3)
    assert row["lowest"] >= 6 and row["highest"] <= 12  # three stages of three units: rho between 2 and 4 each
    with Image.open(tmp_path / "maps" / "000_field_ponder.png") as picture:
        assert picture.format == "PNG" and len(picture.getcolors(1 << 20)) > 100
    page = (tmp_path / "maps" / "ponder.html").read_text()
    assert "45x64 pixels, mean ponder cost" in page and page.count("data:image/png;base64,") == 1
    assert "field.png" in page and "mean ponder cost of 1 picture<" in page


def test_a_dense_model_and_a_broken_picture_are_refused(tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "grey.png")
    command = ["ponder", NAME, "--weights", "none", "-o", str(tmp_path / "maps"), "--images"]
    assert main([*command, str(tmp_path / "grey.png")]) == 1
    assert "not adaptive" in capsys.readouterr().err and not (tmp_path / "maps").exists()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main([*command, str(tmp_path / "broken.png")]) == 1
    assert "cannot read the picture" in capsys.readouterr().err


def test_weights_with_heads_make_the_model_adaptive(tmp_path):
    net = adaptive(accel.ACT())
    save_state(net, tmp_path / "net.safetensors")
    resolved = resolve(NAME, str(tmp_path / "net.safetensors"))
    assert resolved.converted and resolved.name == NAME
    state = resolved.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    plain = copy.deepcopy(get_model(NAME, weights="none"))
    save_state(plain, pathlib.Path(tmp_path / "plain.safetensors"))
    assert not resolve(NAME, str(tmp_path / "plain.safetensors")).converted


def test_summed_maps_use_the_nearest_position():
    picture = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = ponder.ponder_maps(Resolved(adaptive(accel.SACT()).eval(), NAME), picture)
    upsampled = sum(
        np.repeat(np.repeat(maps[f"units_{k}"], 2 ** (k - 1), axis=0), 2 ** (k - 1), axis=1) for k in (1, 2, 3)
    )
    assert (maps["units"] == upsampled).all()


def test_of_several_outputs_the_first_is_judged_and_maps_are_refused(data, capsys):
    arguments = ["--data", str(data), "--no-compile", "--format", "json", "--limit", "4"]
    assert main(["eval", "zoo:demo_resnet", "--weights", "none", *arguments]) == 1
    assert "7 classes apart, the data set has 10" in capsys.readouterr().err
    for label in (7, 8, 9):
        for picture in (data / "test" / f"class{label}").iterdir():
            picture.unlink()
        (data / "test" / f"class{label}").rmdir()
    assert main(["eval", "zoo:demo_resnet", "--weights", "none", *arguments]) == 0
    assert 0 <= printed(capsys)[0]["accuracy"] <= 1
    assert main(["eval", "zoo:hed_vgg16", "--weights", "none", *arguments]) == 1
    assert "expected the scores [N, classes] of a classifier" in capsys.readouterr().err


def test_a_folder_of_imagenet_classes(tmp_path, capsys):
    """Folders that are called as torchvision calls the classes, under val/: labels are the network's own."""
    torch.manual_seed(0)
    for name in ("tench", "Tiger_shark"):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for k in range(2):
            pixels = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{k}.png")
    net = get_model("torchvision:mobilenet_v3_small", weights="none")
    with torch.no_grad():
        net.classifier[3].bias[3] += 100.0  # whatever it sees is a tiger shark
    save_state(net, tmp_path / "net.safetensors")
    arguments = ["--weights", tmp_path / "net.safetensors", "--data", tmp_path, "--size", 64, "--no-compile"]
    assert main(["eval", "torchvision:mobilenet_v3_small", *map(str, arguments), "--format", "json", "--quiet"]) == 0
    (row,) = printed(capsys)
    assert row["pictures"] == 4 and row["accuracy"] == 0.5
    (tmp_path / "val" / "tench").rename(tmp_path / "val" / "unicorn")
    assert main(["eval", "torchvision:mobilenet_v3_small", *map(str, arguments)]) == 1
    assert "'unicorn' means 0 of the 1000 classes" in capsys.readouterr().err

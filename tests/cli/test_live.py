"""What the live page shows, without the page."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch

import accel
from accel.cli import demo_pictures, live
from accel.cli.main import main
from accel.errors import ConfigError, DataError
from accel.nn.perforated import PerforatedConv2d
from accel.zoo.demo_net import DemoOutput
from accel.zoo.registry import default_rules, get_model, preprocess

SIDE = 80  # pixels: the smallest that drawn shapes fit in


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Small pictures and few of them, timed once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_LONGEST": SIDE, "_SACT_LONGEST": 32, "_CALIBRATION": 2, "_REPEATS": 1}.items():
            patch.setattr(live, name, value)
        yield


@pytest.fixture(scope="module")
def networks(quick):
    return live.Perforated()


@pytest.fixture
def picture(tmp_path):
    return live.read_upload(live.draw_examples(tmp_path)[5])


def numbers(look):
    return [float(value.split()[0].rstrip("x")) for value, _ in look.numbers]


def test_both_outputs_are_those_of_the_networks(networks, picture):
    look = networks.look(picture, keep=0.3)
    pixels = live.as_pixels(picture, SIDE)
    x, dense = preprocess("zoo:demo_resnet", pixels), get_model("zoo:demo_resnet")
    rules = default_rules("zoo:demo_resnet", accel.Perforate(keep=1 / 3, mask="lattice"))
    converted = accel.convert_model(dense, rules, example_inputs=x)
    with torch.inference_mode():
        for net, shown in zip((dense, converted), look.compared):
            expected = live.enlarged(demo_pictures.cut_out(pixels.float() / 255, net(x).mask > 0)[0])
            assert shown.size == (4 * SIDE, 4 * SIDE)
            assert (np.asarray(shown) == np.asarray(expected)).mean() > 0.999  # sums in another order move an edge
        share = accel.count_macs(converted, x) / accel.count_macs(dense, x)
    macs, ms, speedup, overlap = numbers(look)
    assert macs == pytest.approx(100 * share, abs=0.5) and ms > 0 and speedup > 0 and 0 < overlap < 1
    assert look.words[0] == "Of 0.3 the closest that mask 'lattice' has is 0.33."
    assert "dense network: star" in look.words[1]


def test_the_map_is_bright_where_the_work_is_done(networks, picture):
    much, little = (np.asarray(networks.look(picture, keep).painted)[..., :2].mean() for keep in (0.75, 1 / 3))
    assert much > little + 30  # viridis begins in violet, and ends in yellow


def test_a_conversion_is_made_once_and_not_kept_for_ever(networks, picture):
    before = networks.converted.cache_info()
    for keep in (0.3, 0.35, 0.75, 0.8):
        networks.look(picture, keep)
    after = networks.converted.cache_info()
    assert after.hits + after.misses == before.hits + before.misses + 4 and after.hits >= before.hits + 2
    assert after.currsize <= 2 and after.maxsize == live._MOST_CONVERSIONS


def test_eight_bits(networks, picture):
    look = networks.look(picture, 0.3, precision="int8")
    net = networks.converted(accel.Perforate(keep=1 / 3, mask="lattice", precision="int8"))
    layers = [layer.config for layer in net.modules() if isinstance(layer, PerforatedConv2d)]
    assert layers and {config.precision for config in layers} == {"int8"}
    assert numbers(look)[-1] > 0.5  # the outline is still there


def test_what_does_not_go_together_is_refused_in_a_line(networks, picture):
    with pytest.raises(ConfigError, match="which eight bits cannot: take another mask"):
        networks.look(picture, 0.5, "adaptive", "int8")
    with pytest.raises(ConfigError, match="unknown mask"):
        networks.look(picture, 0.5, "stripes")


def test_two_blank_outlines_do_not_overlap_by_nothing():
    blank = DemoOutput(torch.zeros(1, 7), torch.full((1, 1, 8, 8), -1.0))
    whole = DemoOutput(torch.zeros(1, 7), torch.full((1, 1, 8, 8), 1.0))
    assert live._overlap(blank, blank) == ("none", "neither network outlines anything")
    assert live._overlap(whole, whole)[0] == "1.00" and live._overlap(whole, blank)[0] == "0.00"


def test_the_adaptive_network_says_where_it_ran_its_units(picture):
    look = live.Adaptive().look(picture)
    net, x = get_model(live.SACT), preprocess(live.SACT, live.as_pixels(picture, 32))
    with torch.inference_mode():
        stages = net(x).stages
    expected = sum(float(stage.num_units.float().mean()) for stage in stages)  # maps of every size weigh the same
    macs, ms, speedup, units = numbers(look)
    assert units == pytest.approx(expected, abs=0.06) and look.numbers[-1][1].endswith("of 15")
    assert 0 < macs < 100 and ms > 0 and speedup > 0
    assert look.compared[0].size == look.painted.size == (128, 128)


@pytest.mark.parametrize("size", [(640, 480), (3, 1000), (80, 80)])
def test_pictures_of_any_size_fit_the_network(size):
    height, width = live.as_pixels(PIL.Image.new("RGB", size), 160).shape[2:]
    assert max(height, width) == 160 and min(height, width) >= 32 and height % 8 == width % 8 == 0


def test_an_upload_that_is_no_picture_is_named_without_its_folder(tmp_path):
    (tmp_path / "letter.png").write_text("dear all")
    with pytest.raises(DataError, match=r"^cannot read the picture letter\.png \(of no format"):
        live.read_upload(str(tmp_path / "letter.png"))


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "accel.cli.live_page", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["demo", "--serve"]) == 1
    assert capsys.readouterr().err == "accel: the live page needs fastapi: pip install 'skimconv[demo]'\n"


def test_it_serves_no_vae(capsys):
    assert main(["demo", "vae", "--serve"]) == 1
    assert "leave 'vae' out" in capsys.readouterr().err

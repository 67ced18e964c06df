"""Options and strips of pictures: one clear line for each mistake."""

import argparse
import pathlib

import PIL.Image
import pytest
import torch

from accel.cli import common, pictures


@pytest.mark.parametrize(("text", "size"), [("240x320", (240, 320)), ("224", (224, 224)), ("7X9", (7, 9))])
def test_image_size_reads_height_by_width(text, size):
    assert common.image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0x4", "1x2x3", "-3", "tall"])
def test_image_size_refuses_what_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no image size"):
        common.image_size(text)


def test_strip_puts_tiles_side_by_side(tmp_path):
    path = tmp_path / "strip.png"
    red = torch.zeros(3, 5, 6, dtype=torch.uint8)
    red[0] = 255
    pictures.write_strip(path, [red, torch.full((5, 6), 0.5)])
    strip = PIL.Image.open(pathlib.Path(path))
    assert strip.size == (16, 5)
    assert strip.getpixel((0, 0)) == (255, 0, 0)
    assert strip.getpixel((7, 2)) == (255, 255, 255)
    assert strip.getpixel((15, 4)) == (128, 128, 128)

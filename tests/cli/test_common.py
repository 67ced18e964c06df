"""Options, output folders and pictures: whole or not at all, and one clear line for each mistake."""

import argparse
import pathlib

import PIL.Image
import pytest
import torch

from accel.cli import common, pictures
from accel.errors import ConfigError, DataError


@pytest.mark.parametrize(("text", "size"), [("240x320", (240, 320)), ("224", (224, 224)), ("7X9", (7, 9))])
def test_image_size_reads_height_by_width(text, size):
    assert common.image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0x4", "1x2x3", "-3", "tall"])
def test_image_size_refuses_what_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no image size"):
        common.image_size(text)


def test_output_folder_appears_whole(tmp_path):
    target = tmp_path / "new" / "out"
    with common.output_folder(target, "done.json") as folder:
        (folder / "done.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["done.json"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_output_folder_leaves_nothing_when_the_work_fails(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), common.output_folder(tmp_path / "out", "done.json") as folder:
        (folder / "done.json").write_text("{}")
        raise RuntimeError("half way")
    assert not any(tmp_path.iterdir())


def test_output_folder_replaces_only_its_own(tmp_path):
    for text in ("first", "second"):
        with common.output_folder(tmp_path / "out", "done.json") as folder:
            (folder / "done.json").write_text(text)
    assert (tmp_path / "out" / "done.json").read_text() == "second"

    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("keep me")
    with pytest.raises(DataError, match="letters holds files"), common.output_folder(other, "done.json"):
        pytest.fail("the block must not run")
    assert (other / "dear.txt").read_text() == "keep me"


def test_output_folder_inside_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(DataError, match=r"cannot write the folder .*file"), common.output_folder(target, "m"):
            pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_text_leaves_no_partial_file(tmp_path):
    common.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    with pytest.raises(DataError, match="cannot write"):
        common.write_text(tmp_path / "a.txt" / "b.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        common.write_text(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_read_toml_names_the_file(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("keep = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml is no TOML"):
        common.read_toml(bad)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        common.read_toml(tmp_path / "none.toml")


def test_pictures_are_found_read_and_cropped(tmp_path):
    (tmp_path / "deep").mkdir()
    red_left = PIL.Image.new("RGB", (40, 20), "blue")
    red_left.paste("red", (0, 0, 20, 20))
    red_left.save(tmp_path / "b.png")
    PIL.Image.new("L", (8, 8), 7).save(tmp_path / "deep" / "a.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = pictures.find_images(tmp_path)
    assert [path.name for path in found] == ["b.png", "a.JPG"]
    assert pictures.find_images(tmp_path, limit=1) == found[:1]

    picture = pictures.read_picture(found[0], (20, 20))  # the middle 20 of 40 columns: red up to the tenth
    assert picture.shape == (3, 20, 20) and picture.dtype == torch.uint8
    assert picture[:, 10, 0].tolist() == [255, 0, 0] and picture[:, 10, 19].tolist() == [0, 0, 255]
    assert pictures.read_picture(found[1], (4, 6)).unique().tolist() == [7]


@pytest.mark.parametrize("content", [b"", b"not a picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_pictures_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the picture .*broken\.png"):
        pictures.read_picture(path, (8, 8))


def test_truncated_picture_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    PIL.Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cannot read the picture .*cut\.jpg"):
        pictures.read_picture(path, (64, 64))


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        pictures.find_images(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        pictures.find_images(tmp_path / "none")


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

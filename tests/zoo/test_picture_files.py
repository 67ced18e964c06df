"""Picture files of every kind, written here: read right, or refused in a line."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from accel.errors import DataError
from accel.zoo.datasets import load_pictures
from accel.zoo.picture_files import find_images, read_each, read_picture, read_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # the same, 16 bits deep


def deep_png(path, channels, colour_type):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""
    lines = b"".join(b"\0" + np.repeat(row[:, None], channels, 1).astype(">u2").tobytes() for row in WIDE)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def deep_ppm(path):
    path.write_bytes(b"P5 16 16 65535\n" + WIDE.astype(">u2").tobytes())


def of_mode(mode):
    return lambda path: PIL.Image.fromarray(RAMP).convert("RGB").convert(mode).save(path)


def palette(path):
    PIL.Image.fromarray(RAMP).convert("RGB").quantize(256).save(path)


def cmyk_jpeg(path):
    PIL.Image.fromarray(RAMP).convert("RGB").convert("CMYK").save(path, quality=100, subsampling=0)


def webp(path):
    PIL.Image.fromarray(RAMP).convert("RGB").save(path, lossless=True)


KINDS = {
    "grey16.png": lambda path: deep_png(path, 1, 0),
    "grey16 with alpha.png": lambda path: deep_png(path, 2, 4),
    "rgb16.png": lambda path: deep_png(path, 3, 2),
    "rgba16.png": lambda path: deep_png(path, 4, 6),
    "grey16.tif": lambda path: PIL.Image.fromarray(WIDE).save(path),
    "grey16, big-endian.tif": lambda path: PIL.Image.fromarray(WIDE.astype(">u2")).save(path),
    "grey16.pgm": deep_ppm,
    "grey.png": of_mode("L"),
    "palette.png": palette,
    "palette.gif": palette,
    "with alpha.png": of_mode("RGBA"),
    "grey with alpha.png": of_mode("LA"),
    "cmyk.tif": of_mode("CMYK"),
    "cmyk.jpg": cmyk_jpeg,
    "ycbcr.tif": of_mode("YCbCr"),
    "rgb.webp": webp,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_reads_as_the_same_ramp(tmp_path, name):
    if name == "ycbcr.tif" and PIL.__version__.startswith("12.3"):
        pytest.skip("Pillow 12.3 takes a TIFF in YCbCr that it wrote itself for truncated")
    KINDS[name](tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = np.asarray(read_rgb(tmp_path / name, name)).astype(int)
    assert read.shape == (16, 16, 3)
    assert np.abs(read - RAMP[:, :, None]).max() <= 1  # YCbCr rounds
    assert read.min() <= 1 and read.max() >= 254


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_it_upright(tmp_path, turn):
    upright = np.zeros((6, 10, 3), np.uint8)
    upright[:3, :5] = 255  # the upper left quarter is white
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: np.rot90(upright.transpose(1, 0, 2), 2), 8: np.rot90(upright, -1),
    }[turn]  # fmt: skip
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    for suffix in ("png", "webp", "tif"):
        path = tmp_path / f"turned.{suffix}"
        PIL.Image.fromarray(np.ascontiguousarray(stored)).save(
            path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
        )
        assert (np.asarray(read_rgb(path, "turned")) == upright).all()
    folder = tmp_path / "data" / "test" / "quarter"
    folder.mkdir(parents=True)
    (tmp_path / "turned.png").rename(folder / "turned.png")
    assert (load_pictures(tmp_path / "data", "test").pictures[0].permute(1, 2, 0).numpy() == upright).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_a_film_the_first_picture_is_read_and_it_is_said(tmp_path, suffix):
    red, blue = (PIL.Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    path = tmp_path / f"film.{suffix}"
    red.save(path, save_all=True, append_images=[blue], **({"lossless": True} if suffix == "webp" else {}))
    with pytest.warns(UserWarning, match="holds 2 pictures: only the first is read"):
        assert read_rgb(path, "film").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("values", "named"),
    [(WIDE.astype(np.float32) / 65535, "floating-point numbers"), (WIDE.astype(np.int32), "32-bit integers")],
)
def test_values_without_a_white_are_refused(tmp_path, values, named):
    PIL.Image.fromarray(values).save(tmp_path / "values.tif")
    with pytest.raises(DataError, match=f"values.tif holds {named}"):
        read_rgb(tmp_path / "values.tif", "values.tif")


def test_tiny_and_huge_pictures(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read_rgb(tmp_path / "one.png", "one").getpixel((0, 0)) == (1, 2, 3)
    PIL.Image.new("L", (40, 40)).save(tmp_path / "huge.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)  # 1600 pixels: Pillow would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rgb(tmp_path / "huge.png", "huge").size == (40, 40)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(DataError, match=r"cannot read the picture huge \(Image size \(1600 pixels\) exceeds limit"):
        read_rgb(tmp_path / "huge.png", "huge")


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damage_anywhere_in_a_file_is_one_kind_of_error(tmp_path):
    """Some of these raise struct.error, EOFError or SyntaxError in Pillow; those that are still read are read whole."""
    for suffix in ("jpg", "png", "gif", "webp", "tif", "bmp", "ppm"):
        whole = io.BytesIO()
        PIL.Image.fromarray(np.stack([RAMP] * 3, -1)).save(
            whole, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
        )
        data = whole.getvalue()
        cuts = [data[:length] for length in range(0, len(data) - 40, max(len(data) // 23, 1))]
        for cut in cuts:
            with pytest.raises(DataError, match="cannot read the picture cut"):
                read_rgb(io.BytesIO(cut), "cut")
        for place in range(0, len(data), max(len(data) // 41, 1)):
            hurt = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            try:
                assert read_rgb(io.BytesIO(hurt), "hurt").mode == "RGB"
            except DataError as error:
                assert "hurt" in str(error)


def test_what_cannot_be_read_is_left_out_and_counted():
    def read(entry):
        if entry < 2:
            raise DataError(f"number {entry} is small")
        return 10 * entry

    with pytest.warns(UserWarning, match="here: 2 of 4 pictures left out; number 0 is small"):
        assert list(read_each(range(4), read, "here")) == [(2, 20), (3, 30)]
    with pytest.raises(DataError, match="here: none of 2 pictures can be read; number 0"):
        list(read_each(range(2), read, "here"))


def test_pictures_are_found_read_and_cropped(tmp_path):
    (tmp_path / "deep").mkdir()
    red_left = PIL.Image.new("RGB", (40, 20), "blue")
    red_left.paste("red", (0, 0, 20, 20))
    red_left.save(tmp_path / "b.png")
    PIL.Image.new("L", (8, 8), 7).save(tmp_path / "deep" / "a.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = find_images(tmp_path)
    assert [path.name for path in found] == ["b.png", "a.JPG"]
    assert find_images(tmp_path, limit=1) == found[:1]

    picture = read_picture(found[0], (20, 20))  # the middle 20 of 40 columns: red up to the tenth
    assert picture.shape == (3, 20, 20) and picture.dtype == torch.uint8
    assert picture[:, 10, 0].tolist() == [255, 0, 0] and picture[:, 10, 19].tolist() == [0, 0, 255]
    assert read_picture(found[1], (4, 6)).unique().tolist() == [7]


@pytest.mark.parametrize("content", [b"", b"not a picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_pictures_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the picture .*broken\.png"):
        read_picture(path, (8, 8))


def test_truncated_picture_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    PIL.Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cannot read the picture .*cut\.jpg"):
        read_picture(path, (64, 64))


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        find_images(tmp_path / "none")

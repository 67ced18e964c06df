"""Grey pictures from every layout there is, written here small."""

import gzip
import io
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from accel.errors import DataError
from accel.zoo.grey_pictures import load_grey

OMNIGLOT = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "omniglot"


def drawing(left):
    """A black square of 45 pixels on white paper of 105, as Omniglot's files are: one bit a pixel."""
    picture = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(picture).rectangle((left, 30, left + 44, 74), fill=0)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def write_omniglot(path, alphabet, first=0):
    with zipfile.ZipFile(path, "w") as archive:
        for drawer in range(1, 21):
            name = f"{path.stem}/{alphabet}/character01/0100_{drawer:02d}.png"
            archive.writestr(name, drawing(first + drawer))


def test_omniglot_is_split_by_drawer_and_ink_is_bright(tmp_path):
    write_omniglot(tmp_path / "images_background_small1.zip", "Greek")
    write_omniglot(tmp_path / "images_background_small2.zip", "Latin", first=30)
    train, test = (load_grey(tmp_path, split) for split in ("train", "test"))
    assert train.shape == (32, 1, 28, 28) and test.shape == (8, 1, 28, 28) and train.dtype is torch.uint8
    for pictures in (train, test):
        assert ((pictures.float().mean((1, 2, 3)) / 255 - 45**2 / 105**2).abs() < 0.003).all()  # the share of ink
    assert test[0, 0, 15, 10] == 255 and test[0, 0, 2, 2] == 0
    assert torch.equal(load_grey(tmp_path / "images_background_small1.zip", "test"), test[:4])


def test_a_drawing_in_two_archives_counts_once(tmp_path):
    for name in ("images_background_small1.zip", "images_background_small2.zip"):
        write_omniglot(tmp_path / name, "Greek")
    assert len(load_grey(tmp_path, "train")) == 16


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="Omniglot is not on this machine")
def test_the_real_omniglot():
    train, test = (load_grey(OMNIGLOT, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (3872, 968)  # 242 characters, drawn 16 and 4 times
    assert 0.05 < train.float().mean() / 255 < 0.12


def test_fashion_mnist_and_colours(tmp_path):
    pixels = np.arange(2 * 784, dtype=np.int64).astype(np.uint8)
    for name, header, data in (("images-idx3", 16, pixels), ("labels-idx1", 8, np.zeros(2, np.uint8))):
        with gzip.open(tmp_path / f"t10k-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + data.tobytes())
    assert torch.equal(load_grey(tmp_path, "test").flatten(), torch.from_numpy(pixels))
    folder = tmp_path / "colours" / "train" / "red"
    folder.mkdir(parents=True)
    Image.new("RGB", (5, 4), (200, 100, 50)).save(folder / "a.png")
    grey = load_grey(tmp_path / "colours", "train")
    assert grey.shape == (1, 1, 4, 5) and (grey == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


def test_the_digits_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets")
    train, test = (load_grey("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    images = sklearn.load_digits().images
    assert torch.equal(test[1, 0].double(), torch.from_numpy(images[9] * 255 / 16).round())
    assert train.max() == 255


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no data set at"):
        load_grey(tmp_path, "train")
    with pytest.raises(DataError, match="split must be train or test"):
        load_grey("digits", "valid")
    write_omniglot(tmp_path / "images_evaluation.zip", "Greek")
    damaged = bytearray((tmp_path / "images_evaluation.zip").read_bytes())
    damaged[80:200] = bytes(120)
    (tmp_path / "images_evaluation.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot read images_evaluation/Greek/character01/0100_01\.png"):
        load_grey(tmp_path, "train")

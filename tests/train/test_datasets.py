"""Labelled pictures from every layout there is, written here small."""

import gzip
import hashlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from accel.errors import DataError
from accel.zoo.datasets import load_pictures


def write_folder(root, sizes=((8, 8),)):
    """Two classes, one picture of each size; dogs are blue, cats red."""
    for split in ("train", "test"):
        for name, colour in (("dog", (0, 0, 200)), ("cat", (200, 0, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k, (width, height) in enumerate(sizes):
                Image.new("RGB", (width, height), colour).save(folder / f"{k}.png")


def test_a_folder_and_its_zip_are_the_same_data_set(tmp_path):
    write_folder(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in (tmp_path / "data").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    found = load_pictures(tmp_path / "data", "train")
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1]
    assert found.pictures.shape == (2, 3, 8, 8) and found.pictures.dtype is torch.uint8
    assert found.pictures[1, :, 3, 3].tolist() == [0, 0, 200]
    zipped = load_pictures(tmp_path / "data.zip", "train")
    assert torch.equal(found.pictures, zipped.pictures) and torch.equal(found.labels, zipped.labels)


def test_pictures_of_many_sizes_are_brought_to_one(tmp_path):
    write_folder(tmp_path, sizes=((8, 8), (20, 10), (5, 16)))
    with pytest.raises(DataError, match="give one size for all"):
        load_pictures(tmp_path, "test")
    found = load_pictures(tmp_path, "test", size=6)
    assert found.pictures.shape == (6, 3, 6, 6)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_middle_is_kept(tmp_path):
    write_folder(tmp_path)
    striped = np.zeros((4, 12, 3), np.uint8)
    striped[:, 4:8] = 255
    Image.fromarray(striped).save(tmp_path / "test" / "cat" / "striped.png")
    found = load_pictures(tmp_path, "test", size=4)
    assert (found.pictures[1] == 255).all()


def test_fashion_mnist_as_distributed(tmp_path):
    pictures = np.arange(3 * 28 * 28, dtype=np.uint64).astype(np.uint8)
    for stem in ("train", "t10k"):
        for name, header, payload in (
            ("images-idx3", 16, pictures.tobytes()),
            ("labels-idx1", 8, bytes([7, 0, 9])),
        ):
            with gzip.open(tmp_path / f"{stem}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + payload)
    found = load_pictures(tmp_path, "test")
    assert found.pictures.shape == (3, 1, 28, 28) and found.labels.tolist() == [7, 0, 9]
    assert found.pictures[1, 0, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert len(found.classes) == 10
    with pytest.raises(DataError, match="size is for folders and zips"):
        load_pictures(tmp_path, "train", size=32)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read as a gzipped idx file"):
        load_pictures(tmp_path, "test")


def test_cifar_as_torchvision_keeps_it(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    meta = write("batches.meta", {"label_names": ["plane", "car"]})
    rows = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    batch = write("data_batch_1", {"data": rows, "labels": [1, 0]})
    with pytest.raises(DataError, match="is not CIFAR-10 as published"):
        load_pictures(tmp_path, "train")
    monkeypatch.setattr(CIFAR10, "train_list", [batch])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    found = load_pictures(tmp_path, "train")
    assert found.labels.tolist() == [1, 0] and found.classes == ("plane", "car")
    assert torch.equal(found.pictures.flatten(1), torch.from_numpy(rows))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no data set at"):
        load_pictures(tmp_path, "train")
    with pytest.raises(DataError, match="split must be train or test"):
        load_pictures(tmp_path, "valid")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures in"):
        load_pictures(tmp_path, "train")

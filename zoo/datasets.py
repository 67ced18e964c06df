"""Labelled pictures for training and evaluation, from what lies on disk: nothing is ever downloaded.

| what                                      | path                                                        |
|-------------------------------------------|-------------------------------------------------------------|
| a folder of class folders, or its zip     | root/train/cat/1.jpg, ...; root/test/... or root/val/...    |
| Fashion-MNIST as distributed              | a folder with train-images-idx3-ubyte.gz and its companions |
| CIFAR-10 as torchvision keeps it          | a folder with cifar-10-batches-py                           |
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from accel.errors import DataError
from accel.zoo.picture_files import SUFFIXES, read_each, read_rgb

_IDX_SPLIT = {"train": "train", "test": "t10k"}
_FOLDERS = {"train": ("train",), "test": ("test", "val")}  # what ImageNet calls val is what it is judged on


@dataclasses.dataclass(frozen=True)
class LabelledPictures:
    """Pictures held in memory as bytes.

    Attributes:
        pictures: uint8 [N, C, H, W], all of one size.
        labels: int64 [N], index into `classes`.
        classes: names, in alphabetical order for folders.
    """

    pictures: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, limit: int | None, seed: int) -> LabelledPictures:
        """`limit` of the pictures, of all classes alike; all of them for None."""
        if limit is None or limit >= len(self):
            return self
        return self._rows(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:limit])

    def held_out(self, count: int) -> tuple[LabelledPictures, LabelledPictures]:
        """(the pictures to learn from, `count` held out), the same ones in every call.

        Raises:
            DataError: nothing would be left to learn from.
        """
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < len(self):
            raise DataError(f"{count!r} pictures cannot be held out of {len(self)}: give a whole number below that")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self._rows(order[count:]), self._rows(order[:count])

    def and_then(self, others: LabelledPictures) -> LabelledPictures:
        """These pictures, then others of the same classes."""
        if others.classes != self.classes:
            raise DataError(f"pictures of other classes cannot be joined: {self.classes} and {others.classes}")
        pictures, labels = torch.cat((self.pictures, others.pictures)), torch.cat((self.labels, others.labels))
        return dataclasses.replace(self, pictures=pictures, labels=labels)

    def _rows(self, chosen: Tensor) -> LabelledPictures:
        rows = chosen.sort().values
        return dataclasses.replace(self, pictures=self.pictures[rows], labels=self.labels[rows])


def load_pictures(path: str | pathlib.Path, split: str, size: int | None = None) -> LabelledPictures:
    """The `split` ("train" or "test") of the data set at `path`; a warning counts pictures that cannot be read.

    Args:
        size: bring the pictures of folders and zips to size x size pixels: the shorter side scaled, the middle cropped.
            None: as they are, which must be all of one size.

    Raises:
        DataError: naming what is missing, unreadable or of another size.
    """
    root = pathlib.Path(path)
    if split not in _IDX_SPLIT:
        raise DataError(f"split must be train or test, got {split!r}")
    if zipfile.is_zipfile(root):
        return _from_zip(root, split, size)
    for folder in _FOLDERS[split]:
        if (root / folder).is_dir():
            return _from_folder(root, folder, size)
    if size is not None:
        raise DataError(f"{root} holds no folder {split}/: size is for folders and zips of pictures, leave it out")
    if (root / f"{_IDX_SPLIT[split]}-images-idx3-ubyte.gz").is_file():
        return _from_idx(root, split)
    if (root / "cifar-10-batches-py").is_dir():
        return _from_torchvision_cifar(root, split)
    raise DataError(
        f"no data set at {root}: expected class folders under {split}/, a zip of them, Fashion-MNIST's idx.gz files, "
        "or cifar-10-batches-py"
    )


def _from_folder(root: pathlib.Path, split: str, size: int | None) -> LabelledPictures:
    files = sorted(p for p in (root / split).glob("*/*") if p.suffix.lower() in SUFFIXES)
    return _collect([(p.parent.name, str(p), p.read_bytes) for p in files], f"{root}/{split}", size)


def _from_zip(root: pathlib.Path, split: str, size: int | None) -> LabelledPictures:
    with zipfile.ZipFile(root) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith(SUFFIXES))
        parts = [(n, n.split("/")) for n in names]
        for folder in _FOLDERS[split]:
            inside = [(n, p) for n, p in parts if len(p) >= 3 and p[-3] == folder]
            if inside:
                break
        return _collect([(p[-2], n, lambda n=n: archive.read(n)) for n, p in inside], f"{root}:{folder}", size)


def _collect(entries: list, where: str, size: int | None) -> LabelledPictures:
    """Decode (class name, file name, reader) entries into one tensor."""
    if not entries:
        raise DataError(f"no pictures in {where}: expected class folders with {', '.join(SUFFIXES)} files")
    classes = tuple(sorted({name for name, _, _ in entries}))
    index = {name: i for i, name in enumerate(classes)}
    labels, arrays = [], []
    for (name, file, _), array in read_each(entries, lambda entry: _decode(entry[2], entry[1], size), where):
        if arrays and array.shape != arrays[0].shape:
            raise DataError(f"{where}: {file} is {array.shape}, others {arrays[0].shape}: give one size for all")
        labels.append(index[name])
        arrays.append(array)
    pictures = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return LabelledPictures(pictures, torch.tensor(labels), classes)


def _decode(read: Callable[[], bytes], file: str, size: int | None) -> np.ndarray:
    try:
        data = read()
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last: encrypted
        raise DataError(f"cannot read the picture {file} ({error}): repair it or leave it out") from error
    rgb = read_rgb(io.BytesIO(data), file)
    return np.asarray(rgb if size is None else ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))


def _from_idx(root: pathlib.Path, split: str) -> LabelledPictures:
    stem = _IDX_SPLIT[split]
    pixels = _read_idx(root / f"{stem}-images-idx3-ubyte.gz", 16)
    if pixels.size % (28 * 28):
        raise DataError(
            f"{root}: the {split} pictures hold {pixels.size} pixels, no multiple of 28x28: fetch them again"
        )
    pictures = pixels.reshape(-1, 1, 28, 28)
    labels = _read_idx(root / f"{stem}-labels-idx1-ubyte.gz", 8)
    if len(pictures) != len(labels):
        raise DataError(f"{root}: {len(pictures)} pictures but {len(labels)} labels in the {split} split")
    return LabelledPictures(
        torch.from_numpy(pictures.copy()), torch.from_numpy(labels.astype(np.int64)), tuple("0123456789")
    )


def _read_idx(path: pathlib.Path, header: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a gzipped idx file ({error}): fetch it again") from error


def _from_torchvision_cifar(root: pathlib.Path, split: str) -> LabelledPictures:
    from torchvision.datasets import CIFAR10  # checks the files' hashes before it unpickles them

    try:
        data = CIFAR10(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(f"{root}/cifar-10-batches-py is not CIFAR-10 as published ({error}): fetch it again") from error
    pictures = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return LabelledPictures(pictures, torch.tensor(data.targets), tuple(data.classes))

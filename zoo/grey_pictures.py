"""Grey pictures for VAEs, from what lies on disk: nothing is ever downloaded.

| what                           | path                                                             | test split       |
|--------------------------------|------------------------------------------------------------------|------------------|
| scikit-learn's digits, 8x8     | "digits": they come with that package                            | every fifth      |
| Omniglot as distributed, 28x28 | a folder with images_*.zip files, or one of these; ink is bright | drawers 17 to 20 |
| Fashion-MNIST and others       | as in `accel.zoo.datasets`; colours become grey                  | their own        |
"""

from __future__ import annotations

import io
import pathlib
import re
import zipfile

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from accel.errors import DataError
from accel.zoo.datasets import load_pictures
from accel.zoo.picture_files import read_each, read_rgb

DIGITS = "digits"
_OMNIGLOT = re.compile(r"[^/]+/([^/]+/character\d+/\d+_(\d\d)\.png)")  # images_background/Greek/character01/0394_17.png
_OMNIGLOT_SIZE, _FIRST_TEST_DRAWER = 28, 17
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it


def load_grey(source: str | pathlib.Path, split: str) -> Tensor:
    """uint8 [N, 1, H, W], the `split` ("train" or "test") of the data set at `source`.

    Raises:
        DataError: naming what is missing, unreadable or of another size.
    """
    if split not in ("train", "test"):
        raise DataError(f"split must be train or test, got {split!r}")
    if str(source) == DIGITS:
        return _digits(split)
    root = pathlib.Path(source)
    archives = _omniglot_archives(root)
    if archives:
        return _omniglot(archives, split)
    pictures = load_pictures(root, split).pictures
    if pictures.shape[1] == 1:
        return pictures
    weights = torch.tensor(_LUMINANCE, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
    return torch.cat([(some * weights).sum(1, keepdim=True).round().byte() for some in pictures.split(1000)])


def _digits(split: str) -> Tensor:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"the digits come with scikit-learn ({error}): pip install 'skimconv[train]', or give other --data"
        ) from error
    sixteenths = torch.from_numpy(load_digits().images)
    rows = torch.arange(len(sixteenths), device="cpu") % 5 == 4
    chosen = sixteenths[rows if split == "test" else ~rows]
    return (chosen * (255 / 16)).round().byte()[:, None]


def _omniglot_archives(root: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(root.glob("images_*.zip")) if root.is_dir() else [root]
    found = []
    for file in files:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(_OMNIGLOT.fullmatch(name) for name in archive.namelist()):
                    found.append(file)
    return found


def _omniglot(archives: list[pathlib.Path], split: str) -> Tensor:
    entries = {}  # the archives overlap: a drawing is known by alphabet, character and file
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                drawing = _OMNIGLOT.fullmatch(name)
                if drawing and (int(drawing[2]) >= _FIRST_TEST_DRAWER) == (split == "test"):
                    try:
                        entries.setdefault(drawing[1], (f"{path}:{name}", archive.read(name)))
                    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
                        raise DataError(f"cannot read {name} in {path} ({error}): fetch it again") from error
    where = f"the {split} drawings of {', '.join(map(str, archives))}"
    read = [ink for _, ink in read_each(list(entries.values()), _ink, where)]
    return torch.from_numpy(np.stack(read))[:, None]


def _ink(entry: tuple[str, bytes]) -> np.ndarray:
    """Dark strokes on paper -> the share of ink in each of 28 x 28 cells, 255 for all."""
    name, data = entry
    picture = read_rgb(io.BytesIO(data), name).convert("L")
    return 255 - np.asarray(picture.resize((_OMNIGLOT_SIZE, _OMNIGLOT_SIZE), PIL.Image.Resampling.BOX))

"""Picture files as upright RGB with 8 bits a channel, or a line that says why not."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TypeVar

import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from accel.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_Entry, _Read = TypeVar("_Entry"), TypeVar("_Read")


def read_rgb(file: str | IO[bytes], name: str) -> PIL.Image.Image:
    """The first picture of a file, turned as its EXIF tag says; transparency is ignored, 16 bits become their upper 8.

    Raises:
        DataError: it is no picture, damaged, too large, or of values that do not tell what is white.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # twice as large, and Pillow refuses it
            picture = PIL.Image.open(file)
        with picture:
            return _to_rgb(picture, name)
    except DataError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"cannot read the picture {name} (of no format known here): leave it out") from error
    except Exception as error:  # damaged files make Pillow raise anything: SyntaxError, struct.error, EOFError, ...
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read the picture {name} ({reason}): repair it or leave it out") from error


def _to_rgb(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # MPO: a photograph with its preview
    upright = PIL.ImageOps.exif_transpose(picture)
    grey = picture.mode in _SIXTEEN_BITS or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if grey:  # Pillow would clip at 255
        upright = PIL.Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "floating-point numbers"
        raise DataError(f"{name} holds {kind}, which do not tell what is white: save it with 8 or 16 bits a channel")
    if count > 1:
        warnings.warn(f"{name} holds {count} pictures: only the first is read", stacklevel=2)
    return upright.convert("RGB")


def find_images(given: pathlib.Path, limit: int | None = None) -> list[pathlib.Path]:
    """The image files in the folder `given` and below, sorted by path, at most `limit`; or `given`, if it is a file.

    Raises:
        DataError: no such folder or file, or no image in it.
    """
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise DataError(f"no folder or picture {given}: give one with --images")
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{given} holds no pictures ({' '.join(SUFFIXES)}): give another folder with --images")
    return found[:limit]


def read_picture(path: pathlib.Path, size: tuple[int, int] | None = None) -> Tensor:
    """One picture as RGB uint8 [3, height, width]: scaled to cover `size`, then cropped around its centre.

    Raises:
        DataError: the file is no readable picture.
    """
    upright = read_rgb(str(path), str(path))
    fitted = upright if size is None else PIL.ImageOps.fit(upright, size[::-1], PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def read_folder(folder: pathlib.Path, size: tuple[int, int]) -> Tensor:
    """uint8 [N, 3, H, W], every picture in the folder and below, resized; DataError as of `read_picture`."""
    return torch.stack([read_picture(path, size) for path in find_images(folder)])


def read_each(entries: Iterable[_Entry], read: Callable[[_Entry], _Read], where: str) -> Iterator[tuple[_Entry, _Read]]:
    """(entry, what `read` makes of it) of all that can be read; a warning counts those that cannot.

    Raises:
        DataError: none can be read.
    """
    done, failed = 0, []
    for entry in entries:
        try:
            value = read(entry)
        except DataError as error:
            failed.append(error)
        else:
            done += 1
            yield entry, value
    if failed and not done:
        raise DataError(f"{where}: none of {len(failed)} pictures can be read; {failed[0]}")
    if failed:
        warnings.warn(f"{where}: {len(failed)} of {done + len(failed)} pictures left out; {failed[0]}", stacklevel=2)

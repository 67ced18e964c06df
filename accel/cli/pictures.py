"""Pictures in and out: a picture or a folder of them as one tensor, and side-by-side PNGs."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from accel.cli import common
from accel.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def find_images(given: pathlib.Path, limit: int | None = None) -> list[pathlib.Path]:
    """The image files in the folder `given` and below, sorted by path, at most `limit`; or `given`, if it is a file.

    Raises:
        DataError: no such folder or file, or no image in it.
    """
    from accel.zoo.picture_files import SUFFIXES

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
    import numpy
    import PIL.Image
    import PIL.ImageOps
    import torch

    from accel.zoo.picture_files import read_rgb

    upright = read_rgb(str(path), str(path))
    fitted = upright if size is None else PIL.ImageOps.fit(upright, size[::-1], PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1)


def read_pictures(
    args: argparse.Namespace, paths: Iterable[pathlib.Path], size: tuple[int, int]
) -> tuple[Tensor, list[pathlib.Path]]:
    """Pictures as uint8 [N, 3, height, width], and their files: a warning counts those that cannot be read.

    Raises:
        DataError: none can be read.
    """
    import torch

    from accel.zoo.picture_files import read_each

    watched = common.progress(args, paths, "reading pictures")
    files, read = zip(*read_each(watched, lambda path: read_picture(path, size), str(args.images)))
    return torch.stack(read), list(files)


def write_strip(path: pathlib.Path, tiles: Sequence[Tensor]) -> None:
    """A PNG of `tiles` side by side: each uint8 or float in [0, 1], [3, H, W] or [H, W], all of one size."""
    import PIL.Image
    import torch

    gap = 4  # white pixels between the tiles
    shown = []
    for tile in tiles:
        values = tile if tile.dtype == torch.uint8 else tile.clamp(0, 1).mul(255).round().to(torch.uint8)
        colour = values if values.dim() == 3 else values.expand(3, *values.shape)
        shown += [colour.cpu(), torch.full((3, colour.shape[1], gap), 255, dtype=torch.uint8)]
    strip = torch.cat(shown[:-1], dim=2).permute(1, 2, 0).contiguous()
    PIL.Image.fromarray(strip.numpy()).save(path, format="PNG")

"""Pictures in and out: a folder of images as one tensor, and side-by-side PNGs."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from accel.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")


def find_images(folder: pathlib.Path, limit: int | None = None) -> list[pathlib.Path]:
    """Image files in `folder` and below, sorted by path, at most `limit`.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give a folder of pictures with --images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder} holds no pictures ({' '.join(SUFFIXES)}): give another folder with --images")
    return found[:limit]


def read_picture(path: pathlib.Path, size: tuple[int, int]) -> Tensor:
    """One picture as RGB uint8 [3, height, width]: scaled to cover `size`, then cropped around its centre.

    Raises:
        DataError: the file is no readable picture.
    """
    import numpy
    import PIL.Image
    import PIL.ImageOps
    import torch

    height, width = size
    try:
        with PIL.Image.open(path) as picture:
            upright = PIL.ImageOps.exif_transpose(picture).convert("RGB")
            fitted = PIL.ImageOps.fit(upright, (width, height), PIL.Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise DataError(f"cannot read the picture {path} ({error}): repair it or take it out of the folder") from error
    return torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1)


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

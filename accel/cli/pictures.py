"""Pictures in and out: a picture or a folder of them as one tensor, and side-by-side PNGs."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from accel.cli import common

if TYPE_CHECKING:
    from torch import Tensor


def read_pictures(
    args: argparse.Namespace, paths: Iterable[pathlib.Path], size: tuple[int, int]
) -> tuple[Tensor, list[pathlib.Path]]:
    """Pictures as uint8 [N, 3, height, width], and their files: a warning counts those that cannot be read.

    Raises:
        DataError: none can be read.
    """
    import torch

    from accel.zoo.picture_files import read_each, read_picture

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

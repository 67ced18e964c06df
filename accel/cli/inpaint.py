"""`accel inpaint`: fill what masks hide of pictures, several times over, and show it."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from accel.cli import common
from accel.errors import ConfigError, DataError
from accel.files import output_folder

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    from accel.vae import Inpainting

SHEET_FILE = "contact_sheet.png"
_MODEL = "zoo:inpaint_shapes"
_DRAWN, _SIZE = 6, 128  # pictures drawn where none are given, and their side
_TILE = 160  # pixels of a side of the contact sheet's pictures at most
_HIDDEN = (0.45, 0.65, 1.0)  # the colour of hidden pixels there, which no grey picture has
_REPEATS = 7  # interleaved runs of a sample of the first picture, for the time saved


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "inpaint",
        run,
        "fill what masks hide of pictures, several times over, computing only where the masks matter",
        "accel inpaint -o out/    (shapes and masks drawn on the spot)\n"
        "  accel inpaint pictures/ masks/ -o out/ -n 4   (white is hidden; one mask, or one a name)\n"
        "  accel inpaint pictures/ --masks centre --model runs/inpaint -o out/",
    )
    parser.add_argument("pictures", nargs="?", type=pathlib.Path, help="a picture or a folder (default: drawn shapes)")
    parser.add_argument("mask_files", nargs="?", type=pathlib.Path, metavar="masks", help="a mask or a folder of them")
    parser.add_argument("--masks", metavar="KIND", help="drawn masks instead of files: see accel list picture-masks")
    parser.add_argument(
        "--model", default=_MODEL, metavar="RUN", help=f"the folder of a run of accel train (default: {_MODEL})"
    )
    parser.add_argument("-n", "--samples", type=common.positive, default=4, metavar="N", help="of each picture (4)")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of the results")
    common.add_format(parser)


@dataclasses.dataclass(frozen=True)
class Job:
    """Attributes: name, of the files written; picture, uint8 [C, H, W]; hidden, bool [H, W]."""

    name: str
    picture: Tensor
    hidden: Tensor


def run(args: argparse.Namespace) -> int:
    import torch

    from accel.vae.inpainting import Inpainting
    from accel.zoo.inpainters import load_inpainter

    jobs = _jobs(args)
    vaeac, recipe = load_inpainter(args.model)
    jobs = [dataclasses.replace(job, picture=_of_channels(job.picture, recipe["vaeac"]["channels"])) for job in jobs]
    generator = torch.Generator().manual_seed(args.seed)
    rows, sheet, saving = [], [], ""
    with output_folder(args.output, SHEET_FILE) as folder:
        for job in common.progress(args, jobs, "inpainting"):
            started = time.perf_counter()
            inpainting = Inpainting(vaeac, job.picture[None].float() / 255, job.hidden[None])
            samples = inpainting.draw(args.samples, generator)[0]
            rows.append(_row(job, time.perf_counter() - started))
            saving = saving or _saving(inpainting, job.name)
            for number, sample in enumerate(samples, 1):
                _write(folder / f"{job.name}_{number}.png", sample)
            sheet.append((job, samples))
        _contact_sheet(sheet).save(folder / SHEET_FILE)
    common.print_rows(rows, args)
    common.note(
        args, f"{len(rows)} pictures, {args.samples} samples of each: open {args.output / SHEET_FILE}\n{saving}"
    )
    return 0


def _jobs(args: argparse.Namespace) -> list[Job]:
    """Pictures with their masks, from files or drawn.

    Raises:
        DataError: masks that are missing or of another size. ConfigError: an unknown kind of masks.
    """
    import torch

    from accel.zoo.inpainters import masks_named

    if args.masks is not None and args.mask_files is not None:
        raise DataError("masks come from files or are drawn by --masks: leave one of them out")
    named = list(_pictures(args))
    if args.mask_files is None:
        masks, generator = masks_named(args.masks or "any"), torch.Generator().manual_seed(args.seed)
        return [Job(name, picture, masks(picture[None], generator)[0, 0]) for name, picture in named]
    mask_of = _masks(args.mask_files)
    return [Job(name, picture, _fitting(mask_of(name), picture, name)) for name, picture in named]


def _pictures(args: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """(a name of its own, uint8 [3, H, W]) of every picture."""
    import torch

    from accel.zoo.picture_files import find_images, read_each, read_picture
    from accel.zoo.shapes import draw_shapes

    if args.pictures is None:
        drawn = draw_shapes(_DRAWN, _SIZE, torch.Generator().manual_seed(args.seed)).images
        yield from ((f"shape_{k}", picture) for k, picture in enumerate(drawn.mul(255).round().byte(), 1))
        return
    paths = find_images(args.pictures)
    stems = [path.stem for path in paths]
    for path, picture in read_each(paths, read_picture, str(args.pictures)):
        yield (path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "_")), picture


def _masks(given: pathlib.Path) -> Callable[[str], Tensor]:
    """The mask of a picture's name, bool [H, W]: the file of that name, or the only one."""
    from accel.zoo.picture_files import find_images, read_picture

    files = {path.stem: path for path in find_images(given)}
    only = next(iter(files.values())) if len(files) == 1 else None

    def mask_of(name: str) -> Tensor:
        path = files.get(name, only)
        if path is None:
            raise DataError(f"{given} holds no mask called {name}: give one of each picture's name, or a single one")
        return read_picture(path).float().mean(0) > 127

    return mask_of


def _fitting(hidden: Tensor, picture: Tensor, name: str) -> Tensor:
    if hidden.shape != picture.shape[1:]:
        raise DataError(
            f"the mask of {name} has {hidden.shape[0]}x{hidden.shape[1]} pixels, the picture "
            f"{picture.shape[1]}x{picture.shape[2]}: make them alike"
        )
    return hidden


def _of_channels(picture: Tensor, channels: int) -> Tensor:
    """uint8 [3, H, W] as a model of so many channels reads it: grey by the weights of ITU-R 601, grey ones unchanged.

    Raises:
        ConfigError: a model of neither 1 nor 3 channels.
    """
    import torch

    if channels not in (1, 3):
        raise ConfigError(f"pictures have 1 or 3 channels, the model is of {channels}: give another model")
    if channels == 3:
        return picture
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int64, device="cpu")[:, None, None]  # their sum is 2^16
    return ((picture * weights).sum(0, keepdim=True) + 2**15 >> 16).byte()


def _row(job: Job, seconds: float) -> dict[str, Any]:
    return {
        "picture": job.name,
        "size": "x".join(map(str, job.hidden.shape)),
        "hidden": round(float(job.hidden.float().mean()), 4),
        "seconds": round(seconds, 4),
    }


def _saving(inpainting: Inpainting, name: str) -> str:
    """What a sample takes, beside a decoder that computes every position."""
    import functools

    from accel.profiling.latency import compare, ratio

    sides = {side: functools.partial(inpainting.decode, sparse=side == "ours") for side in ("dense", "ours")}
    timing = compare(sides, _REPEATS)
    ours, dense = timing["ours"], timing["dense"]
    return (
        f"a sample of {name}: {ours.median_ms:.2f} ms, {dense.median_ms:.2f} ms where all positions are computed "
        f"({ratio(dense, ours).median:.2f} times as long)"
    )


def _write(path: pathlib.Path, picture: Tensor) -> None:
    import PIL.Image

    pixels = picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, format="PNG")


def _contact_sheet(rows: list[tuple[Job, Tensor]]) -> PIL.Image.Image:
    """A row a picture: as it is, what is seen of it, and the samples."""
    import torch
    from torchvision.transforms.v2 import functional
    from torchvision.utils import make_grid

    tiles = []
    for job, samples in rows:
        picture = (job.picture.float() / 255).expand(3, -1, -1)
        seen = torch.where(job.hidden, torch.tensor(_HIDDEN, device="cpu")[:, None, None], picture)
        tiles += [_tile(tile.expand(3, -1, -1)) for tile in (picture, seen, *samples)]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    padded = [functional.pad(tile, [0, 0, width - tile.shape[2], height - tile.shape[1]], 1.0) for tile in tiles]
    sheet = make_grid(torch.stack(padded), nrow=len(tiles) // len(rows), padding=4, pad_value=1.0)
    return functional.to_pil_image(sheet.clamp(0, 1).mul(255).round().byte())


def _tile(picture: Tensor) -> Tensor:
    """At most `_TILE` pixels wide and high: small ones enlarged by a whole number, pixels as squares."""
    from torchvision.transforms.v2 import functional

    times, size = _TILE // max(picture.shape[1:]), picture.shape[1:]
    if times:
        return picture.repeat_interleave(times, 1).repeat_interleave(times, 2)
    fitted = [max(1, round(extent * _TILE / max(size))) for extent in size]
    return functional.resize(picture, fitted, antialias=True)

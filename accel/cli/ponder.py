"""`accel ponder`: where an adaptive network looks longer: maps of ponder cost and units, per stage and summed."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from accel.cli import common, models
from accel.errors import ConversionError
from accel.files import output_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from accel.nn.adaptive import AdaptiveOutput

    Maps = dict[str, np.ndarray]

MARKER, PAGE = "ponder.json", "ponder.html"
SHOWN = 24  # pictures on the page
QUANTITIES = ("ponder", "units")
_OVERLAY = 0.75  # opacity of the summed map over the picture, as in the authors' tool
_CLIP = (0.1, 99.9)  # percentiles between which the colours run, as in the authors' tool


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "ponder",
        run,
        "draw where an ACT, SACT or PACT network looks longer, over pictures of any size",
        "accel ponder zoo:resnet32_cifar --weights sact.safetensors --images photos/ -o maps/",
    )
    models.add_model(parser)
    parser.add_argument("--images", type=pathlib.Path, required=True, metavar="PATH", help="a picture or a folder")
    parser.add_argument("--limit", type=common.positive, metavar="N", help="use the first N pictures only")
    parser.add_argument("--size", type=common.image_size, metavar="HxW", help="scale and crop (default: as they are)")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder to write")
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    import json

    from accel.zoo.picture_files import find_images, read_each, read_picture

    paths = find_images(args.images, args.limit)
    resolved = models.resolve_args(args)
    rows = []
    with output_folder(args.output, MARKER) as folder:
        watched = common.progress(args, paths, "pondering")
        for path, picture in read_each(watched, lambda path: read_picture(path, args.size), str(args.images)):
            maps = ponder_maps(resolved, picture)
            name = f"{len(rows):03d}_{path.stem}"
            save_arrays(folder / f"{name}.npz", maps)
            for quantity in QUANTITIES:
                draw(folder / f"{name}_{quantity}.png", picture, maps, quantity)
            rows.append({"picture": path.name, "size": "x".join(map(str, picture.shape[1:])), **summary(maps)})
        (folder / PAGE).write_text(page(args.model, rows, folder), encoding="utf-8")
        (folder / MARKER).write_text(json.dumps({"schema": 1, "model": args.model, "pictures": rows}, indent=2) + "\n")
    common.print_rows(rows, args)
    models.standardise_note(args, resolved)
    common.note(args, f"saved in {args.output}/: {PAGE}, and NAME_ponder.png, NAME_units.png, NAME.npz of each picture")
    return 0


def page(model: str, rows: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> str:
    """The HTML page, with the drawn maps of the first `SHOWN` pictures inside."""
    from accel.reports.pages import picture_source, render

    means = [row["ponder"] for row in rows]
    longest, shortest = (pick(rows, key=lambda row: row["ponder"]) for pick in (max, min))
    headline = [
        (f"{sum(means) / len(means):.2f}", f"mean ponder cost of {len(rows)} picture{'s' * (len(rows) != 1)}"),
        (f"{longest['ponder']:.2f}", f"of the picture that took longest, {longest['picture']}"),
        (f"{shortest['ponder']:.2f}", f"of the one that took shortest, {shortest['picture']}"),
    ]
    shown = []
    for number, row in enumerate(rows[:SHOWN]):
        drawn = folder / f"{number:03d}_{pathlib.Path(row['picture']).stem}_ponder.png"
        source = picture_source(lambda file, drawn=drawn: file.write(drawn.read_bytes()))
        shown.append((row["picture"], row["size"], f"{row['ponder']:.2f}", source))
    left_out = max(0, len(rows) - SHOWN)
    return render(
        "ponder.html", title=f"accel ponder {model}", model=model, headline=headline, pictures=shown, left_out=left_out
    )


def ponder_maps(resolved: models.Resolved, picture: Tensor) -> Maps:
    """The maps of one picture, uint8 [3, H, W], see `maps_of`.

    Raises:
        ConversionError: the model is not adaptive, or cannot run on a picture of this size.
    """
    import torch

    from accel.nn.adaptive import AdaptiveOutput

    x = resolved.prepare(picture[None])
    resolved.check(x)
    with torch.inference_mode():
        out = resolved.model(x)
    if not isinstance(out, AdaptiveOutput):
        raise ConversionError(
            "the model is not adaptive: give one with ACT, SACT or PACT stages, such as accel train's"
        )
    return maps_of(out, tuple(picture.shape[1:]))


def maps_of(out: AdaptiveOutput, size: tuple[int, int]) -> Maps:
    """`ponder_<k>` and `units_<k>` of every stage at its own size, and their sums at `size`, by nearest pixel, of the
    first picture. ACT decides once for the whole picture: its maps have one value."""
    import torch
    import torch.nn.functional as F

    maps = {}
    for quantity in QUANTITIES:
        total = torch.zeros(size)
        for k, stage in enumerate(out.stages):
            values = (stage.ponder_cost if quantity == "ponder" else stage.num_units).float()
            values = values if values.dim() == 3 else values[:, None, None]
            maps[f"{quantity}_{k + 1}"] = values[0].numpy()
            total += F.interpolate(values[None], size=size, mode="nearest-exact")[0, 0]
        maps[quantity] = total.numpy()
    return maps


def summary(maps: Maps) -> dict[str, float]:
    """Mean of every map, and the smallest and largest summed ponder cost."""
    means = {name: round(float(values.mean()), 3) for name, values in maps.items()}
    return {**means, "lowest": round(float(maps["ponder"].min()), 3), "highest": round(float(maps["ponder"].max()), 3)}


def save_arrays(path: pathlib.Path, maps: Maps) -> None:
    import numpy as np

    np.savez_compressed(path, **maps)


def draw(path: pathlib.Path, picture: Tensor, maps: Maps, quantity: str) -> None:
    """A PNG: the picture, the summed map over it, and the map of every stage, each with its colour bar."""
    import matplotlib.figure

    stages = sorted(name for name in maps if name.startswith(f"{quantity}_"))
    shown = picture.permute(1, 2, 0).numpy()
    height, width = shown.shape[:2]
    count = 2 + len(stages)
    columns = count if count < 5 else 3
    rows = -(-count // columns)
    tall = min(max(height / width, 0.4), 2.5)
    figure = matplotlib.figure.Figure(figsize=(4.2 * columns, (3.6 * tall + 0.5) * rows), dpi=100)
    figure.set_layout_engine("compressed")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    axes[0].imshow(shown)
    axes[0].set_title("picture")
    label = "ponder cost" if quantity == "ponder" else "units"
    axes[1].imshow(shown)
    _paint(figure, axes[1], maps[quantity], f"{label}, all stages", (width, height), alpha=_OVERLAY)
    for axis, name in zip(axes[2:], stages):
        rows, columns = maps[name].shape
        title = f"stage {name.rpartition('_')[2]} ({rows}x{columns})"
        _paint(figure, axis, maps[name], title, (width, height))
    for axis in axes[:count]:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, format="png")


def _paint(figure, axis, values, title: str, extent: tuple[int, int], alpha: float = 1.0) -> None:
    import numpy as np

    low, high = np.percentile(values, _CLIP)
    high = high if high > low else low + 1
    painted = axis.imshow(
        values, cmap="viridis", vmin=low, vmax=high, alpha=alpha, interpolation="nearest",
        extent=(-0.5, extent[0] - 0.5, extent[1] - 0.5, -0.5),
    )  # fmt: skip
    axis.set_title(title)
    bar = figure.colorbar(painted, ax=axis, fraction=0.046, pad=0.03)
    bar.solids.set_alpha(1)

"""Cases of kind `inpainting`: how well hidden pixels come back, beside what people have at hand, and the time saved.

A case: `model` (the folder of a run), `masks` (kinds, see `accel list picture-masks`), `samples`,
`count` of pictures, and either `shapes` (the side of drawn ones) or `data` (a data set; its first test pictures).
Rows, one a kind of mask: decibels over hidden pixels, mean of the pictures, of the mean of the samples (`psnr`), of a
single sample, and of three rivals: the mean of the seen pixels, OpenCV's two methods (Telea 2004; Navier-Stokes,
Bertalmio et al. 2001); `lead`, of `psnr` over the best rival; `fill`, of the smooth fill that the model starts from,
alone; `diversity`, the samples' standard deviation; `speedup` of one sample, one picture at a time, over the same
decoder computed everywhere.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from accel.vae import VAEAC

SHOWN = (
    "case",
    "masks",
    "psnr",
    "one_sample",
    "mean_fill",
    "telea",
    "navier_stokes",
    "fill",
    "lead",
    "diversity",
    "speedup",
)
_RADIUS = 3  # pixels that OpenCV's methods look around, as its tutorial has it
_TIMED = 8  # pictures


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.vae.inpainting import inpaint, psnr
    from accel.vae.pyramid_fill import pyramid_fill
    from accel.zoo.inpainters import load_inpainter, masks_named

    vaeac, _ = load_inpainter(case["model"])
    pictures = _pictures(case, settings.seed)
    for kind in case["masks"]:
        generator = torch.Generator().manual_seed(settings.seed)
        hidden = masks_named(kind)(pictures, generator)[:, 0]
        parts = zip(pictures.split(16), hidden.split(16))
        found = torch.cat([inpaint(vaeac, x, where, case["samples"], generator=generator) for x, where in parts])
        rivals = {
            name: float(psnr(filled, pictures, hidden).mean()) for name, filled in _rivals(pictures, hidden).items()
        }
        value = float(psnr(found.mean(1), pictures, hidden).mean())
        fill = pyramid_fill(pictures, hidden[:, None].expand_as(pictures))
        spread = found.std(1).mean(1)[hidden].mean()
        yield {
            "masks": kind,
            "psnr": round(value, 3),
            "one_sample": round(float(psnr(found[:, 0], pictures, hidden).mean()), 3),
            **{name: round(rival, 3) for name, rival in rivals.items()},
            "fill": round(float(psnr(fill, pictures, hidden).mean()), 3),
            "lead": round(value - max(rivals.values()), 3),
            "diversity": round(float(spread), 5),
            "hidden": round(float(hidden.float().mean()), 4),
            **_times(vaeac, pictures[:_TIMED], hidden[:_TIMED], settings.repeats),
        }


def _pictures(case: Mapping[str, Any], seed: int) -> Tensor:
    import torch

    from accel.zoo.datasets import load_pictures
    from accel.zoo.shapes import draw_shapes

    if "shapes" in case:  # a seed of no training step
        return draw_shapes(case["count"], case["shapes"], torch.Generator().manual_seed(2**40 + seed)).images
    return load_pictures(pathlib.Path(case["data"]), "test").pictures[: case["count"]].float() / 255


def _rivals(pictures: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    import cv2
    import torch

    where = hidden[:, None]
    seen = (~where).expand_as(pictures)
    mean = torch.where(seen, pictures, 0.0).sum((2, 3), True) / seen.sum((2, 3), True).clamp(min=1)
    found = {"mean_fill": torch.where(where, mean, pictures)}
    for name, method in (("telea", cv2.INPAINT_TELEA), ("navier_stokes", cv2.INPAINT_NS)):
        filled = [_by_opencv(x, mask, method) for x, mask in zip(pictures, hidden)]
        found[name] = torch.where(where, torch.stack(filled), pictures)
    return found


def _by_opencv(picture: Tensor, hidden: Tensor, method: int) -> Tensor:
    import cv2
    import torch

    pixels = picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    mask = hidden.numpy().astype(np.uint8) * 255
    filled = cv2.inpaint(np.where(mask[..., None] > 0, 0, pixels).squeeze(), mask, _RADIUS, method)
    return torch.from_numpy(filled.reshape(pixels.shape)).permute(2, 0, 1).float() / 255


def _times(vaeac: VAEAC, pictures: Tensor, hidden: Tensor, repeats: int) -> Row:
    """Median milliseconds of a sample, and the error of the sparse decoder against the dense one."""
    from accel.profiling.latency import compare, ratio
    from accel.vae.inpainting import Inpainting

    ours, dense, ratios, errors = [], [], [], []
    for x, where in zip(pictures.split(1), hidden.split(1)):
        inpainting = Inpainting(vaeac, x, where)
        sides = {name: functools.partial(inpainting.decode, sparse=name == "ours") for name in ("ours", "dense")}
        timing = compare(sides, repeats)
        ours.append(timing["ours"].median_ms)
        dense.append(timing["dense"].median_ms)
        ratios.append(ratio(timing["dense"], timing["ours"]).median)
        difference = (inpainting.decode() - inpainting.decode(sparse=False)).abs()
        errors.append(float(difference.amax(1)[where].max()))
    return {
        "sample_ms": round(float(np.median(ours)), 4),
        "dense_ms": round(float(np.median(dense)), 4),
        "speedup": round(float(np.exp(np.mean(np.log(ratios)))), 3),
        "error": max(errors),
        "correct": max(errors) < 1e-4,
    }

"""What the live page says of a picture, in plain functions that know nothing of the page."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

import accel
from accel.cli import demo
from accel.cli.demo_pictures import cut_out
from accel.cli.ponder import maps_of
from accel.convert.computed import computed_share
from accel.masks.lattice import closest_keep
from accel.nn.adaptive import adaptive_stages
from accel.profiling.flops import count_macs
from accel.profiling.latency import compare, ratio
from accel.zoo.demo_net import mask_iou
from accel.zoo.picture_files import read_rgb
from accel.zoo.registry import default_rules, get_model, preprocess
from accel.zoo.shapes import CLASSES, draw_shapes, normalise

if TYPE_CHECKING:
    from accel.profiling.latency import Timing
    from accel.zoo.demo_net import DemoOutput

KEEPS = (0.1, 1.0)  # between which the page offers to keep
MASKS = (demo.MASK, "grid", "uniform", "adaptive")
SACT = "zoo:resnet32_cifar_sact"
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MOST_CONVERSIONS = 12  # kept: about 10 MB each
_CALIBRATION = 8  # drawn pictures, for the ranges of bytes
_REPEATS = 5  # interleaved rounds
_LONGEST, _SACT_LONGEST = 160, 128  # pixels of a picture as the networks read it
_STEP, _LEAST = 8, 32  # pixels: sides are multiples of the first, and at least the second
_ZOOM = 4  # screen pixels of a pixel, at the least
_OVERLAY = 0.7  # opacity of a map over its picture


@dataclasses.dataclass(frozen=True)
class Look:
    """What a network makes of a picture.

    Attributes:
        compared: left and right, RGB of one size.
        painted: a map over the picture, RGB.
        scale: what its darkest and its brightest colour stand for.
        numbers: (value, what it is) of every number to show.
        words: sentences about them.
    """

    compared: tuple[PIL.Image.Image, PIL.Image.Image]
    painted: PIL.Image.Image
    scale: tuple[str, str]
    numbers: tuple[tuple[str, str], ...]
    words: tuple[str, ...]


class Perforated:
    """The demo network, dense and converted as the page asks; conversions are made once, the newest few are kept."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._dense = get_model(demo.MODEL).to(memory_format=torch.channels_last)
        drawn = draw_shapes(_CALIBRATION, _LONGEST, torch.Generator().manual_seed(seed))
        self._calibration = normalise(drawn.images).contiguous(memory_format=torch.channels_last)
        self.converted = functools.lru_cache(_MOST_CONVERSIONS)(self._convert)

    def _convert(self, config: accel.Perforate) -> nn.Module:
        rules = default_rules(demo.MODEL, config)
        x = self._calibration
        return accel.convert_model(self._dense, rules, example_inputs=x[:1], calibration=[x])

    def look(self, picture: PIL.Image.Image, keep: float, mask: str = demo.MASK, precision: str = "fp32") -> Look:
        """Both networks on a picture, and their times on this machine.

        Args:
            keep: share of the positions to compute; of a lattice the closest one that it has.

        Raises:
            ConfigError: a setting that there is not, or two that do not go together.
        """
        closest = closest_keep(keep) if mask == demo.MASK else keep
        config = accel.Perforate(keep=closest, mask=mask, precision=precision, seed=self._seed)
        net, pixels = self.converted(config), as_pixels(picture, _LONGEST)
        x = preprocess(demo.MODEL, pixels).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            dense, ours = self._dense(x), net(x)
            timings = demo.times(self._dense, {"ours": net}, x, _REPEATS)
            share = count_macs(net, x) / count_macs(self._dense, x)
            worked = computed_share(net, x, tuple(x.shape[2:]))[0]
        images = pixels.float() / 255
        return Look(
            compared=tuple(enlarged(cut_out(images, out.mask > 0)[0]) for out in (dense, ours)),
            painted=painted(images[0], worked.numpy(), 0, 1),
            scale=("nothing computed", "everything"),
            numbers=(*_time_numbers(demo.fastest_dense(timings), timings["ours"], share), _overlap(dense, ours)),
            words=_perforated_words(config, keep, dense, ours, x),
        )


def _time_numbers(dense: Timing, ours: Timing, share: float) -> tuple[tuple[str, str], ...]:
    faster = ratio(dense, ours)
    return (
        (f"{100 * share:.0f} %", "of the multiply-accumulates"),
        (f"{ours.median_ms:.1f} ms", f"a picture on this machine; dense {dense.median_ms:.1f} ms"),
        (f"{faster.median:.2f}x", f"as fast as dense ({faster.low:.2f} to {faster.high:.2f})"),
    )


def _overlap(dense: DemoOutput, ours: DemoOutput) -> tuple[str, str]:
    found = dense.mask > 0
    if not (found.any() or (ours.mask > 0).any()):
        return "none", "neither network outlines anything"
    return f"{float(mask_iou(ours.mask, found.float())):.2f}", "overlap (IoU) of the two outlines"


def _perforated_words(config: accel.Perforate, asked: float, dense: DemoOutput, ours: DemoOutput, x: Tensor) -> tuple:
    lines = [
        f"Left, the dense network: {_named(dense.logits, CLASSES)}. Right, the converted one: "
        f"{_named(ours.logits, CLASSES)}. What a network does not take for the object is pale.",
        f"Read at {x.shape[3]}x{x.shape[2]} pixels. {_measured()}",
    ]
    if abs(config.keep - asked) > 0.01:
        lines.insert(0, f"Of {asked:g} the closest that mask 'lattice' has is {config.keep:.2f}.")
    return tuple(lines)


def _measured() -> str:
    return (
        f"Times are medians of {_REPEATS} rounds in which the networks took turns, one picture at a time; threads: "
        f"{torch.get_num_threads()}."
    )


def _named(logits: Tensor, classes: tuple[str, ...]) -> str:
    chances = logits[0].softmax(0)
    return f"{classes[int(chances.argmax())]} ({100 * float(chances.max()):.0f} %)"


class Adaptive:
    """The ResNet-32 with SACT that ships: it runs more of its units where a picture needs them."""

    def __init__(self) -> None:
        self._net = get_model(SACT)
        self._dense = accel.revert_model(self._net).eval()

    def look(self, picture: PIL.Image.Image) -> Look:
        """The picture, its map of units, and the time beside the same network that runs every unit everywhere."""
        pixels = as_pixels(picture, _SACT_LONGEST)
        x = preprocess(SACT, pixels).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            out = self._net(x)
            timings = compare({"dense": lambda: self._dense(x), "ours": lambda: self._net(x)}, _REPEATS)
            share = count_macs(self._net, x) / count_macs(self._dense, x)
        units = maps_of(out, tuple(x.shape[2:]))["units"]
        image, most = pixels[0].float() / 255, sum(len(stage) for stage in adaptive_stages(self._net))
        overlay = painted(image, units, float(units.min()), float(units.max()))
        return Look(
            compared=(enlarged(image), overlay),
            painted=overlay,
            scale=(f"{units.min():.0f} units", f"{units.max():.0f} units"),
            numbers=(
                *_time_numbers(timings["dense"], timings["ours"], share),
                (f"{units.mean():.1f}", f"units at a position on average, of {most}"),
            ),
            words=(f"It calls this: {_named(out.logits, _CIFAR)}.", _measured()),
        )


def read_upload(path: str) -> PIL.Image.Image:
    """A picture that was uploaded. DataError: it is none, damaged or too large; only its own name is told."""
    return read_rgb(path, pathlib.Path(path).name)


def as_pixels(picture: PIL.Image.Image, longest: int) -> Tensor:
    """uint8 [1, 3, H, W], the longer side `longest` pixels, both multiples of 8."""
    scale = longest / max(picture.size)
    width, height = (max(_LEAST, _STEP * round(side * scale / _STEP)) for side in picture.size)
    resized = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]


def enlarged(image: Tensor) -> PIL.Image.Image:
    """A float picture [3, H, W] in 0..1, every pixel a square."""
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    shown = PIL.Image.fromarray(pixels.contiguous().numpy())
    return shown.resize((_ZOOM * shown.width, _ZOOM * shown.height), PIL.Image.Resampling.NEAREST)


def painted(image: Tensor, values: np.ndarray, low: float, high: float) -> PIL.Image.Image:
    """A map [H, W] in viridis, dark at `low` and bright at `high`, over a picture [3, H, W]."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colours = torch.from_numpy(matplotlib.colormaps["viridis"](scaled)[..., :3]).permute(2, 0, 1)
    return enlarged(torch.lerp(image.mean(0, keepdim=True).expand_as(image), colours.float(), _OVERLAY))


def draw_examples(folder: pathlib.Path, seed: int = 0) -> list[str]:
    """PNG files of drawn pictures, one of each class."""
    drawn = draw_shapes(64, _LONGEST, torch.Generator().manual_seed(seed))
    paths = []
    for index, name in enumerate(CLASSES):
        image = drawn.images[int((drawn.labels == index).nonzero()[0])]
        pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0)
        paths.append(str(folder / f"{name}.png"))
        PIL.Image.fromarray(pixels.contiguous().numpy()).save(paths[-1])
    return paths

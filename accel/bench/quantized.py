"""Cases of kind `quantized`: single convolutions of a network in bytes against the same ones of the fp32 engine.

A case: `model`, `size`, `batch` (list), `keep` (list) and `mask` as of kind `layers`, of which the 3x3 convolutions of
stride 1 are taken that read at least `channels` channels and have at least `positions` positions. Both sides compute
bias and ReLU at the same positions and give compact rows. `gops` counts two operations a MAC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.layers import Layer, at_positions, layers_of
from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from accel.kernels.positions import PositionSet
    from accel.kernels.quantization import Requantization

SHOWN = ("case", "layer", "geometry", "batch", "kept", "threads", "gops_fp32", "gops_bytes", "ratio")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    for layer in layers_of(case["model"], case["size"], distinct=True):
        plain = layer.conv.kernel_size == (3, 3) and layer.conv.stride == (1, 1)
        if not plain or layer.conv.in_channels < case["channels"] or layer.height * layer.width < case["positions"]:
            continue
        for batch in case["batch"]:
            generator = torch.Generator().manual_seed(settings.seed)
            x = torch.randn(batch, layer.conv.in_channels, layer.height, layer.width, generator=generator)
            with torch.no_grad():  # weights made in inference mode would be packed again at every call
                yield from measure(layer, x.to(memory_format=torch.channels_last), case, settings)


def measure(layer: Layer, x: Tensor, case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    """A row for every keep: are the bytes those of integers, then interleaved times."""
    import torch

    from accel import ops
    from accel.masks import build_mask, layer_generator
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import medians, quantiles

    conv, size = layer.conv, (layer.height, layer.width)
    in_bytes, weight, requantization = quantized(layer, x)
    expected = bytes_of_integers(layer, in_bytes, weight, requantization)
    options = {"padding": (1, 1, 1, 1), "compact": True}
    for keep in case["keep"]:
        kept = build_mask(case["mask"], keep, *size, generator=layer_generator(settings.seed, layer.name, *size))
        sides = {
            "fp32": lambda kept=kept: at_positions(conv, x, kept, activation="relu", compact=True),
            "bytes": lambda kept=kept: ops.quantized_conv2d(in_bytes, weight, requantization, kept, **options),
        }
        row = {"layer": layer.name, "geometry": layer.geometry, "batch": len(x), "keep": keep}
        row |= {"kept": round(kept.keep, 4), "threads": torch.get_num_threads(), "error": _error(sides, expected, kept)}
        if row["error"]:
            yield {**row, "correct": False}
            continue
        timing = compare(sides, repeats=settings.repeats)
        operations = 2 * len(x) * len(kept) * weight.numel()
        row |= {f"gops_{name}": round(operations / side.median_ms / 1e6, 1) for name, side in timing.items()}
        row["ratio"] = round(ratio(timing["fp32"], timing["bytes"]).median, 3)
        yield {**row, "correct": True, **medians(timing), "quantiles": quantiles(timing)}


def quantized(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Requantization]:
    """(bytes of x, int8 weights, a requantization to bytes after a ReLU): scales by the largest values."""
    import torch

    from accel.ops import Affine, Requantization

    weight, dense = layer.conv.weight, layer.conv(x)
    scale = weight.abs().amax((1, 2, 3)) / 127
    low, high = float(x.min()), float(x.max())
    of_x = Affine((high - low) / 255, round(-low / (high - low) * 255))
    out = Affine(float(dense.max()) / 255, 0)  # what a ReLU leaves begins at zero
    levels = (weight / scale[:, None, None, None]).round().to(torch.int8)
    return of_x.quantize(x), levels, Requantization.of(of_x, scale, layer.conv.bias, out)


def bytes_of_integers(layer: Layer, x: Tensor, weight: Tensor, requantization: Requantization) -> Tensor:
    """The dense output, from sums in float64, which holds these integers exactly."""
    import torch.nn.functional as F

    sums = F.conv2d(x.double() - requantization.levels.x_zero, weight.double(), padding=layer.conv.padding)
    y = sums.float() * requantization.multiplier[:, None, None]
    if requantization.offset is not None:
        y = y + requantization.offset[:, None, None]
    return y.round().clamp(0, 255)


def _error(sides: Mapping[str, Any], expected: Tensor, kept: PositionSet) -> float:
    """The share of bytes that differ."""
    rows = expected.flatten(2)[:, :, kept.positions.long()].transpose(1, 2).flatten(0, 1)
    return float((sides["bytes"]() != rows).float().mean())

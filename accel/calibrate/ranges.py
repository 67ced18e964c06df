"""What calibration data tells of a layer in eight bits: the range of its input's bytes, and how far its weights'
integers reach."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from accel.errors import DataError
from accel.kernels.quantization import BYTE, Affine
from accel.nn.quantized import Quantization, round_weights

_SHARES = (0.999, 0.9999)  # of the values, within a range that leaves out those beyond
_SEEN = 1 << 20  # values that ranges are compared on
_TOGETHER = 1 << 18  # weights, which stay in the caches
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)  # of weights


@torch.no_grad()
def quantization_of(
    layer: nn.Conv2d | nn.Linear, name: str, x: Tensor, clips: dict[str, Tensor] | None = None
) -> Quantization:
    """The least squared errors of x [N, C, H, W] or [C, H, W] (of a linear layer [..., C]) in bytes, and of the layer's
    weights in signed ones.

    Args:
        clips: where weights are clipped, by the layer's name: looked up, or added; for weights that nobody changes.

    Raises:
        DataError: x is zero everywhere, or not finite.
    """
    affine = _as_bytes(name, *_range_of(name, x, *_extremes(x)))
    channels = -1 if isinstance(layer, nn.Linear) else -3
    clips = {} if clips is None else clips
    if name not in clips:
        clips[name] = _clips(layer.weight)
    return _quantization(affine, clips[name], x.transpose(0, channels).flatten(1).float().mean(1))


@torch.no_grad()
def widened(quantization: Quantization, name: str, x: Tensor) -> Quantization:
    """The same for a layer that is called again, with x: its bytes hold both."""
    old = quantization.input
    least, most = _extremes(x)
    low, high = _range_of(name, x, least, most) if least or most else (0.0, 0.0)
    ends = old.ends
    if ends[0] - old.scale <= low and high <= ends[1] + old.scale:
        return quantization
    affine = _as_bytes(name, min(ends[0], low), max(ends[1], high))
    widened = _quantization(affine, quantization.clip, quantization.mean)
    return dataclasses.replace(widened, reach=quantization.reach)


@torch.no_grad()
def reaching(quantization: Quantization, out: Tensor) -> Quantization:
    """The same for a convolution that gave `out` [N, K, H, W] or [K, H, W]; it holds what other calls gave."""
    rows = out.movedim(-3, -1).flatten(0, -2).float()
    if not len(rows):
        return quantization
    seen = torch.stack(torch.aminmax(rows, dim=0))
    if quantization.reach is not None:
        low, high = quantization.reach
        seen = torch.stack((torch.minimum(seen[0], low), torch.maximum(seen[1], high)))
    return dataclasses.replace(quantization, reach=seen) if seen.isfinite().all() else quantization


def _quantization(affine: Affine, clip: Tensor, mean: Tensor) -> Quantization:
    scale = torch.tensor(affine.scale, dtype=torch.float64, device="cpu")
    return Quantization(scale, torch.tensor(affine.zero_point, dtype=torch.int64, device="cpu"), clip, mean)


def _range_of(name: str, x: Tensor, least: float, most: float) -> tuple[float, float]:
    """Of the ranges that leave out the values beyond some share on either side, or none, the best for x in bytes, whose
    values lie between the least and the most."""
    if not (abs(least) < float("inf") and abs(most) < float("inf")):
        raise DataError(f"layer {name!r} reads NaN or infinities in the calibration data: mend the pictures")
    if least == most == 0:
        raise DataError(
            f"layer {name!r} reads nothing but zeros in the calibration data, which gives its bytes no range: give "
            f"other pictures, or leave the layer in fp32 by a rule of its own"
        )
    seen = _every(x, -(-x.numel() // _SEEN)).float()
    edges = [edge for share in _SHARES for edge in (1 - share, share)]
    ends = torch.quantile(seen, torch.tensor(edges, dtype=seen.dtype, device=seen.device))
    ranges = [(least, most), *((float(low), float(high)) for low, high in ends.view(-1, 2))]
    ranges = [(min(low, 0.0), max(high, 0.0)) for low, high in ranges]
    return min((each for each in ranges if each[0] < each[1]), key=lambda each: _error(seen, _as_bytes(name, *each)))


def _extremes(x: Tensor) -> tuple[float, float]:
    """The least and the largest value, (0, 0) of none, read in the order of the memory: HED's largest map of 13
    pictures takes 0.02 s so, 0.5 s in the order of a channels_last map's dimensions."""
    if not x.numel():
        return 0.0, 0.0
    least, most = x.permute(sorted(range(x.dim()), key=lambda dim: -x.stride(dim))).aminmax()
    return float(least), float(most)


def _every(x: Tensor, step: int) -> Tensor:
    """Every so many of the values of x, in the order of its dimensions; of a large one without a copy in that order."""
    if step == 1:
        return x.reshape(-1)
    index, offset = torch.arange(0, x.numel(), step, device=x.device), 0
    for size, stride in zip(reversed(x.shape), reversed(x.stride())):
        offset, index = offset + index % size * stride, index.div(size, rounding_mode="floor")
    return x.as_strided((int(offset.max()) + 1,), (1,))[offset]


def _as_bytes(name: str, low: float, high: float) -> Affine:
    """The bytes that reach from low to high, which zero lies between: it is one of their values."""
    scale = (high - low) / BYTE
    try:
        return Affine(scale, min(max(round(-low / scale), 0), BYTE))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise DataError(
            f"layer {name!r} reads values from {low:g} to {high:g} in the calibration data, which bytes cannot hold: "
            "leave it in fp32 by a rule of its own"
        ) from error


def _error(x: Tensor, affine: Affine) -> float:
    return float((affine.dequantize(affine.quantize(x)) - x).square().mean())


def _clips(weight: Tensor) -> Tensor:
    """[K], for every output channel the clip of the least squared error."""
    channels = max(_TOGETHER // max(weight[0].numel(), 1), 1)
    return torch.cat([_clips_of(part) for part in weight.split(channels)])


def _clips_of(weight: Tensor) -> Tensor:
    errors = []
    for share in _CLIPS:
        steps, scale = round_weights(weight, weight.new_full((len(weight),), share))
        errors.append((steps.flatten(1) * scale[:, None] - weight.flatten(1)).square().sum(1))
    best = torch.stack(errors).argmin(0)
    return torch.tensor(_CLIPS, dtype=weight.dtype, device=weight.device)[best]

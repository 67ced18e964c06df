"""What a layer in eight bits computes with: what the bytes of its input stand for, and its weights as integers.

Jacob et al. 2017, arXiv 1712.05877: bytes per tensor, trained through fake quantization; Krishnamoorthi 2018, arXiv
1806.08342: signed weights, a scale for every output channel; Nagel et al. 2019, arXiv 1906.04721: the bias takes what
rounding the weights adds to the mean.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, ConversionError
from accel.kernels.positions import PositionSet, every_position
from accel.kernels.quantization import BYTE, MOST_TERMS, NUMBERS, Affine, Requantization
from accel.kernels.quantized_conv2d import quantized_conv2d
from accel.nn.folding import Folded

STEPS = 127  # of weights, on either side of zero
BYTE_ACTIVATIONS = ("none", "relu", "relu6")  # bounds of bytes
_KEPT = 3  # integers of a layer, as foldings of its weights
_FLOATING = contextvars.ContextVar("accel_floating", default=False)


@contextlib.contextmanager
def floating() -> Iterator[None]:
    """Within the block, layers in eight bits or bf16 compute in fp32: two ways to run a network can then be compared,
    which differ by rounding; a byte that rounds the other way is a hundred times as much as that."""
    token = _FLOATING.set(True)
    try:
        yield
    finally:
        _FLOATING.reset(token)


def is_floating() -> bool:
    """Whether layers in eight bits or bf16 compute in fp32 here."""
    return _FLOATING.get()


class Meaning(NamedTuple):
    """The layers whose inputs say what bytes stand for: those that a layer reads (None: its own input does), those that
    it adds, and those that it gives (None: it gives numbers)."""

    read: nn.Module | None = None
    added: nn.Module | None = None
    given: nn.Module | None = None

    def gives(self, activation: str) -> bool:
        """Whether the layer gives bytes, if that is its activation."""
        return self.given is not None and activation in BYTE_ACTIVATIONS


OWN = Meaning()


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """What a calibration found for one layer, on the CPU.

    Attributes:
        scale, zero_point: float64 [] and int64 [], of the input's bytes.
        clip: [K], the share of an output channel's largest weight that `STEPS` steps reach.
        mean: [C], of the input.

    Raises:
        ValueError: other shapes, or numbers that make no scale.
    """

    scale: Tensor
    zero_point: Tensor
    clip: Tensor
    mean: Tensor

    def __post_init__(self) -> None:
        for name, rank in (("scale", 0), ("zero_point", 0), ("clip", 1), ("mean", 1)):
            if getattr(self, name).dim() != rank:
                raise ValueError(f"{name} must have rank {rank}, got shape {tuple(getattr(self, name).shape)}")
        if not ((self.clip > 0) & (self.clip <= 1)).all() or not self.mean.isfinite().all():
            raise ValueError("clip must lie in (0, 1] and mean be finite")
        _ = self.input  # which raises

    @functools.cached_property
    def input(self) -> Affine:
        """What the bytes of the input stand for."""
        return Affine(float(self.scale), int(self.zero_point))

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def imitate(self, x: Tensor, weights: Folded) -> tuple[Tensor, Folded]:
        """(x, weights) in fp32 that hold only what bytes can: gradients pass as if they had not been rounded, and stop
        where a range ends."""
        of_x, (weight, bias) = self.input, weights[:2]
        low, high = of_x.ends
        steps, scale, shift = self._rounded(weight.detach())
        near = x.clamp(low, high)
        x = near + (of_x.dequantize(of_x.quantize(x.detach())) - near.detach())
        weight = weight + (steps * _by_output(scale, weight) - weight.detach())
        return x, weights._replace(weight=weight, bias=shift if bias is None else bias + shift)

    def integers(
        self,
        weights: Folded,
        of_x: Affine,
        added: Affine | None = None,
        out: Affine | None = None,
        activation: str = "none",
    ) -> Integers:
        """The weights for `accel.ops.quantized_conv2d` of bytes that stand for what `of_x` says. The output is fp32; or
        bytes that stand for what `out` says, to which a residual is added as `added` says, one of `BYTE_ACTIVATIONS`
        being their activation."""
        steps, scale, shift = self._rounded(weights.weight.detach())
        bias = shift if weights.bias is None else weights.bias.detach() + shift
        bounds = None if out is None else _bounds(out, activation)
        steps = steps.view(*steps.shape, *[1] * (4 - steps.dim()))  # of a linear layer too
        return Integers(steps.to(torch.int8), Requantization.of(of_x, scale, bias, out, bounds=bounds, residual=added))

    def _rounded(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(steps like the weight, the scale of one [K], what the rounding takes from the mean of the output [K])."""
        steps, scale = round_weights(weight, self.clip.to(weight))
        if not scale.isfinite().all():
            raise ConversionError("weights that are NaN or infinite cannot be rounded to eight bits: load others")
        lost = (weight - steps * _by_output(scale, weight)).reshape(*weight.shape[:2], -1).sum(2)
        groups = len(self.mean) // weight.shape[1]
        means = self.mean.to(weight).view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        return steps, scale, (lost * means).sum(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """weight: int8 [K, C / groups, kh, kw]; requantization: of the sums."""

    weight: Tensor
    requantization: Requantization


class KeptIntegers:
    """The integers that a layer computed with last: of its weights, for what it reads and for who reads it."""

    def __init__(self) -> None:
        # by what they are made of, whose objects are held beside them; replaced as a whole: threads share it
        self._kept: dict[tuple, tuple[tuple, Integers]] = {}

    def get(self, quantization: Quantization, weights: Folded, *levels: Affine | None, activation: str) -> Integers:
        """`quantization.integers(weights, *levels, activation)`."""
        slot = (id(quantization), id(weights), *map(id, levels), activation)
        found = self._kept.get(slot)
        if found is None:
            with torch.inference_mode(False):  # nobody counts the writes to inference tensors: packed at every call
                integers = quantization.integers(weights, *levels, activation=activation)
            found = ((quantization, weights, *levels), integers)
            self._kept = dict([*list(self._kept.items())[1 - _KEPT :], (slot, found)])
        return found[1]


def convolve_bytes(
    x: Tensor,
    weights: Folded,
    positions: PositionSet,
    quantization: Quantization,
    kept: KeptIntegers,
    of_x: Affine | None,
    added: Affine | None,
    out: Affine | None,
    activation: str,
    **how: object,
) -> Tensor:
    """`accel.ops.quantized_conv2d` of numbers, or of the rows in bytes that another layer handed over.

    Args:
        of_x: what the rows handed over stand for, if not what this layer's own input does.
        added: what a residual in bytes stands for.
        out: what the output's bytes stand for; None, or an activation that bytes cannot have: fp32.
        how: geometry, residual, compact and source.
    """
    out = out if activation in BYTE_ACTIVATIONS else None
    handed_over = how["source"] is not None and x.dtype is torch.uint8  # a user's bytes stand for something else
    of_x = of_x if handed_over and of_x is not None else quantization.input
    if out is None or how["residual"] is None:
        added = None
    elif how["residual"].dtype is not torch.uint8:
        added = NUMBERS
    made = kept.get(quantization, weights, of_x, added, out, activation=activation)
    x = x if handed_over else of_x.quantize(x)
    activation = activation if out is None else "none"  # the bounds of the bytes are it
    return quantized_conv2d(x, made.weight, made.requantization, positions, activation=activation, **how)


def _bounds(out: Affine, activation: str) -> tuple[int, int]:
    """The lowest and the highest byte that one of `BYTE_ACTIVATIONS` gives."""
    low = 0 if activation == "none" else out.zero_point
    if activation != "relu6":
        return low, BYTE
    steps = 6 * torch.tensor(1 / out.scale, dtype=torch.float32, device="cpu")  # as numbers are quantized
    return low, min(out.zero_point + round(steps.item()), BYTE)


def _by_output(values: Tensor, weight: Tensor) -> Tensor:
    """One value [K] for each output of a weight [K, C / groups, kh, kw] or [K, C]."""
    return values.view(-1, *[1] * (weight.dim() - 1))


def known(quantization: Quantization | None, name: str) -> Quantization:
    """What a calibration found for the layer of this name; ConfigError: none did."""
    if quantization is None:
        raise ConfigError(f"layer {name!r} was never quantized: pass calibration= to convert_model")
    return quantization


def as_numbers(image: Tensor, of: Affine) -> Tensor:
    """What bytes [N, C, H, W] stand for, in fp32: a depthwise convolution by one, which the engine does and records."""
    one = _one(image.shape[1], of, image.device)
    positions = every_position(*image.shape[2:])
    return quantized_conv2d(image, one.weight, one.requantization, positions, groups=image.shape[1])


@functools.lru_cache(maxsize=256)
def _one(channels: int, of: Affine, device: torch.device) -> Integers:
    """Weights of one; kept, so that they are packed once."""
    with torch.inference_mode(False):
        scale = torch.ones(channels, dtype=torch.float32, device=device)
        weight = torch.ones(channels, 1, 1, 1, dtype=torch.int8, device=device)
        return Integers(weight, Requantization.of(of, scale))


def round_weights(weight: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """(integers of -127 to 127 in the dtype of the weight, the scale of one step [K]) for a `clip` [K]."""
    largest = weight.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest * clip / STEPS, 1.0).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / _by_output(scale, weight)).round().clamp(-STEPS, STEPS), scale


def why_not_bytes(layer: nn.Conv2d | nn.Linear) -> str | None:
    """Why the layer cannot compute in eight bits, or None."""
    weight = layer.weight
    if weight.dtype is not torch.float32 or weight.device.type != "cpu":
        return f"has {weight.dtype} weights on {weight.device}, and eight bits are made of float32 ones on the CPU"
    if weight[0].numel() > MOST_TERMS:
        return f"sums {weight[0].numel()} products, and 32 bits hold {MOST_TERMS} of bytes"
    return None

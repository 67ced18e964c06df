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
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, ConversionError
from accel.kernels.positions import PositionSet, every_position
from accel.kernels.quantization import BYTE, MOST_TERMS, NUMBERS, Affine, Requantization
from accel.kernels.quantized_conv2d import quantized_conv2d
from accel.nn.folding import Folded, affine

STEPS = 127  # of weights, on either side of zero
_RANKS = {"scale": 0, "zero_point": 0, "clip": 1, "mean": 1}  # of what a calibration finds
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


# What says what bytes stand for: a layer, whose input they are; or (layer, norm or None, activation), what is given.
Source = Any


class Meaning(NamedTuple):
    """The sources that say what bytes stand for: those that a layer reads (None: its own input does), those that it
    adds, and those that it gives (None: it gives numbers)."""

    read: Source = None
    added: Source = None
    given: Source = None

    def gives(self, activation: str) -> bool:
        """Whether the layer gives bytes, if that is its activation."""
        return self.given is not None and activation in BYTE_ACTIVATIONS


OWN = Meaning()


def meant(source: Source) -> Affine:
    """What bytes stand for that have this source; the same object as long as nothing changes."""
    if not isinstance(source, tuple):
        return known(source.quantization, source.layer_name).input
    layer, norm, activation = source
    reach = known(layer.quantization, layer.layer_name).reach
    if reach is None:
        raise ConfigError(f"nobody saw what layer {layer.layer_name!r} gives: convert the model again")
    low, high = reach.double()
    if norm is not None:
        gain, offset = affine(norm, torch.float64)
        low, high = low * gain + offset, high * gain + offset
    ends = torch.stack((low, high)).clamp(*_BOUNDS[activation])
    return _reaching(float(ends.min()), float(ends.max()))


_BOUNDS = {"none": (None, float("inf")), "relu": (0.0, None), "relu6": (0.0, 6.0)}


@functools.lru_cache(maxsize=1024)
def _reaching(low: float, high: float) -> Affine:
    """The bytes that reach from low to high, and hold 0; of nothing but zeros, any."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / BYTE or 1.0
    return Affine(scale, min(max(round(-low / scale), 0), BYTE))


class Rounded(NamedTuple):
    """A weight in signed bytes: steps, integers of -127 to 127 in its shape; scale [K], what one of them stands for;
    shift [K], what rounding takes from the mean of the output."""

    steps: Tensor
    scale: Tensor
    shift: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class SavedIntegers:
    """What a weight was rounded to when its network was saved, on the CPU: however rounding is done later, these are
    multiplied for as long as the weight is that one.

    Attributes:
        steps: int8 [K, C / groups, kh, kw], or [K, C].
        scale, shift: float32 [K], see `Rounded`.
        of: uint8 [16], a hash of the weight.

    Raises:
        ValueError: other shapes or types, or numbers that make no weight.
    """

    steps: Tensor
    scale: Tensor
    shift: Tensor
    of: Tensor

    def __post_init__(self) -> None:
        if self.steps.dtype is not torch.int8 or (self.steps < -STEPS).any():
            raise ValueError(f"steps must be int8 of -{STEPS} to {STEPS}, got {self.steps.dtype}")
        for name in ("scale", "shift"):
            tensor, count = getattr(self, name), self.steps.shape[:1]
            if tensor.dtype is not torch.float32 or tensor.shape != count:
                raise ValueError(
                    f"{name} must be float32 of shape {tuple(count)}, got {tensor.dtype} of {tuple(tensor.shape)}"
                )
        if not (self.scale > 0).all() or not (self.scale.isfinite() & self.shift.isfinite()).all():
            raise ValueError("scale must be positive, scale and shift finite")

    @staticmethod
    def of_weight(weight: Tensor, steps: Tensor, scale: Tensor, shift: Tensor) -> SavedIntegers:
        """Raises: ValueError, also for integers that are further than a step from the weight."""
        found = SavedIntegers(steps, scale, shift, _hash(weight))
        if steps.shape != weight.shape:
            raise ValueError(f"steps have shape {tuple(steps.shape)}, their weight {tuple(weight.shape)}")
        exact = (weight.detach().cpu() / _by_output(scale, steps)).clamp(-STEPS, STEPS)
        if not ((exact - steps).abs() <= 1).all():
            raise ValueError("the integers are not those of the weight beside them")
        return found

    @functools.cached_property
    def key(self) -> bytes:
        return self.of.numpy().tobytes()

    def tensors(self) -> list[Tensor]:
        return [self.steps, self.scale, self.shift, self.of]


def _hash(weight: Tensor) -> Tensor:
    """uint8 [16]"""
    values = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return torch.frombuffer(bytearray(hashlib.blake2b(values, digest_size=16).digest()), dtype=torch.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """What a calibration found for one layer, on the CPU.

    Attributes:
        scale, zero_point: float64 [] and int64 [], of the input's bytes.
        clip: [K], the share of an output channel's largest weight that `STEPS` steps reach.
        mean: [C], of the input.
        reach: [2, K], the lowest and the highest values of every output channel; None where nobody saw them.
        saved: what weights that the layer may have were rounded to before.

    Raises:
        ValueError: other shapes, or numbers that make no scale.
    """

    scale: Tensor
    zero_point: Tensor
    clip: Tensor
    mean: Tensor
    reach: Tensor | None = None
    saved: tuple[SavedIntegers, ...] = ()

    def __post_init__(self) -> None:
        for name, rank in {**_RANKS, **({} if self.reach is None else {"reach": 2})}.items():
            if getattr(self, name).dim() != rank:
                raise ValueError(f"{name} must have rank {rank}, got shape {tuple(getattr(self, name).shape)}")
        if self.reach is not None and not (len(self.reach) == 2 and self.reach.isfinite().all()):
            raise ValueError(f"reach must be finite [2, K], got shape {tuple(self.reach.shape)}")
        if not ((self.clip > 0) & (self.clip <= 1)).all() or not self.mean.isfinite().all():
            raise ValueError("clip must lie in (0, 1] and mean be finite")
        _ = self.input  # which raises

    @functools.cached_property
    def input(self) -> Affine:
        """What the bytes of the input stand for."""
        return Affine(float(self.scale), int(self.zero_point))

    def tensors(self) -> dict[str, Tensor]:
        """What the calibration found, by name."""
        found = {name: getattr(self, name) for name in _RANKS}
        return found if self.reach is None else {**found, "reach": self.reach}

    def flat(self) -> list[Tensor]:
        """All of it, as ops take it."""
        return [*self.tensors().values(), *(tensor for each in self.saved for tensor in each.tensors())]

    @staticmethod
    def from_flat(tensors: Sequence[Tensor]) -> Quantization:
        """The inverse of `flat`."""
        count = len(dataclasses.fields(SavedIntegers))
        first = len(_RANKS) + (len(tensors) - len(_RANKS)) % count  # `reach` is one tensor
        saved = (SavedIntegers(*tensors[start : start + count]) for start in range(first, len(tensors), count))
        return Quantization(*tensors[:first], saved=tuple(saved))

    def imitate(self, x: Tensor, weights: Folded) -> tuple[Tensor, Folded]:
        """(x, weights) in fp32 that hold only what bytes can: gradients pass as if they had not been rounded, and stop
        where a range ends."""
        of_x, (weight, bias) = self.input, weights[:2]
        low, high = of_x.ends
        steps, scale, shift = self.round(weight.detach())
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
        steps, scale, shift = _scaled(self.round(weights.weight.detach()), weights.gain)
        bias = shift if weights.bias is None else weights.bias.detach() + shift
        bounds = None if out is None else bounds_of(out, activation)
        steps = steps.view(*steps.shape, *[1] * (4 - steps.dim()))  # of a linear layer too
        return Integers(steps, Requantization.of(of_x, scale, bias, out, bounds=bounds, residual=added))

    def round(self, weight: Tensor) -> Rounded:
        """The weight in signed bytes: as it was saved, if it is one of those; else rounded.

        Raises:
            ConversionError: it is not finite.
        """
        key = self.saved and _hash(weight).numpy().tobytes()
        for each in self.saved:
            if each.key == key:
                return Rounded(*(tensor.to(weight.device) for tensor in (each.steps, each.scale, each.shift)))
        steps, scale = round_weights(weight, self.clip.to(weight))
        if not scale.isfinite().all():
            raise ConversionError("weights that are NaN or infinite cannot be rounded to eight bits: load others")
        lost = (weight - steps * _by_output(scale, weight)).reshape(*weight.shape[:2], -1).sum(2)
        groups = len(self.mean) // weight.shape[1]
        means = self.mean.to(weight).view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        return Rounded(steps.to(torch.int8), scale, (lost * means).sum(1))


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

    Raises:
        ConversionError: another device than the CPU.
    """
    if x.device.type not in ("cpu", "meta"):
        raise ConversionError(
            f"layers in eight bits run on the CPU, got an input on {x.device}: move the model back with .to('cpu'), or "
            "convert it in fp32 for that device"
        )
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


def bounds_of(out: Affine, activation: str) -> tuple[int, int]:
    """The lowest and the highest byte that one of `BYTE_ACTIVATIONS` gives."""
    low = 0 if activation == "none" else out.zero_point
    if activation != "relu6":
        return low, BYTE
    steps = 6 * torch.tensor(1 / out.scale, dtype=torch.float32, device="cpu")  # as numbers are quantized
    return low, min(out.zero_point + round(steps.item()), BYTE)


def _scaled(rounded: Rounded, gain: Tensor | None) -> Rounded:
    """What is rounded times a gain [K], exact in the integers: a scale is positive, a sign is theirs."""
    if gain is None:
        return rounded
    if not gain.isfinite().all():
        raise ConversionError("a batch norm whose gain is NaN or infinite cannot be folded into integers: load another")
    steps, scale, shift = rounded
    scale = torch.where(gain == 0, 1.0, scale * gain.abs()).clamp_min(torch.finfo(scale.dtype).tiny)
    return Rounded(steps * _by_output(gain.sign().to(steps.dtype), steps), scale, shift * gain)


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

"""What u8 activations and s8 weights stand for, and what becomes of the integer sums of a convolution of them.

Jacob et al. 2017, arXiv 1712.05877: the affine map of the activations; Krishnamoorthi 2018, arXiv 1806.08342: symmetric
weights, a scale for every output channel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels.quantize import quantize

BYTE = 255  # the largest
MOST_TERMS = (2**31 - 1) // (255 * 128)  # of a sum in 32 bits


@dataclasses.dataclass(frozen=True)
class Affine:
    """How bytes stand for numbers: q for scale * (q - zero_point).

    Raises:
        ValueError: a scale that is not positive and finite, a zero point that is no byte.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"Affine: scale must be positive and finite, got {self.scale}")
        if not math.isfinite(_single(1 / self.scale)):
            raise ValueError(f"Affine: 1 / scale is no fp32 number, got scale {self.scale}")
        if not _is_byte(self.zero_point):
            raise ValueError(f"Affine: zero_point must be an int of 0 to {BYTE}, got {self.zero_point!r}")

    @property
    def ends(self) -> tuple[float, float]:
        """The numbers that the lowest and the highest byte stand for."""
        return -self.zero_point * self.scale, (BYTE - self.zero_point) * self.scale

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest bytes of an fp32 tensor, in its memory format; raises what `accel.kernels.quantize` does."""
        return quantize(x, 1 / self.scale, self.zero_point)

    def dequantize(self, q: Tensor) -> Tensor:
        """fp32, what the bytes stand for."""
        return (q.float() - self.zero_point) * self.scale


class Levels(NamedTuple):
    """The numbers of a `Requantization`; out_zero is None where the output is fp32."""

    x_zero: int
    out_zero: int | None
    low: int
    high: int
    residual_zero: int
    residual_multiplier: float


@dataclasses.dataclass(frozen=True, eq=False)
class Requantization:
    """What becomes of the sums of a convolution of bytes, in this order, every step rounded to fp32:

        sum = the integer sum over taps and channels of (x - x_zero) * weight
        y = float(sum) * multiplier[k]; y = y + offset[k]
        y = y + float(residual - residual_zero) * residual_multiplier, where there is a residual
        out = the nearest integer of y (halves to even) + out_zero, clamped to low and high

    An output that is not quantized is y, to which a fp32 residual is added as it is, and its activation. `of` derives
    the numbers from scales; the tensors must not be changed afterwards, and no gradients flow through them.

    Attributes:
        multiplier, offset: fp32 [K], [K] or None.
        levels: the other numbers.

    Raises:
        ValueError: numbers that would make a NaN, or that are no bytes. TypeError: tensors of another dtype.
    """

    multiplier: Tensor
    offset: Tensor | None
    levels: Levels

    def __post_init__(self) -> None:
        for name, tensor in (("multiplier", self.multiplier), ("offset", self.offset)):
            if tensor is None:
                continue
            if tensor.dtype is not torch.float32 or tensor.dim() != 1:
                raise TypeError(f"Requantization: {name} must be fp32 [K], got {tensor.dtype} of {tuple(tensor.shape)}")
        largest = torch.finfo(torch.float32).max
        multiplier, levels = self.multiplier, self.levels
        if not (multiplier > 0).all() or not (multiplier <= largest / 2**31).all():
            raise ValueError(
                f"Requantization: multipliers must be positive and at most {largest / 2**31:.1e}, got "
                f"{multiplier.min()} to {multiplier.max()}: the scales are too far apart"
            )
        if self.offset is not None and not self.offset.isfinite().all():
            raise ValueError("Requantization: a bias over the output's scale is NaN or infinite")
        if not 0 <= levels.residual_multiplier <= largest / 2**8:
            raise ValueError(
                f"Requantization: residual_multiplier is {levels.residual_multiplier}: scales too far apart"
            )
        zeros = (levels.x_zero, levels.residual_zero, 0 if levels.out_zero is None else levels.out_zero)
        if not all(map(_is_byte, zeros)):
            raise ValueError(f"Requantization: zero points must be ints of 0 to {BYTE}, got {zeros}")
        low, high = levels.low, levels.high
        if not (_is_byte(low) and _is_byte(high) and low <= high):
            raise ValueError(f"Requantization: bounds must be bytes, the lower one first, got {low!r} and {high!r}")

    @staticmethod
    def of(
        x: Affine,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        out: Affine | None = None,
        *,
        bounds: Sequence[int] | None = None,
        residual: Affine | None = None,
    ) -> Requantization:
        """From what the numbers mean; derived in fp64, then rounded to fp32 once.

        Args:
            x, out, residual: of the input, of the output (None: fp32) and of a residual that is added to bytes.
            weight_scale: floating [K], what one step of the weights of each output channel stands for.
            bias: floating [K].
            bounds: the lowest and highest byte of the output: (out.zero_point, 255) is a ReLU; (0, 255) by default.

        Raises:
            ValueError: a weight scale that is not positive and finite; bounds, or a residual, of an fp32 output.
        """
        if not (weight_scale > 0).all() or not weight_scale.isfinite().all():
            raise ValueError(
                f"Requantization: weight_scale must be positive and finite, got "
                f"{weight_scale.min()} to {weight_scale.max()}"
            )
        if out is None and (bounds is not None or residual is not None):
            raise ValueError("Requantization: bounds and residual are of bytes, but the output is fp32: give out=")
        low, high = (0, BYTE) if bounds is None else bounds
        scale = 1.0 if out is None else out.scale
        return Requantization(
            (weight_scale.detach().double() * x.scale / scale).float(),
            None if bias is None else (bias.detach().double() / scale).float(),
            Levels(
                x_zero=x.zero_point,
                out_zero=None if out is None else out.zero_point,
                low=low,
                high=high,
                residual_zero=0 if residual is None else residual.zero_point,
                residual_multiplier=0.0 if residual is None else _single(residual.scale / scale),
            ),
        )


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """How bytes get another meaning, or are added: out_zero + the nearest integer (halves to even) of the sum over the
    terms, in their order, of multiplier * (byte - zero), every product and sum rounded to fp32; then low and high bound
    it.

    `of` derives the numbers from scales.

    Raises:
        ValueError: numbers that would make a NaN, or that are no bytes.
    """

    multipliers: tuple[float, ...]
    zeros: tuple[int, ...]
    out_zero: int
    low: int = 0
    high: int = BYTE

    def __post_init__(self) -> None:
        largest = torch.finfo(torch.float32).max / 2**10
        if not all(0 < multiplier <= largest for multiplier in self.multipliers):
            raise ValueError(f"Rescaling: multipliers are {self.multipliers}: the scales are too far apart")
        if not all(map(_is_byte, (*self.zeros, self.out_zero, self.low, self.high))) or self.low > self.high:
            raise ValueError(f"Rescaling: zero points and bounds, the lower first, must be ints of 0 to {BYTE}")
        if len(self.zeros) != len(self.multipliers):
            raise ValueError(f"Rescaling: {len(self.multipliers)} multipliers, but {len(self.zeros)} zero points")

    @staticmethod
    def of(parts: Sequence[Affine], out: Affine, bounds: Sequence[int] = (0, BYTE)) -> Rescaling:
        """From what the bytes mean; derived in fp64, then rounded to fp32 once.

        Args:
            parts: of what is read, one a term.
            bounds: the lowest and highest byte that is given.
        """
        multipliers = tuple(_single(part.scale / out.scale) for part in parts)
        return Rescaling(multipliers, tuple(part.zero_point for part in parts), out.zero_point, *bounds)

    def keeps(self, part: int) -> bool:
        """Whether the bytes of a part stay what they are."""
        same = self.multipliers[part] == 1 and self.zeros[part] == self.out_zero
        return same and (self.low, self.high) == (0, BYTE)

    @property
    def numbers(self) -> tuple:
        """As ops take them."""
        return list(self.multipliers), list(self.zeros), self.out_zero, self.low, self.high


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= BYTE


def _single(value: float) -> float:
    """Rounded to fp32."""
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()


NUMBERS = Affine(1.0, 0)  # of a residual in fp32

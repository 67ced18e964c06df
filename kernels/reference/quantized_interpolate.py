"""Reference of `accel::quantized_interpolate`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accel.kernels.reference.interpolate import interpolate_fitted
from accel.kernels.reference.quantize import quantize


def quantized_interpolate(
    rows: Tensor,
    positions: Tensor,
    skipped: Tensor,
    neighbors: Tensor,
    starts: Tensor,
    weights: Tensor,
    constant: Tensor,
    batch: int,
    size: Sequence[int],
    activation: str,
    inverse: float,
    zero_point: int,
) -> Tensor:
    """The bytes of `interpolate_fitted`."""
    lists = (positions, skipped, neighbors, starts)
    return quantize(interpolate_fitted(rows, *lists, weights, constant, batch, size, activation), inverse, zero_point)

"""Reference of `accel::quantized_interpolate`."""

from __future__ import annotations

from torch import Tensor

from accel.kernels.reference.interpolate import interpolate_fitted
from accel.kernels.reference.quantize import quantize


def quantized_interpolate(*arguments: object) -> Tensor:
    """The bytes of `interpolate_fitted`, whose arguments come first; then those of `quantize`: inverse, zero_point."""
    *fitted, inverse, zero_point = arguments
    return quantize(interpolate_fitted(*fitted), inverse, zero_point)

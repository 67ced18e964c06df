"""Reference of `accel::quantized_interpolate`."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.reference.interpolate import interpolate_fitted
from accel.kernels.reference.quantize import quantize


def quantized_interpolate(*arguments: object) -> Tensor:
    """The bytes of `interpolate_fitted`, whose arguments come first, the residual last; then those of `quantize`:
    inverse, zero_point; and scale and zero point of a residual in bytes."""
    *fitted, residual, inverse, zero_point, added_scale, added_zero = arguments
    if residual is not None and residual.dtype is torch.uint8:
        share = torch.tensor(added_scale, dtype=torch.float32, device=residual.device)
        residual = (residual.int() - added_zero).float() * share
    return quantize(interpolate_fitted(*fitted, residual), inverse, zero_point)

"""Reference of `accel::quantized_conv2d`."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.geometry import CallGeometry
from accel.kernels.quantization import Levels
from accel.kernels.quantize import refuse_odd
from accel.kernels.reference.activation import activate
from accel.kernels.reference.gather import gathered_conv, pixel_table
from accel.kernels.reference.interpolate import interpolate
from accel.kernels.reference.perforated_conv2d import tap_rows


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    positions: Tensor,
    nearest: Tensor,
    source_nearest: Tensor | None,
    residual: Tensor | None,
    geometry: CallGeometry,
    activation: str,
    compact: bool,
    multiplier: Tensor,
    *levels: float | None,
) -> Tensor:
    """Convolution of bytes at a static position set; then what `Requantization` says, in its order.

    The sums are of float64, which holds integers up to 2^53 exactly, where those of int64 take minutes for a network.

    Args:
        x: uint8 [N, C, H, W], or rows [N * P_in, C] when `source_nearest` is given; padding holds its zero point.
        weight: int8 [K, C / groups, kh, kw].
        offset, multiplier: fp32 [K]. levels: the fields of `Levels`.
        residual: added before the activation or the bounds, like the output in shape; in dtype too, or fp32.
        positions, nearest, source_nearest, geometry, activation, compact: as of `perforated_conv2d`.

    Returns:
        rows [N * P, K] when `compact`, else [N, K, H_out, W_out] channels_last; uint8, or fp32 without out_zero.
    """
    levels = Levels(*levels)
    index = tap_rows(x, weight, positions, source_nearest, geometry)
    pixels = pixel_table(x).double() - levels.x_zero  # the rows of zeros that padding reads are zero points then
    rows = gathered_conv(pixels, index, weight.double(), geometry.groups).float() * multiplier
    if offset is not None:
        rows = rows + offset
    out = rows if compact else interpolate(rows, nearest, geometry.in_size[0], geometry.out_size)
    if levels.out_zero is None:
        return activate(out if residual is None else out + residual, activation)
    if residual is not None:
        share = torch.tensor(levels.residual_multiplier, dtype=torch.float32, device=x.device)
        if not residual.isfinite().all():
            refuse_odd()
        added = residual if residual.is_floating_point() else (residual.int() - levels.residual_zero).float()
        out = out + added * share
    return (out.round() + levels.out_zero).clamp(levels.low, levels.high).to(torch.uint8)

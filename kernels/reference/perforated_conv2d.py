"""Reference of `accel::perforated_conv2d`: the oracle of every backend, and what runs where there is no other."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.geometry import CallGeometry
from accel.kernels.reference.activation import activate
from accel.kernels.reference.gather import (
    cached_tap_map,
    gathered_conv,
    gathered_conv_backward,
    pixel_table,
    table_to_input,
)
from accel.kernels.reference.interpolate import interpolate


def perforated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    nearest: Tensor,
    source_nearest: Tensor | None,
    residual: Tensor | None,
    geometry: CallGeometry,
    activation: str,
    compact: bool,
) -> Tensor:
    """Convolution at a static position set.

    Args:
        x: [N, C, H, W], or rows [N * P_in, C] (image-major) when `source_nearest` is given.
        weight, bias: [K, C / groups, kh, kw], [K].
        positions, nearest: of the output's PositionSet: int32 [P], int32 [H_out * W_out].
        source_nearest: int32 [H * W], for every input pixel the row of x (within its image) that holds its value.
        residual: added before the activation: [N, K, H_out, W_out], at every position; rows [N * P, K] when `compact`.
        activation: a key of ACTIVATIONS.

    Returns:
        rows [N * P, K] when `compact`, else [N, K, H_out, W_out] channels_last, every position holding the value of
        its stand-in, plus its own of the residual.
    """
    index = tap_rows(x, weight, positions, source_nearest, geometry)
    rows = gathered_conv(pixel_table(x), index, weight, geometry.groups)
    if bias is not None:
        rows = rows + bias
    out = rows if compact else interpolate(rows, nearest, geometry.in_size[0], geometry.out_size)
    return activate(out if residual is None else out + residual, activation)


def perforated_conv2d_backward(grad, x, weight, positions, source_nearest, geometry):
    """(dX, dW, db) from the gradient [N * P, K] of the rows before activation; dX has the shape of x."""
    index = tap_rows(x, weight, positions, source_nearest, geometry)
    d_table, d_weight, d_bias = gathered_conv_backward(grad, pixel_table(x), index, weight, geometry.groups)
    return table_to_input(d_table, x), d_weight, d_bias


def tap_rows(
    x: Tensor, weight: Tensor, positions: Tensor, source_nearest: Tensor | None, geometry: CallGeometry
) -> Tensor:
    """int64 [N * P, kh * kw]: the row of `pixel_table(x)` that every tap of every computed position reads, or -1."""
    batch, height, width = geometry.in_size
    taps = cached_tap_map((height, width), tuple(weight.shape[2:]), *geometry.taps).to(x.device)[positions]
    if source_nearest is not None:
        taps = torch.where(taps < 0, taps, source_nearest[taps].long())
    per_image = x.shape[0] // max(batch, 1) if source_nearest is not None else height * width
    image = torch.arange(batch, device=x.device)[:, None, None] * per_image
    return torch.where(taps < 0, taps, taps + image).flatten(0, 1)


def at_positions(dense: Tensor, positions: Tensor) -> Tensor:
    """[N, K, H, W] -> rows [N * P, K]."""
    return dense.permute(0, 2, 3, 1).flatten(1, 2)[:, positions].flatten(0, 1)

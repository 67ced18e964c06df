"""Reference of `accel::perforated_conv2d`: the oracle of every backend, and what runs where there is no other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    in_size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
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
        in_size, out_size: (N, H, W) of the input map and (H_out, W_out).
        stride, padding, dilation: (vertical, horizontal); padding is (top, bottom, left, right).
        activation: a key of ACTIVATIONS.

    Returns:
        rows [N * P, K] when `compact`, else [N, K, H_out, W_out] channels_last, every position holding the value of
        its stand-in, plus its own of the residual.
    """
    index = tap_rows(x, weight, positions, source_nearest, in_size, stride, padding, dilation, padding_mode)
    rows = gathered_conv(pixel_table(x), index, weight, groups)
    if bias is not None:
        rows = rows + bias
    out = rows if compact else interpolate(rows, nearest, in_size[0], out_size)
    return activate(out if residual is None else out + residual, activation)


def perforated_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    positions: Tensor,
    source_nearest: Tensor | None,
    in_size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX, dW, db) from the gradient [N * P, K] of the rows before activation; dX has the shape of x."""
    index = tap_rows(x, weight, positions, source_nearest, in_size, stride, padding, dilation, padding_mode)
    d_table, d_weight, d_bias = gathered_conv_backward(grad, pixel_table(x), index, weight, groups)
    return table_to_input(d_table, x), d_weight, d_bias


def tap_rows(
    x: Tensor,
    weight: Tensor,
    positions: Tensor,
    source_nearest: Tensor | None,
    in_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    """int64 [N * P, kh * kw]: the row of `pixel_table(x)` that every tap of every computed position reads, or -1."""
    batch, height, width = in_size
    geometry = (tuple(stride), tuple(padding), tuple(dilation), padding_mode)
    taps = cached_tap_map((height, width), tuple(weight.shape[2:]), *geometry).to(x.device)[positions]
    if source_nearest is not None:
        taps = torch.where(taps < 0, taps, source_nearest[taps].long())
    per_image = x.shape[0] // max(batch, 1) if source_nearest is not None else height * width
    image = torch.arange(batch, device=x.device)[:, None, None] * per_image
    return torch.where(taps < 0, taps, taps + image).flatten(0, 1)


def at_positions(dense: Tensor, positions: Tensor) -> Tensor:
    """[N, K, H, W] -> rows [N * P, K]."""
    return dense.permute(0, 2, 3, 1).flatten(1, 2)[:, positions].flatten(0, 1)

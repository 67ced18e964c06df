"""Reference of `accel::masked_conv2d`: convolution where a dynamic position set says so."""

from __future__ import annotations

from collections.abc import Sequence

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


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    counts: Tensor,
    source_positions: Tensor | None,
    residual: Tensor | None,
    geometry: CallGeometry,
    activation: str,
) -> Tensor:
    """Convolution at the positions of an ActiveSet; zero padding.

    Args:
        x: [N, C, H, W], or rows [source capacity, C] when `source_positions` is given.
        weight, bias: [K, C / groups, kh, kw], [K].
        positions, counts: of the output's ActiveSet: int32 [capacity] (-1 at and after the total), int32 [N].
        source_positions: int32 [source capacity], the input position of every row of x (-1: an unused row); input
            positions that are not among them read as zeros.
        residual: [N, K, H_out, W_out].

    Returns:
        with a residual: a copy of it, channels_last, holding activation(residual + conv) at the active positions;
        without: rows [capacity, K], zeros at and after the total.
    """
    index = active_tap_rows(weight, positions, source_positions, geometry)
    rows = gathered_conv(pixel_table(x), index, weight, geometry.groups)
    if bias is not None:
        rows = rows + bias
    live = positions >= 0
    if residual is None:
        return activate(rows, activation) * live[:, None]
    table = pixel_table(residual).clone()
    where = positions[live].long()
    table[where] = activate(table[where] + rows[live], activation)
    return table_to_input(table, residual)


def masked_conv2d_(out, x, weight, bias, positions, counts, source_positions, geometry, activation, accumulate):
    """Set the active positions of `out` [N, K, H_out, W_out] to activation(conv), or activation(out + conv).

    Args:
        accumulate: add to what `out` holds there. The others are those of `masked_conv2d`.
    """
    live = positions >= 0
    where = positions[live].long()
    height, width = geometry.out_size
    place = (where // (height * width), slice(None), where // width % height, where % width)
    rows = masked_conv2d(x, weight, bias, positions, counts, source_positions, None, geometry, "none")[live]
    out[place] = activate(out[place] + rows if accumulate else rows, activation)


def masked_conv2d_backward(grad, x, weight, positions, counts, source_positions, geometry):
    """(dX, dW, db) from the gradient [capacity, K] of the rows before activation; rows past the total are ignored."""
    index = active_tap_rows(weight, positions, source_positions, geometry)
    grad = grad * (positions >= 0)[:, None]
    d_table, d_weight, d_bias = gathered_conv_backward(grad, pixel_table(x), index, weight, geometry.groups)
    return table_to_input(d_table, x), d_weight, d_bias


def active_tap_rows(
    weight: Tensor, positions: Tensor, source_positions: Tensor | None, geometry: CallGeometry
) -> Tensor:
    """int64 [capacity, kh * kw]: the row of `pixel_table(x)` that every tap of every active position reads, or -1."""
    _, height, width = geometry.in_size
    pixels = geometry.out_size[0] * geometry.out_size[1]
    tap_map = cached_tap_map((height, width), tuple(weight.shape[2:]), *geometry.taps).to(positions.device)
    image, taps = positions // pixels, tap_map[positions % pixels]
    taps = torch.where((taps < 0) | (positions < 0)[:, None], -1, taps + image[:, None] * (height * width))
    if source_positions is None:
        return taps
    inverse = _inverse_map(source_positions, geometry.in_size)
    return torch.where(taps < 0, -1, inverse[taps])


def _inverse_map(source_positions: Tensor, in_size: Sequence[int]) -> Tensor:
    """int64 [N * H * W]: the row that holds each input position, -1 where there is none."""
    batch, height, width = in_size
    rows = torch.arange(len(source_positions), device=source_positions.device)
    live = source_positions >= 0
    inverse = torch.full((batch * height * width,), -1, dtype=torch.int64, device=source_positions.device)
    inverse[source_positions[live].long()] = rows[live]
    return inverse

"""Triton kernels of `accel::masked_conv2d` and its backward; the contract is the reference's, argument by argument.

The number of active positions stays on the device: a launch covers the capacity, and programs past the last active
position return after one load. With a residual the kernel adds, activates and stores at the active positions of a copy;
without one it writes compact rows. A compact input is read through the inverse of its position list, built per call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.geometry import CallGeometry
from accel.kernels.triton.gather_conv import Rows, invert, multiply, taps, weight_gradient
from accel.kernels.triton.launch import channels_last, check_dtype, new_channels_last, on_its_device


@on_its_device
def masked_conv2d(x, weight, bias, positions, counts, source_positions, residual, geometry, activation):
    """See `accel.kernels.reference.masked_conv2d`."""
    check_dtype("masked_conv2d", x, weight, bias, residual)
    if residual is None:
        out = x.new_zeros(len(positions), weight.shape[0])
    else:
        residual = channels_last(residual)
        out = residual.clone()
    return multiply(
        x,
        weight,
        _active_rows(positions, source_positions, geometry),
        taps(weight.shape[2:], *geometry.taps),
        out,
        groups=geometry.groups,
        store="rows" if residual is None else "positions",
        bias=bias,
        residual=residual,
        activation=activation,
    )


@on_its_device
def masked_conv2d_backward(grad, x, weight, positions, counts, source_positions, geometry):
    """See `accel.kernels.reference.masked_conv2d`."""
    check_dtype("masked_conv2d_backward", grad, x, weight)
    (batch, height, width), out_size, groups = geometry.in_size, geometry.out_size, geometry.groups
    grad = grad.contiguous()
    reads = taps(weight.shape[2:], *geometry.taps)
    total = counts.sum(dtype=torch.int32).view(1)
    rows = _active_rows(positions, source_positions, geometry)
    d_weight = weight_gradient(x, grad, rows, reads, weight, groups=groups, total=total)
    compact = source_positions is not None
    channels = weight.shape[1] * groups
    readers = Rows(
        count=len(source_positions) if compact else batch * height * width,
        in_size=out_size,
        out_size=(height, width),
        positions=source_positions,
        per_image=height * width,
        dynamic=compact,
        source=invert(positions, batch * out_size[0] * out_size[1]),
        source_stride=out_size[0] * out_size[1],
    )
    d_x = multiply(
        grad,
        weight,
        readers,
        reads,
        torch.zeros_like(x) if compact else new_channels_last(x, batch, channels, height, width),
        groups=groups,
        store="rows",
        transposed=True,
    )
    live = (positions >= 0)[:, None]
    return d_x, d_weight, torch.where(live, grad, 0).sum(0)


def _active_rows(positions: Tensor, source_positions: Tensor | None, geometry: CallGeometry) -> Rows:
    batch, height, width = geometry.in_size
    compact = source_positions is not None
    return Rows(
        count=len(positions),
        in_size=(height, width),
        out_size=geometry.out_size,
        positions=positions,
        dynamic=True,
        source=invert(source_positions, batch * height * width) if compact else None,
        source_stride=height * width if compact else 0,
    )

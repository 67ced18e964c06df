"""Triton kernels of `accel::perforated_conv2d` and its backward; the contract is the reference's, argument by argument.

Forward: one launch of `gather_gemm` over the N * P computed positions; bias, residual and activation in its epilogue,
and, for dense output, every tile stored from registers to all the positions that its rows stand in for. A fitted map
takes two passes: compact rows here, then `interpolate_fitted`, whose neighbours' rows other programs compute. Backward:
dX is the same kernel over input pixels with the taps reversed, reading the row gradients through the map position ->
row; dW is a reduction over the rows in fixed shares. No atomics, so every result is the same at every run.

float16, bfloat16 and float32 (tf32 or exact, as torch's convolutions are set), accumulated in float32.
"""

from __future__ import annotations

from torch import Tensor

from accel.kernels.geometry import CallGeometry
from accel.kernels.positions import tap_map
from accel.kernels.triton.gather_conv import Rows, invert, multiply, taps, weight_gradient
from accel.kernels.triton.interpolate import interpolate_backward, segments
from accel.kernels.triton.launch import channels_last, check_dtype, new_channels_last, on_its_device


@on_its_device
def perforated_conv2d(x, weight, bias, positions, nearest, source_nearest, residual, geometry, activation, compact):
    """See `accel.kernels.reference.perforated_conv2d`."""
    check_dtype("perforated_conv2d", x, weight, bias, residual)
    batch, out_channels = geometry.in_size[0], weight.shape[0]
    rows = _static_rows(x, positions, source_nearest, geometry)
    if compact:
        out = x.new_empty(rows.count, out_channels)
        residual = None if residual is None else residual.contiguous()
    else:
        out = new_channels_last(x, batch, out_channels, *geometry.out_size)
        residual = None if residual is None else channels_last(residual)
    return multiply(
        x,
        weight,
        rows,
        taps(weight.shape[2:], *geometry.taps),
        out,
        groups=geometry.groups,
        store="rows" if compact else "segments",
        bias=bias,
        residual=residual,
        segments=(None, None) if compact else segments(nearest, len(positions)),
        activation=activation,
    )


@on_its_device
def perforated_conv2d_backward(grad, x, weight, positions, source_nearest, geometry):
    """See `accel.kernels.reference.perforated_conv2d`."""
    check_dtype("perforated_conv2d_backward", grad, x, weight)
    grad = grad.contiguous()
    rows = _static_rows(x, positions, source_nearest, geometry)
    reads = taps(weight.shape[2:], *geometry.taps)
    d_weight = weight_gradient(x, grad, rows, reads, weight, groups=geometry.groups)
    d_x = _input_gradient(grad, x, weight, positions, source_nearest, geometry)
    return d_x, d_weight, grad.sum(0)


def _static_rows(x: Tensor, positions: Tensor, source_nearest: Tensor | None, geometry: CallGeometry) -> Rows:
    batch = geometry.in_size[0]
    return Rows(
        count=batch * len(positions),
        in_size=geometry.in_size[1:],
        out_size=geometry.out_size,
        positions=positions,
        per_image=len(positions),
        source=source_nearest,
        source_rows=0 if source_nearest is None else x.shape[0] // max(batch, 1),
    )


def _input_gradient(grad, x, weight, positions, source_nearest, geometry):
    """dX: the transposed gather over the input map, or over the padded one where padding repeats pixels."""
    (batch, height, width), out_size, groups = geometry.in_size, geometry.out_size, geometry.groups
    stride, padding, dilation, padding_mode = geometry.taps
    pixels, fold = height * width, source_nearest
    if padding_mode != "zeros":
        # the padded map's pixels are copies of the input's: sum them by pixel, as positions are summed by stand-in
        top, bottom, left, right = padding
        fold = tap_map((height, width), (1, 1), (1, 1), padding, (1, 1), padding_mode).flatten().to(x.device)
        fold = fold if source_nearest is None else source_nearest[fold]
        height, width, padding = height + top + bottom, width + left + right, (0, 0, 0, 0)
    everywhere = Rows(
        count=batch * height * width,
        in_size=out_size,
        out_size=(height, width),
        per_image=height * width,
        source=invert(positions, out_size[0] * out_size[1]),
        source_rows=len(positions),
    )
    channels = weight.shape[1] * groups
    dense = multiply(
        grad,
        weight,
        everywhere,
        taps(weight.shape[2:], stride, padding, dilation),
        new_channels_last(x, batch, channels, height, width),
        groups=groups,
        store="rows",
        transposed=True,
    )
    if fold is None:
        return dense
    if x.dim() == 2:
        return interpolate_backward(dense, fold, x.shape[0] // max(batch, 1))
    folded = interpolate_backward(dense, fold, pixels)
    return folded.view(batch, *geometry.in_size[1:], channels).permute(0, 3, 1, 2)

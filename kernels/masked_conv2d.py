"""masked_conv2d: a convolution computed at a dynamic position set, as rows or added into a residual stream.

| form      | backward         | dtypes   | layouts                                  | granularity | limits        |
|-----------|------------------|----------|------------------------------------------|-------------|---------------|
| new       | dX, dW, db, d    | floating | any map or rows in; channels_last map or | position    | sizes below   |
|           | residual         |          | rows out                                 |             | 2**31         |
| in place  | none             | floating | any map or rows in; into a channels_last | position    | sizes below   |
|           |                  |          | map                                      |             | 2**31         |

The spatially adaptive residual update of Figurnov et al. 2017, arXiv 1612.02297: positions that have halted keep their
value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.bf16 import PRECISIONS, to_precision
from accel.kernels.checks import autocast, check_conv, check_device, check_shape, sizes
from accel.kernels.conv_ops import define_conv, register_conv_backward
from accel.kernels.counting import Work, dense_macs, register_macs
from accel.kernels.dispatch import implementation, is_direct, needs_grad
from accel.kernels.geometry import FIELDS, CallGeometry
from accel.kernels.positions import ActiveSet, output_size
from accel.kernels.reference.activation import FUSED_BACKWARD
from accel.kernels.reference.gather import pixel_table


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveSet,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    residual: Tensor | None = None,
    source: ActiveSet | None = None,
    precision: str = PRECISIONS[0],
) -> Tensor:
    """activation(residual + conv2d(x) + bias) at the active positions, zero padding.

    Args:
        x: [N, C, H, W] in any memory format; or, with `source`, rows [source capacity, C].
        weight, bias: [K, C / groups, kh, kw], [K] or None; dtype and device of x.
        active: the set on the output map, on the device of x.
        stride, dilation: (vertical, horizontal). padding: (top, bottom, left, right).
        activation: none, relu, leaky_relu (slope 0.01), hardswish or relu6; only the first two where a gradient is
            needed.
        residual: [N, K, H_out, W_out] in any memory format.
        source: the set on the input map that x holds rows of; input positions outside of it read as zeros.
        precision: as of `accel.ops.perforated_conv2d`.

    Returns:
        With a residual, its copy [N, K, H_out, W_out], channels_last, changed at the active positions only. Without,
        rows [active capacity, K], zeros at and after the total.

    Raises:
        ValueError: shapes, sizes, devices or names that do not fit, named in the message; an activation without
            backward where a gradient is needed.
        TypeError: dtypes that differ, or are not floating.
    """
    x, weight, bias, residual = autocast(x, weight, bias, residual)
    in_size = _input_size(x, source)
    check_conv("masked_conv2d", x, weight, bias, residual, stride, padding, dilation, groups, activation)
    _check_sets(x, weight, active, residual, in_size, stride, padding, dilation)
    if activation not in FUSED_BACKWARD and needs_grad(x, weight, bias, residual):
        raise ValueError(f"masked_conv2d: {activation} has no backward; use one of {', '.join(FUSED_BACKWARD)}")
    sets = (active.positions, active.counts, None if source is None else source.positions)
    geometry = (in_size, (active.height, active.width), tuple(stride), tuple(padding), tuple(dilation), groups)
    direct = is_direct(x, weight, bias, residual)
    x, weight, rounding = to_precision("masked_conv2d", precision, x, weight, direct)
    if direct:
        run = implementation("masked_conv2d", x)
        return run(x, weight, bias, *sets, residual, CallGeometry(*geometry), activation, **rounding)
    return _CONV(x, weight, bias, *sets, residual, *geometry, activation)


def masked_conv2d_(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveSet,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    accumulate: bool = False,
    source: ActiveSet | None = None,
    precision: str = PRECISIONS[0],
) -> Tensor:
    """The same in place: nothing but the active positions of `out` is touched, so that an empty set costs nothing.

    Args:
        out: [N, K, H_out, W_out], channels_last, sharing no memory with x. Active positions are set to
            activation(conv2d(x) + bias); with `accumulate`, to activation(out + conv2d(x) + bias).
        The others are those of `masked_conv2d`.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: as `masked_conv2d`; also where out is not channels_last, shares memory with x, or where
            a gradient is needed.
    """
    in_size = _input_size(x, source)
    check_conv("masked_conv2d_", x, weight, bias, out, stride, padding, dilation, groups, activation)
    _check_sets(x, weight, active, out, in_size, stride, padding, dilation)
    if out.numel() and not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"masked_conv2d_: out must be contiguous in channels_last, got strides {out.stride()}: convert it with "
            ".contiguous(memory_format=torch.channels_last)"
        )
    if x.untyped_storage()._cdata == out.untyped_storage()._cdata:
        raise ValueError("masked_conv2d_: out shares memory with x, which neighbouring positions still read: clone x")
    if needs_grad(out, x, weight, bias):
        raise ValueError("masked_conv2d_ has no backward: call masked_conv2d, or run it under torch.no_grad()")
    sets = (active.positions, active.counts, None if source is None else source.positions)
    geometry = (in_size, (active.height, active.width), tuple(stride), tuple(padding), tuple(dilation), groups)
    direct = is_direct(out, x, weight, bias)
    x, weight, rounding = to_precision("masked_conv2d_", precision, x, weight, direct)
    if direct:
        run = implementation("masked_conv2d_", x, "masked_conv2d")
        run(out, x, weight, bias, *sets, CallGeometry(*geometry), activation, accumulate, **rounding)
    else:
        _CONV_IN_PLACE(out, x, weight, bias, *sets, *geometry, activation, accumulate)
    return out


def _input_size(x: Tensor, source: ActiveSet | None) -> tuple[int, int, int]:
    """(N, H, W) of the input map."""
    shape = sizes(x)
    if source is None:
        if x.dim() != 4:
            raise ValueError(f"masked_conv2d: x must be [N, C, H, W] (rows need source=), got {tuple(x.shape)}")
        return shape[0], shape[2], shape[3]
    if x.dim() != 2 or x.shape[0] != source.positions.shape[0]:
        expected = source.positions.shape[0]
        raise ValueError(f"masked_conv2d: with source, x must be [{expected}, C], got {tuple(x.shape)}")
    check_device("masked_conv2d", x, "source", source.positions)
    return source.batch, source.height, source.width


def _check_sets(x, weight, active, residual, in_size, stride, padding, dilation):
    size = output_size(in_size[1:], weight.shape[2:], stride, padding, dilation)
    expected = (in_size[0], *size)
    if expected != (active.batch, active.height, active.width):
        raise ValueError(
            f"masked_conv2d: the output has (N, H, W) = {expected}, but the active set is for "
            f"{(active.batch, active.height, active.width)}: build one for this input size"
        )
    check_device("masked_conv2d", x, "active", active.positions)
    if residual is not None:
        check_shape("masked_conv2d", "residual", residual, (in_size[0], weight.shape[0], *size))


def _fake(x, weight, bias, positions, counts, source_positions, residual, *rest):
    if residual is None:
        return x.new_empty(positions.shape[0], weight.shape[0])
    return torch.empty(residual.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_SETS = "Tensor positions, Tensor counts, Tensor? source_positions"
_TENSORS = f"Tensor x, Tensor weight, Tensor? bias, {_SETS}"
_conv = define_conv("masked_conv2d", f"{_TENSORS}, Tensor? residual, {FIELDS}, str activation", _fake)
_IN_PLACE = f"Tensor(a!) out, {_TENSORS}, {FIELDS}, str activation, bool accumulate"
define_conv("masked_conv2d_", _IN_PLACE, lambda *_: None, writes="out")
_CONV_BACKWARD = register_conv_backward("masked_conv2d", _SETS, FIELDS)


def _setup(ctx, inputs, output):
    x, weight, bias, positions, counts, source_positions, residual, *geometry, activation = inputs
    ctx.geometry = geometry
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    ctx.save_for_backward(x, weight, positions, counts, source_positions, output if activation == "relu" else None)


def _grad(ctx, grad):
    x, weight, positions, counts, source_positions, output = ctx.saved_tensors
    if ctx.has_residual:
        if output is not None:
            grad = grad * ((output > 0) | ~_active_map(positions, output))
        rows = pixel_table(grad)[positions.clamp_min(0)]
    else:
        rows = grad if output is None else grad * (output > 0)
    d_x, d_weight, d_bias = _CONV_BACKWARD(
        rows.contiguous(), x, weight, positions, counts, source_positions, *ctx.geometry
    )
    d_residual = grad if ctx.has_residual else None
    return d_x, d_weight, d_bias if ctx.has_bias else None, None, None, None, d_residual, *[None] * 7


def _active_map(positions: Tensor, like: Tensor) -> Tensor:
    """bool [N, 1, H, W], true at the positions (one slot more takes the unused entries)."""
    batch, _, height, width = like.shape
    total = batch * height * width
    active = torch.zeros(total + 1, 1, dtype=torch.bool, device=like.device)
    active = active.index_fill(0, torch.where(positions < 0, total, positions).long(), True)
    return active[:total].view(batch, height, width, 1).permute(0, 3, 1, 2)


_conv.register_autograd(_grad, setup_context=_setup)


def _work(args: Sequence, _out: object) -> Work:
    weight, positions, counts, out_size = args[1], args[3], args[4], args[8]
    dense = dense_macs(len(counts), out_size, weight) if out_size else 0
    return Work(len(counts), counts.long() * weight.numel(), dense, capacity=positions.shape[0] * weight.numel())


def _work_in_place(args: Sequence, _out: object) -> Work:
    """What refines a map counts as executed only: the dense work was counted where the map was made."""
    weight, positions, counts = args[2], args[4], args[5]
    return Work(len(counts), counts.long() * weight.numel(), 0, capacity=positions.shape[0] * weight.numel())


register_macs("masked_conv2d", _work)
register_macs("masked_conv2d_", _work_in_place)
_CONV = torch.ops.accel.masked_conv2d.default
_CONV_IN_PLACE = torch.ops.accel.masked_conv2d_.default

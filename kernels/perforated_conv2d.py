"""perforated_conv2d: a convolution computed at a static position set, compact or interpolated output.

| backward         | dtypes   | layouts                                          | granularity | limits            |
|------------------|----------|--------------------------------------------------|-------------|-------------------|
| dX, dW, db, d    | floating | any map in; channels_last map or rows in and out | position    | sizes below 2**31 |
| residual         |          |                                                  |             |                   |

Figurnov et al. 2016, arXiv 1504.08362: the perforated convolutional layer, with its interpolation written out, or left
to the reader of a compact output (`source`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.bf16 import PRECISIONS, is_told, round_bf16
from accel.kernels.checks import (
    PADDING_MODES,
    autocast,
    check_activation,
    check_device,
    check_kernel,
    check_same,
    check_shape,
    form,
    sizes,
)
from accel.kernels.conv_ops import define_conv, register_conv_backward
from accel.kernels.counting import Work, dense_macs, register_macs
from accel.kernels.dispatch import implementation, is_direct, needs_grad
from accel.kernels.geometry import FIELDS, CallGeometry
from accel.kernels.interpolate import interpolate
from accel.kernels.positions import PositionSet, output_size
from accel.kernels.reference.activation import FUSED_BACKWARD, activate
from accel.kernels.reference.perforated_conv2d import at_positions


def perforated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: PositionSet,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str = "none",
    residual: Tensor | None = None,
    compact: bool = False,
    source: PositionSet | None = None,
    precision: str = PRECISIONS[0],
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """conv2d(x) + bias at the positions of a static set, interpolated at the others; activation(that + residual).

    Args:
        x: [N, C, H, W] in any memory format; or, with `source`, the rows [N * P_in, C] of a compact input, image-major.
        weight, bias: [K, C / groups, kh, kw], [K] or None; dtype and device of x.
        positions: the set on the output map, on the device of x.
        stride, dilation: (vertical, horizontal). padding: (top, bottom, left, right).
        padding_mode: zeros, reflect, replicate or circular, as nn.Conv2d's.
        activation: none, relu, leaky_relu (slope 0.01), hardswish or relu6.
        residual: added before the activation: [N, K, H_out, W_out], at every position; or, with `compact`, rows
            [N * P, K].
        compact: return the computed rows and leave the other positions alone.
        source: the set on the H x W input map that x is compact on; taps read x through `source.nearest`.
        precision: "fp32", that of the tensors; or "bf16": x and weight are rounded to it, halves to even, and the
            products are summed up as before; gradients pass as if nothing had been rounded. x may be bf16 already.
            CPUs that multiply bf16 by instructions of their own (AVX512_BF16) take subnormal numbers for zeros.
        out_dtype: torch.bfloat16, of that precision alone: the output is rounded last, for readers that would round it.

    Returns:
        [N, K, H_out, W_out] channels_last, every position holding the value of its stand-in (plus its own of the
        residual); or rows [N * P, K].

    Raises:
        ValueError: shapes, sizes, devices or names that do not fit, named in the message.
        TypeError: dtypes that differ, or are not floating.
    """
    x, weight, bias, residual = autocast(x, weight, bias, residual)
    direct, told = is_direct(x, weight, bias, residual), {}
    if precision != PRECISIONS[0] or out_dtype is not None:
        _check_rounding(precision, out_dtype)
        if not is_told("perforated_conv2d", precision, weight, direct):
            x, weight = round_bf16(x.to(weight.dtype) if x.dtype is torch.bfloat16 else x), round_bf16(weight)
            out = perforated_conv2d(
                x, weight, bias, positions, stride=stride, padding=padding, dilation=dilation, groups=groups,
                padding_mode=padding_mode, activation=activation, residual=residual, compact=compact, source=source,
            )  # fmt: skip
            return out if out_dtype is None else out.to(out_dtype)
        told = {"precision": precision, "out_dtype": out_dtype or torch.float32}
    steps = (tuple(stride), tuple(padding), tuple(dilation), groups, padding_mode)
    call = ((x, weight, bias, residual), positions, source, steps, activation, compact, precision)
    in_size = checked_before(_check, *call) if direct else _check(*call)
    source_nearest = None if source is None else source.nearest
    sets = (positions.positions, positions.nearest, source_nearest)
    geometry = CallGeometry(in_size, (positions.height, positions.width), *steps)
    if direct:
        run = implementation("perforated_conv2d", weight)  # x may be bf16
        return run(x, weight, bias, *sets, residual, geometry, activation, compact, **told)
    if activation in FUSED_BACKWARD or not needs_grad(x, weight, bias, residual):
        return _CONV(x, weight, bias, *sets, residual, *geometry, activation, compact)
    rows = _CONV(x, weight, bias, *sets, None, *geometry, "none", True)
    out = rows if compact else interpolate(rows, positions)
    return activate(out if residual is None else out + residual, activation)


_seen: dict[tuple, tuple[int, int, int]] = {}


def checked_before(check, tensors, positions, source, *rest):
    """What `check` returns, run once for every kind of call: a look-up takes 2 microseconds, the checks 6."""
    where = None if source is None else (source.height, source.width, len(source), source.nearest.device)
    kind = (
        check, *map(form, tensors), positions.height, positions.width, len(positions), positions.nearest.device, where,
        *rest,
    )  # fmt: skip
    found = _seen.get(kind)
    if found is None:
        found = check(tensors, positions, source, *rest)
        if len(_seen) >= 4096:  # inputs of ever new sizes
            _seen.clear()
        _seen[kind] = found
    return found


def _check_rounding(precision: str, out_dtype: torch.dtype | None) -> None:
    if out_dtype is not None and (precision, out_dtype) != ("bf16", torch.bfloat16):
        raise ValueError(
            f"perforated_conv2d: out_dtype is torch.bfloat16 with precision 'bf16', or left out, got {out_dtype} with "
            f"{precision!r}"
        )


def _check(tensors, positions, source, geometry, activation, compact, precision):
    """Raise where the arguments do not fit; returns (N, H, W) of the input map."""
    op = "perforated_conv2d"
    x, weight, bias, residual = tensors
    if precision == "bf16" and x.dtype is torch.bfloat16:
        x = x.to(weight.dtype)  # what it is read as
    in_size = check_static(op, tensors, positions, source, geometry, compact)
    check_activation(op, activation)
    check_same(op, x, weight=weight, bias=bias, residual=residual)
    return in_size


def check_static(op, tensors, positions, source, geometry, compact):
    """What a convolution at a static set asks of (x, weight, bias, residual), but for dtypes; returns (N, H, W)."""
    x, weight, bias, residual = tensors
    stride, padding, dilation, groups, padding_mode = geometry
    batch, *size = _input_size(op, x, source)
    check_kernel(op, x, weight, bias, stride, padding, dilation, groups)
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"{op}: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
    height, width = output_size(size, weight.shape[2:], stride, padding, dilation)
    if (height, width) != (positions.height, positions.width):
        raise ValueError(
            f"{op}: the output is {height}x{width}, but the position set is for "
            f"{positions.height}x{positions.width}: build one for this input size"
        )
    check_device(op, x, "positions", positions.nearest)
    if residual is not None:
        rows = (batch * len(positions), weight.shape[0])
        check_shape(op, "residual", residual, rows if compact else (batch, weight.shape[0], height, width))
    return batch, *size


def _input_size(op: str, x: Tensor, source: PositionSet | None) -> tuple[int, int, int]:
    """(N, H, W) of the input map."""
    shape = sizes(x)
    if source is None:
        if x.dim() != 4:
            raise ValueError(f"{op}: x must be [N, C, H, W] (rows need source=), got {tuple(x.shape)}")
        return shape[0], shape[2], shape[3]
    if x.dim() != 2 or shape[0] % len(source):
        raise ValueError(f"{op}: with source, x must be [N * {len(source)}, C], got {tuple(x.shape)}")
    check_device(op, x, "source", source.nearest)
    return shape[0] // len(source), source.height, source.width


def _fake(x, weight, bias, positions, nearest, source_nearest, residual, in_size, out_size, *rest):
    *_, compact = rest
    if compact:
        return x.new_empty(in_size[0] * positions.shape[0], weight.shape[0])
    shape = (in_size[0], weight.shape[0], *out_size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_TENSORS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor positions, Tensor nearest, Tensor? source_nearest, Tensor? residual"
)
_STATIC_FIELDS = f"{FIELDS}, str padding_mode"
STATIC_CALL = f"{_TENSORS}, {_STATIC_FIELDS}, str activation, bool compact"
_conv = define_conv("perforated_conv2d", STATIC_CALL, _fake)
_CONV_BACKWARD = register_conv_backward("perforated_conv2d", "Tensor positions, Tensor? source_nearest", _STATIC_FIELDS)


def _setup(ctx, inputs, output):
    x, weight, bias, positions, nearest, source_nearest, residual, *geometry, activation, compact = inputs
    ctx.geometry, ctx.compact = geometry, compact
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    ctx.save_for_backward(x, weight, positions, nearest, source_nearest, output if activation == "relu" else None)


def _grad(ctx, grad):
    x, weight, positions, nearest, source_nearest, output = ctx.saved_tensors
    if output is not None and (ctx.compact or ctx.has_residual):
        grad, output = grad * (output > 0), None
    d_residual = grad if ctx.has_residual else None
    if not ctx.compact:
        grad = torch.ops.accel.interpolate_backward(grad, nearest, positions.shape[0])
    if output is not None:  # positions that share a row share its sign
        grad = grad * (at_positions(output, positions) > 0)
    d_x, d_weight, d_bias = _CONV_BACKWARD(grad.contiguous(), x, weight, positions, source_nearest, *ctx.geometry)
    return d_x, d_weight, d_bias if ctx.has_bias else None, None, None, None, d_residual, *[None] * 9


_conv.register_autograd(_grad, setup_context=_setup)
_CONV = torch.ops.accel.perforated_conv2d.default


def static_work(args: Sequence, out: Tensor) -> Work:
    """Computed positions are the rows of a compact output, else images x positions."""
    weight, positions, in_size, out_size = args[1], args[3], args[7], args[8]
    rows = out.shape[0] if out.dim() == 2 else out.shape[0] * positions.shape[0]
    executed = rows * weight.numel()
    return Work(in_size[0], executed, dense_macs(in_size[0], out_size, weight)) if in_size else Work(None, executed, 0)


register_macs("perforated_conv2d", static_work)

"""quantized_conv2d: a convolution of u8 activations and s8 weights at a static position set.

| backward | dtypes                 | layouts                                 | granularity | limits                   |
|----------|------------------------|-----------------------------------------|-------------|--------------------------|
| none     | uint8 by int8 to uint8 | any map in; channels_last map or rows   | position    | CPU tensors; at most     |
|          | or float32             | in and out                              |             | 65793 terms in a sum     |

Jacob et al. 2017, arXiv 1712.05877 (integer arithmetic); requantization in fp32, by a scale a channel, as XNNPACK's is
(`qs8-qc8w`). The sums are exact on every backend, and what is made of them has one order of operations
(`Requantization`): the bytes are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.checks import check_activation, check_device
from accel.kernels.conv_ops import define_conv
from accel.kernels.counting import register_macs
from accel.kernels.dispatch import implementation, is_direct
from accel.kernels.geometry import CallGeometry
from accel.kernels.perforated_conv2d import STATIC_CALL, check_static, checked_before, static_work
from accel.kernels.positions import PositionSet
from accel.kernels.quantization import MOST_TERMS, Requantization


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    requantization: Requantization,
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
) -> Tensor:
    """conv2d of bytes at the positions of a static set, interpolated at the others, in bytes again or in fp32.

    Args:
        x: uint8 [N, C, H, W] in any memory format; or, with `source`, the rows [N * P_in, C] of a compact input,
            image-major. Padding of mode "zeros" holds its zero point.
        weight: int8 [K, C / groups, kh, kw], symmetric, a scale for each of the K.
        requantization: the scales and zero points of all that goes in and comes out, on the device of x.
        activation: of an fp32 output, as `perforated_conv2d` has them; that of bytes lies in their bounds.
        residual: added before the activation or the bounds, of the output's dtype or fp32: [N, K, H_out, W_out], at
            every position; or, with `compact`, rows [N * P, K]. Numbers stand for themselves: to bytes they are added
            by the requantization of the residual `NUMBERS`.
        positions, stride, padding, dilation, groups, padding_mode, compact, source: as of `perforated_conv2d`.

    Returns:
        [N, K, H_out, W_out] channels_last, every position holding the value of its stand-in (plus its own of the
        residual); or rows [N * P, K]. uint8, or fp32 if the requantization has no output scale.

    Raises:
        ValueError: shapes, sizes, devices or names that do not fit; a residual without its scale, or of numbers that
            are not finite, added to bytes; an activation of bytes; sums of more than 65793 terms; tensors that are not
            on the CPU.
        TypeError: another dtype.
    """
    multiplier, offset, levels = requantization.multiplier, requantization.offset, requantization.levels
    direct = is_direct(x, weight, multiplier, offset, residual)
    steps = (tuple(stride), tuple(padding), tuple(dilation), groups, padding_mode)
    call = ((x, weight, offset, residual, multiplier), positions, source, steps, activation, compact, levels)
    in_size = checked_before(_check, *call) if direct else _check(*call)
    sets = (positions.positions, positions.nearest, None if source is None else source.nearest)
    geometry = CallGeometry(in_size, (positions.height, positions.width), *steps)
    if not direct:
        return _CONV(x, weight, offset, *sets, residual, *geometry, activation, compact, multiplier, *levels)
    run = implementation("quantized_conv2d", multiplier)
    return run(x, weight, offset, *sets, residual, geometry, activation, compact, multiplier, *levels)


def _check(tensors, positions, source, geometry, activation, compact, levels):
    """Raise where the arguments do not fit; returns (N, H, W) of the input map."""
    op, in_bytes = "quantized_conv2d", levels.out_zero is not None
    *tensors, multiplier = tensors
    x, weight, _, residual = tensors
    added = torch.uint8 if in_bytes and residual is not None and residual.dtype is not torch.float32 else torch.float32
    for name, tensor, dtype in (("x", x, torch.uint8), ("weight", weight, torch.int8), ("residual", residual, added)):
        if tensor is not None and tensor.dtype is not dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {tensor.dtype}: quantize it, or convert it")
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            raise ValueError(f"{op}: runs on CPU tensors, got {name} on {tensor.device}: move it with .to('cpu')")
    in_size = check_static(op, tensors, positions, source, geometry, compact)
    check_device(op, x, "weight", weight)
    check_device(op, x, "requantization", multiplier)
    check_activation(op, activation)
    if in_bytes and activation != "none":
        raise ValueError(f"{op}: the activation of bytes is their bounds, got activation={activation!r}: give bounds=")
    if in_bytes and residual is not None and not levels.residual_multiplier:
        raise ValueError(f"{op}: nothing is known of the residual's bytes: give residual= to Requantization.of")
    if in_bytes and residual is not None and residual.dtype is torch.float32 and levels.residual_zero:
        raise ValueError(f"{op}: a residual of numbers has no zero point: give residual=NUMBERS to Requantization.of")
    if len(multiplier) != len(weight):
        raise ValueError(f"{op}: weight has {len(weight)} output channels, the requantization {len(multiplier)}")
    if weight[0].numel() > MOST_TERMS:
        raise ValueError(f"{op}: sums of more than {MOST_TERMS} terms overflow 32 bits, got {weight[0].numel()}")
    return in_size


def _fake(x, weight, offset, positions, nearest, source_nearest, residual, in_size, out_size, *rest):
    compact, out_zero = rest[6], rest[9]
    dtype = torch.float32 if out_zero is None else torch.uint8
    if compact:
        return x.new_empty(in_size[0] * positions.shape[0], weight.shape[0], dtype=dtype)
    shape = (in_size[0], weight.shape[0], *out_size)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


_LEVELS = "int x_zero, int? out_zero, int low, int high, int residual_zero, float residual_multiplier"
define_conv(
    "quantized_conv2d",
    f"{STATIC_CALL}, Tensor multiplier, {_LEVELS}",
    _fake,
    backend_of=-7,  # multiplier: in fp32, by which the engine knows its tensors
)
_CONV = torch.ops.accel.quantized_conv2d.default
register_macs("quantized_conv2d", static_work)

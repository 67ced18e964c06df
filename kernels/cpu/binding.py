"""The ops of the CPU engine: the arguments of `accel.kernels.reference`, fp32 CPU tensors in, fresh tensors out.

Importing this module raises ImportError where the engine was not built.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.cpu import _engine
from accel.kernels.cpu.packing import packed_weight
from accel.kernels.cpu.plans import RUN_CHANNELS, Geometry, IdentityCache, Plan
from accel.kernels.positions import PositionSet

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "hardswish": 3}

if os.environ.get("ACCEL_CPU_ISA"):
    _engine.set_isa(os.environ["ACCEL_CPU_ISA"])

_plans = IdentityCache()
_segments = IdentityCache()


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
    """Convolution at a static position set; arguments and result as in `accel.kernels.reference.perforated_conv2d`."""
    _require_float32(x=x, weight=weight, bias=bias, residual=residual)
    batch, height, width = in_size
    out_channels, c_group, kh, kw = weight.shape
    channels = c_group * groups
    as_runs = channels < RUN_CHANNELS and groups == 1 and kw > 1 and dilation[1] == 1 and source_nearest is None
    in_pixels = height * width if source_nearest is None else x.shape[0] // max(batch, 1)
    key = (height, width, kh, kw, *stride, *padding, *dilation, padding_mode, *out_size, in_pixels, as_runs)

    def build() -> Plan:
        geometry = Geometry((height, width), (kh, kw), tuple(stride), tuple(padding), tuple(dilation), padding_mode)
        return Plan(geometry, positions, nearest, source_nearest, tuple(out_size), in_pixels, as_runs)

    plan = _plans.get((positions, nearest, source_nearest), key, build)
    threads = torch.get_num_threads()
    x = _framed(x, plan, threads) if as_runs else _pixels_first(x)
    residual = None if residual is None else _pixels_first(residual)
    bias = None if bias is None else bias.contiguous()
    depthwise = groups == channels == out_channels and groups > 1
    packed = packed_weight(weight, groups, depthwise)
    rows = batch * plan.count
    if compact:
        out = torch.empty((rows, out_channels))
    else:
        out = torch.empty((batch, out_channels, *out_size), memory_format=torch.channels_last)
    table, where, starts, targets = plan.addresses
    _engine.convolve(
        x.data_ptr(), packed.address, packed.zero, _address(bias), _address(residual), out.data_ptr(), table, where,
        starts, targets, 0, 0, not compact, rows, plan.count, plan.in_pixels, channels, plan.taps,
        kw * channels if as_runs else c_group, out_size[0] * out_size[1], out_channels, groups, depthwise,
        ACTIVATIONS[activation], threads,
    )  # fmt: skip
    return out


def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Rows to a dense map; arguments and result as in `accel.kernels.reference.interpolate`."""
    _require_float32(rows=rows)
    rows, nearest = rows.contiguous(), nearest.contiguous()
    out = torch.empty((batch, rows.shape[1], *size), memory_format=torch.channels_last)
    _engine.interpolate(
        rows.data_ptr(), out.data_ptr(), nearest.data_ptr(), 0, 0, batch, rows.shape[0] // max(batch, 1),
        nearest.numel(), rows.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    return out


def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The adjoint; arguments and result as in `accel.kernels.reference.interpolate_backward`."""
    _require_float32(grad=grad)
    grad = _pixels_first(grad)
    batch, channels, height, width = grad.shape

    def build() -> tuple[Tensor, Tensor]:
        rows = torch.arange(count, dtype=torch.int32)
        return PositionSet(rows, nearest, height, width).segments

    starts, targets = _segments.get((nearest,), (count, height, width), build)
    out = torch.empty((batch * count, channels))
    _engine.interpolate_backward(
        grad.data_ptr(), out.data_ptr(), 0, starts.data_ptr(), targets.data_ptr(), batch, count, height * width,
        channels, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _framed(x: Tensor, plan: Plan, threads: int) -> Tensor:
    """A padded NHWC copy of a map with few channels; the map may have any strides with evenly spaced pixels."""
    if x.stride(2) != x.shape[3] * x.stride(3):
        x = x.contiguous()
    batch, channels = x.shape[:2]
    out = torch.empty(batch * plan.in_pixels * channels)
    _engine.frame(
        x.data_ptr(), out.data_ptr(), plan.frame.data_ptr(), batch, channels, plan.in_pixels, x.stride(0), x.stride(1),
        x.stride(3), threads,
    )  # fmt: skip
    return out


def _pixels_first(x: Tensor) -> Tensor:
    """The same values with the channels of a pixel (or the columns of a row) contiguous."""
    return x.contiguous() if x.dim() == 2 else x.contiguous(memory_format=torch.channels_last)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _require_float32(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype is not torch.float32 or tensor.device.type != "cpu"):
            raise TypeError(
                f"the C engine takes float32 CPU tensors, but {name} is {tensor.dtype} on {tensor.device}: "
                "convert it, or leave use_backend('cpu')"
            )

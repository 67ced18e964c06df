"""Forward convolutions on the engine: at static and at dynamic position sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import CPU, address, empty, invert, pixels_first, require_float32
from accel.kernels.cpu.footprints import Footprints, images_together
from accel.kernels.cpu.packing import packed_weight
from accel.kernels.cpu.plans import RUN_CHANNELS, Geometry, Plan, full_table, static_plan
from accel.kernels.cpu.replay import tape

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "hardswish": 3}


def perforated_conv2d(x, weight, bias, positions, nearest, source_nearest, residual, geometry, activation, compact):
    """Convolution at a static position set; arguments and result as in `accel.kernels.reference.perforated_conv2d`."""
    require_float32(x, weight, bias, residual)
    key = (weight.shape, geometry, activation, compact)
    sets = (positions, nearest, source_nearest)
    call = _calls.get(sets, key, lambda _: _prepare(x, sets, *key))
    x = pixels_first(x)
    if residual is not None:
        residual = pixels_first(residual)
    if bias is not None:
        bias = bias.contiguous()
    packed = packed_weight(weight, geometry.groups, call.kind)
    if compact:
        out = empty(call.out_shape)
    else:
        out = empty(call.out_shape, memory_format=torch.channels_last)
    fields = (
        x.data_ptr(), packed.address, 0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    edges = None
    if call.footprints is None:
        edges = _edges(x, call.plan) if call.plan.edges else None
        fields += (packed.zero if edges is None else edges.data_ptr(), *call.constants, torch.get_num_threads())
        _engine.convolve(*fields)
    else:
        fields += (*call.constants, torch.get_num_threads())
        _engine.convolve_footprints(*fields)
    recorded = tape()
    if recorded is not None and edges is None:
        recorded.append(call.footprints is not None, x, residual, out, fields, packed.storage, (packed, bias, call))
    return out


class _Call(NamedTuple):
    """What one kind of call needs besides its tensors; looked up in half a microsecond."""

    plan: Plan
    footprints: Footprints | None
    kind: str
    out_shape: tuple[int, ...]
    constants: tuple[int, ...]


_calls = IdentityCache()


def _prepare(x, sets, kernel, geometry, activation, compact) -> _Call:
    batch, height, width = geometry.in_size
    out_size, groups = geometry.out_size, geometry.groups
    out_channels, c_group, kh, kw = kernel
    channels = c_group * groups
    in_pixels = height * width if sets[2] is None else x.shape[0] // max(batch, 1)
    table = Geometry((height, width), (kh, kw), *geometry.taps)
    kind, narrow = forward_kind(kernel, groups), is_narrow(out_channels, groups)
    out_pixels = out_size[0] * out_size[1]
    if kind == "depthwise" or narrow:
        plan = static_plan(table, *sets, out_size, in_pixels, False)
        images = images_together(batch, plan.count)
        footprints = plan.footprints(compact, images, narrow)
        if footprints.few:
            out_shape = (batch * plan.count, out_channels) if compact else (batch, out_channels, *out_size)
            constants = (
                *footprints.addresses, batch // images, footprints.bands, plan.in_pixels * images,
                (plan.count if compact else out_pixels) * images, channels, out_channels, plan.taps,
                ACTIVATIONS[activation], not compact, False, narrow,
            )  # fmt: skip
            return _Call(plan, footprints, "narrow" if narrow else kind, out_shape, constants)
    as_runs = channels < RUN_CHANNELS and groups == 1 and kw > 1 and geometry.dilation[1] == 1 and sets[2] is None
    plan = static_plan(table, *sets, out_size, in_pixels, as_runs)
    rows = batch * plan.count
    out_shape = (rows, out_channels) if compact else (batch, out_channels, *out_size)
    constants = (
        *plan.addresses, 0, False, not compact, rows, plan.count, plan.in_pixels, channels, plan.taps,
        kw * channels if as_runs else c_group, out_pixels, out_channels, groups, kind == "depthwise",
        ACTIVATIONS[activation], *((kw * channels, plan.edges[1] * channels) if as_runs else (0, 0)),
    )  # fmt: skip
    return _Call(plan, None, kind, out_shape, constants)


def masked_conv2d(x, weight, bias, positions, counts, source_positions, residual, geometry, activation):
    """Convolution at a dynamic position set; arguments and result as in `accel.kernels.reference.masked_conv2d`."""
    require_float32(residual)
    rows, out_channels = int(counts.sum()), weight.shape[0]
    if residual is None:
        out = empty((positions.numel(), out_channels))
        out[rows:] = 0
    else:
        out = empty((geometry.in_size[0], out_channels, *geometry.out_size), memory_format=torch.channels_last)
        out.copy_(residual)  # so that it is added to what `out` holds
    adds = residual is not None
    _convolve_active(out, x, weight, bias, positions, rows, source_positions, geometry, activation, adds, adds)
    return out


def masked_conv2d_(out, x, weight, bias, positions, counts, source_positions, geometry, activation, accumulate):
    """The same in place; arguments as in `accel.kernels.reference.masked_conv2d`."""
    require_float32(out)
    rows = int(counts.sum())
    _convolve_active(out, x, weight, bias, positions, rows, source_positions, geometry, activation, True, accumulate)


def _convolve_active(
    out, x, weight, bias, positions, rows, source_positions, geometry, activation, scatter, accumulate
):
    """Write the first `rows` active positions: to rows of `out`, or with `scatter` to their places in a map."""
    require_float32(x, weight, bias)
    if rows == 0:
        return
    out_channels, c_group, kh, kw = weight.shape
    batch, height, width = geometry.in_size
    in_pixels, out_pixels, groups = height * width, geometry.out_size[0] * geometry.out_size[1], geometry.groups
    table = full_table(Geometry((height, width), (kh, kw), *geometry.taps))
    inverse = None if source_positions is None else invert(source_positions, batch * in_pixels)
    x, positions = pixels_first(x), positions.contiguous()
    bias = None if bias is None else bias.contiguous()
    kind = forward_kind(weight.shape, groups)
    packed = packed_weight(weight, groups, kind)
    _engine.convolve(
        x.data_ptr(), packed.address, address(bias), out.data_ptr() if accumulate else 0, out.data_ptr(), packed.zero,
        table.data_ptr(), positions.data_ptr(), 0, 0, address(inverse), 1, scatter, rows, out_pixels, in_pixels,
        c_group * groups, kh * kw, c_group, out_pixels, out_channels, groups, kind == "depthwise",
        ACTIVATIONS[activation], 0, 0, torch.get_num_threads(),
    )  # fmt: skip


def forward_kind(weight_shape: Sequence[int], groups: int) -> str:
    """ "depthwise" for one input and one output channel a group: the engine then works on the channels as lanes."""
    return "depthwise" if groups > 1 and groups == weight_shape[0] and weight_shape[1] == 1 else "conv"


def is_narrow(out_channels: int, groups: int) -> bool:
    """Whether the outputs of a convolution fill no more than one vector: the narrow kernels are then the fastest."""
    return groups == 1 and out_channels <= _engine.lanes()


def _edges(x: Tensor, plan: Plan) -> Tensor:
    """The rows of the kernel that reach across the border of a channels_last map: Plan.edges."""
    pieces, pixels = plan.edges
    batch, channels = x.shape[:2]
    out = torch.empty(batch * pixels * channels, dtype=torch.float32, device=CPU)
    _engine.frame(
        x.data_ptr(), out.data_ptr(), pieces.data_ptr(), len(pieces), batch, channels, pixels,
        plan.in_pixels * channels, 1, channels, torch.get_num_threads(),
    )  # fmt: skip
    return out

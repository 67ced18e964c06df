"""Forward convolutions on the engine: at static and at dynamic position sets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU, address, empty, invert, pixels_first, require_float32
from accel.kernels.cpu.bf16 import pitch_of, rounded
from accel.kernels.cpu.footprints import Footprints, images_together
from accel.kernels.cpu.packing import element_of, packed_weight
from accel.kernels.cpu.plans import (
    MOST_GROUPED,
    MOST_GROUPED_COMPACT,
    RUN_CHANNELS,
    Axes,
    Geometry,
    Plan,
    axes,
    static_plan,
)
from accel.kernels.cpu.replay import tape
from accel.kernels.geometry import CallGeometry


def perforated_conv2d(
    x, weight, bias, positions, nearest, source_nearest, residual, geometry, activation, compact, precision="fp32",
    out_dtype=torch.float32,
):  # fmt: skip
    """Convolution at a static position set; arguments and result as in `accel.kernels.reference.perforated_conv2d`, of
    numbers that are first rounded where the precision is "bf16", unless x is bf16 already, as the output may be."""
    is_rounded = precision == "bf16" and x.dtype is torch.bfloat16
    require_float32(None if is_rounded else x, weight, bias, residual)
    key = (weight.shape, geometry, activation, compact, precision, is_rounded, out_dtype)
    sets = (positions, nearest, source_nearest)
    call = _calls.get(sets, key, lambda _: _prepare(x, sets, *key))
    x = pixels_first(x)
    if precision == "bf16" and not is_rounded:
        x = rounded(x, pitch_of(x.shape[1], geometry.groups))
    if residual is not None:
        residual = pixels_first(residual)
    if bias is not None:
        bias = bias.contiguous()
    packed = packed_weight(weight, geometry.groups, call.kind, precision=precision)
    if compact:
        out = empty(call.out_shape, dtype=out_dtype)
    else:
        out = empty(call.out_shape, memory_format=torch.channels_last, dtype=out_dtype)
    bias_at, residual_at = 0 if bias is None else bias.data_ptr(), 0 if residual is None else residual.data_ptr()
    edges = None
    if call.footprints is None:
        edges = None if call.plan.axes.pieces is None else _edges(x, call.plan)
        _engine.convolve(
            call.job, x=x.data_ptr(), packed=packed.address, bias=bias_at, residual=residual_at,
            zero=packed.zero if edges is None else edges.data_ptr(), out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )  # fmt: skip
    else:
        _engine.convolve_footprints(
            call.job, x=x.data_ptr(), weights=packed.address, bias=bias_at, residual=residual_at, out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )  # fmt: skip
    recorded = tape()
    if recorded is not None:
        if call.footprints is None:
            weights = {"packed": packed.address, "zero": packed.zero if edges is None else 0}
        else:
            weights = {"weights": packed.address}
        kind = "convolve" if call.footprints is None else "footprints"
        given = {"bias": bias_at, **weights}
        recorded.append(kind, x, residual, out, call.job, given, packed.storage, (packed, bias, call), edges)
    return out


class Call(NamedTuple):
    """What one kind of call needs besides its tensors; looked up in half a microsecond. job: of record.py, packed."""

    plan: Plan
    footprints: Footprints | None
    kind: str
    out_shape: tuple[int, ...]
    job: bytes


_calls = IdentityCache()


def _prepare(x, sets, kernel, geometry, activation, compact, precision, is_rounded, out_dtype) -> Call:
    batch, height, width = geometry.in_size
    out_size, groups = geometry.out_size, geometry.groups
    out_channels, c_group, kh, kw = kernel
    channels = c_group * groups
    if precision == "bf16":
        elements, pitch = _of_bf16(kernel, groups)
        elements["narrow"] = out_dtype is torch.bfloat16
        pitch = channels if is_rounded else pitch
        return by_pointers(x, sets, kernel, geometry, activation, compact, False, elements, pitch)
    in_pixels = pixels_of(x, geometry, sets)
    table = Geometry((height, width), (kh, kw), *geometry.taps)
    kind, narrow = forward_kind(kernel, groups), is_narrow(out_channels, groups)
    out_pixels = out_size[0] * out_size[1]
    if (kind == "depthwise" or narrow) and len(sets[0]) <= (MOST_GROUPED if sets[2] is None else MOST_GROUPED_COMPACT):
        plan = static_plan(table, *sets, out_size, in_pixels, False)
        images = images_together(batch, plan.count)
        footprints = plan.footprints(compact, images, narrow)
        if footprints.few:
            out_shape = (batch * plan.count, out_channels) if compact else (batch, out_channels, *out_size)
            job = record.FOOTPRINT_JOB.pack(
                **footprints.addresses, images=batch // images, band_count=footprints.bands,
                in_pixels=plan.in_pixels * images, out_pixels=(plan.count if compact else out_pixels) * images,
                in_channels=channels, channels=out_channels, taps=kh * kw,
                activation=record.ACTIVATIONS[activation], filled=not compact, plain=False, narrow=narrow,
                **record.FOOTPRINTS_OF_FLOATS,
            )  # fmt: skip
            return Call(plan, footprints, "narrow" if narrow else kind, out_shape, job)
    as_runs = channels < RUN_CHANNELS and groups == 1 and kw > 1 and geometry.dilation[1] == 1 and sets[2] is None
    return by_pointers(x, sets, kernel, geometry, activation, compact, as_runs, record.OF_FLOATS)


def _of_bf16(kernel: Sequence[int], groups: int) -> tuple[dict[str, float], int]:
    """(what the input holds, as `by_pointers` takes it; from pixel to pixel of it)."""
    kind = record.KINDS[element_of(forward_kind(kernel, groups), "bf16")]
    return record.OF_FLOATS | {"kind": kind}, pitch_of(kernel[1] * groups, groups)


def pixels_of(x: Tensor, geometry: CallGeometry, sets: tuple[Tensor | None, ...]) -> int:
    """Pixels, or compact rows, of one image of x."""
    batch, height, width = geometry.in_size
    return height * width if sets[2] is None else x.shape[0] // max(batch, 1)


def by_pointers(
    x, sets, kernel, geometry, activation, compact, as_runs: bool, elements: Mapping[str, float], pitch: int = 0
) -> Call:
    """A call of `_engine.convolve` at a static set. elements: the fields of JOB that say what x and the output hold;
    pitch: from pixel to pixel of x, if not its channels."""
    batch, height, width = geometry.in_size
    out_size, groups = geometry.out_size, geometry.groups
    out_channels, c_group, kh, kw = kernel
    channels, kind = pitch or c_group * groups, forward_kind(kernel, groups)
    table = Geometry((height, width), (kh, kw), *geometry.taps)
    plan = static_plan(table, *sets, out_size, pixels_of(x, geometry, sets), as_runs)
    rows, out_pixels = batch * plan.count, out_size[0] * out_size[1]
    out_shape = (rows, out_channels) if compact else (batch, out_channels, *out_size)
    taps = plan.axes
    job = record.JOB.pack(
        **plan.addresses(compact), offsets=0, dynamic=False, scatter=not compact, framed=False, rows=rows,
        table_rows=plan.count, in_pixels=plan.in_pixels, in_pitch=channels, in_width=width, out_width=out_size[1],
        taps=taps.taps, tap_columns=taps.tap_columns, run=kw * channels if as_runs else channels // groups,
        out_pixels=out_pixels, out_channels=out_channels, groups=groups, depthwise=kind == "depthwise",
        activation=record.ACTIVATIONS[activation], edge_run=kw * channels if as_runs else 0,
        edges_each=taps.edge_pixels * channels, edge_columns=taps.edge_columns, **elements,
    )  # fmt: skip
    return Call(plan, None, kind, out_shape, job)


def masked_conv2d(
    x, weight, bias, positions, counts, source_positions, residual, geometry, activation, precision="fp32"
):
    """Convolution at a dynamic position set; arguments and result as in `accel.kernels.reference.masked_conv2d`, of
    numbers that are first rounded where the precision is "bf16"."""
    require_float32(residual)
    rows, out_channels = int(counts.sum()), weight.shape[0]
    if residual is None:
        out = empty((positions.numel(), out_channels))
        out[rows:] = 0
    else:
        out = empty((geometry.in_size[0], out_channels, *geometry.out_size), memory_format=torch.channels_last)
        out.copy_(residual)  # so that it is added to what `out` holds
    adds = residual is not None
    how = (adds, adds, precision)
    _convolve_active(out, x, weight, bias, positions, rows, source_positions, geometry, activation, *how)
    return out


def masked_conv2d_(
    out, x, weight, bias, positions, counts, source_positions, geometry, activation, accumulate, precision="fp32"
):
    """The same in place; arguments as in `accel.kernels.reference.masked_conv2d`."""
    require_float32(out)
    rows = int(counts.sum())
    how = (True, accumulate, precision)
    _convolve_active(out, x, weight, bias, positions, rows, source_positions, geometry, activation, *how)


def _convolve_active(
    out, x, weight, bias, positions, rows, source_positions, geometry, activation, scatter, accumulate, precision
):
    """Write the first `rows` active positions: to rows of `out`, or with `scatter` to their places in a map."""
    require_float32(x, weight, bias)
    if rows == 0:
        return
    batch, height, width = geometry.in_size
    table = Geometry((height, width), tuple(weight.shape[2:]), *geometry.taps)
    how = (geometry.out_size, geometry.groups, activation, scatter, precision)
    kind, job, _ = _prepare_active(table, weight.shape, *how)
    inverse = None if source_positions is None else invert(source_positions, batch * height * width)
    x, positions = pixels_first(x), positions.contiguous()
    if precision == "bf16":
        x = rounded(x, pitch_of(x.shape[1], geometry.groups))
    bias = None if bias is None else bias.contiguous()
    packed = packed_weight(weight, geometry.groups, kind, precision=precision)
    _engine.convolve(
        job, x=x.data_ptr(), packed=packed.address, bias=address(bias), residual=out.data_ptr() if accumulate else 0,
        zero=packed.zero, out=out.data_ptr(), threads=torch.get_num_threads(), positions=positions.data_ptr(),
        source=address(inverse), rows=rows,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _prepare_active(geometry, kernel, out_size, groups, activation, scatter, precision) -> tuple[str, bytes, Axes]:
    """(kind, what calls of one kind have in common, the taps that it holds the addresses of)."""
    out_channels, c_group, *_ = kernel
    elements, pitch = (record.OF_FLOATS, c_group * groups) if precision == "fp32" else _of_bf16(kernel, groups)
    (height, width), taps, kind = geometry.in_size, axes(geometry, as_runs=False), forward_kind(kernel, groups)
    out_pixels = out_size[0] * out_size[1]
    job = record.JOB.pack(
        **taps.addresses, starts=0, targets=0, offsets=0, dynamic=True, scatter=scatter, framed=False,
        table_rows=out_pixels, in_pixels=height * width, in_pitch=pitch, in_width=width,
        out_width=out_size[1], taps=taps.taps, tap_columns=taps.tap_columns, run=pitch // groups, out_pixels=out_pixels,
        out_channels=out_channels, groups=groups, depthwise=kind == "depthwise",
        activation=record.ACTIVATIONS[activation], edge_run=0, edges_each=0, edge_columns=0, **elements,
    )  # fmt: skip
    return kind, job, taps


def forward_kind(weight_shape: Sequence[int], groups: int) -> str:
    """ "depthwise" for one input and one output channel a group: the engine then works on the channels as lanes."""
    return "depthwise" if groups > 1 and groups == weight_shape[0] and weight_shape[1] == 1 else "conv"


def is_narrow(out_channels: int, groups: int) -> bool:
    """Whether the outputs of a convolution fill no more than one vector: the narrow kernels are then the fastest."""
    return groups == 1 and out_channels <= _engine.lanes()


def _edges(x: Tensor, plan: Plan) -> Tensor:
    """The rows of the kernel that reach across the border of a channels_last map: Plan.edges."""
    pieces, pixels = plan.axes.pieces, plan.axes.edge_pixels
    batch, channels = x.shape[:2]
    out = torch.empty(batch * pixels * channels, dtype=torch.float32, device=CPU)
    given = {
        **{"pieces": pieces.data_ptr(), "piece_count": len(pieces), "images": batch, "channels": channels},
        **{"pixels": pixels, "stride_n": plan.in_pixels * channels, "stride_c": 1, "stride_pixel": channels},
    }
    _engine.frame(x=x.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads(), **given)
    recorded = tape()
    if recorded is not None:
        recorded.append("frame", x, None, out, None, given, others=(plan,))
    return out

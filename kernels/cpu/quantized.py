"""Numbers to bytes, and convolutions of bytes, on the engine."""

from __future__ import annotations

import torch

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import address, empty, filled_up, pixels_first, require_float32
from accel.kernels.cpu.forward import Call, by_pointers, forward_kind
from accel.kernels.cpu.packing import element_of, packed_weight
from accel.kernels.cpu.replay import tape
from accel.kernels.quantization import Levels
from accel.kernels.quantize import bytes_like, refuse_odd

_calls = IdentityCache()


def quantized_conv2d(
    x, weight, offset, positions, nearest, source_nearest, residual, geometry, activation, compact, multiplier, *levels
):
    """Convolution of bytes; arguments and result as in `accel.kernels.reference.quantized_conv2d`."""
    levels = Levels(*levels)
    numbers = levels.out_zero is not None and residual is not None and residual.dtype is torch.float32
    whole = filled_up(x) if geometry.groups == 1 else None
    x, pitch = (pixels_first(x), 0) if whole is None else (whole, whole.shape[1])
    sets, steps = (positions, nearest, source_nearest), (geometry, activation, compact, levels)
    key = (weight.shape, *steps, numbers, pitch)
    call = _calls.get(sets, key, lambda _: _prepare(x, sets, *key))
    residual = None if residual is None else pixels_first(residual)
    multiplier, offset = multiplier.contiguous(), None if offset is None else offset.contiguous()
    packed = packed_weight(weight, geometry.groups, call.kind, levels.x_zero)
    dtype = torch.float32 if levels.out_zero is None else torch.uint8
    out = empty(call.out_shape, torch.contiguous_format if compact else torch.channels_last, dtype)
    given = {"packed": packed.address, "bias": address(offset), "zero": packed.zero}
    given["multiplier"] = multiplier.data_ptr()
    finite = _engine.convolve(
        call.job, x=x.data_ptr(), residual=address(residual), out=out.data_ptr(), threads=torch.get_num_threads(),
        **given,
    )  # fmt: skip
    if not finite:
        refuse_odd()
    recorded = tape()
    if recorded is not None:
        kept = (packed, offset, multiplier, call)
        recorded.append("convolve", x, residual, out, call.job, given, packed.storage, kept)
    return out


def _prepare(x, sets, kernel, geometry, activation, compact, levels, numbers, pitch) -> Call:
    narrow = levels.out_zero is not None
    kind = element_of(forward_kind(kernel, geometry.groups), "int8")
    elements = {
        **{"kind": record.KINDS[kind], "narrow": narrow, "out_zero": levels.out_zero if narrow else 0},
        "residual_floats": numbers,
        **{name: getattr(levels, name) for name in ("low", "high", "residual_zero", "residual_multiplier")},
    }
    return by_pointers(x, sets, kernel, geometry, activation, compact, False, elements, pitch)


def quantize(x, inverse, zero_point):
    """Numbers to bytes; arguments and result as in `accel.kernels.reference.quantize`."""
    require_float32(x)
    if not x.is_contiguous() and not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    out = bytes_like(x)
    whole = filled_up(out)
    width, pitch = (1, 1) if whole is None else (x.shape[1], whole.shape[1])
    given = {"count": x.numel() // width, "width": width, "pitch": pitch, "zero_point": zero_point, "inverse": inverse}
    if not _engine.quantize(x=x.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads(), **given):
        refuse_odd()
    recorded = tape()
    if recorded is not None:
        recorded.append("quantize", x, None, out if whole is None else whole, None, given)
    return out

"""Correct bf16 arithmetic in the interpreter of triton 3.8.

There numpy holds bf16 as uint16 and computes on the bit patterns, and casts from fp32 truncate. Inside
`exact_bfloat16()` casts round to nearest even, and arithmetic, dot and sum go through fp32, as the hardware's do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as ti

_BF16, _F32 = tl.bfloat16, tl.float32


def widen(bits: np.ndarray) -> np.ndarray:
    """bf16 bit patterns (uint16) to float32 values."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 values to bf16 bit patterns, to nearest even; a NaN stays a NaN."""
    values = np.asarray(values, dtype=np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _is_bf16(handle: ti.TensorHandle) -> bool:
    return handle.dtype.scalar == _BF16


def _up(handle: ti.TensorHandle) -> ti.TensorHandle:
    return ti.TensorHandle(widen(handle.data), _F32) if _is_bf16(handle) else handle


def _patches() -> dict[tuple[object, str], object]:
    """(owner, name) -> replacement; each falls back to the original where no bf16 is involved."""
    builder = ti.InterpreterBuilder
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op
    dot, fma, reduce_sum, to_fp = builder.create_dot, builder.create_fma, ti.ReduceOps.sum, builder.create_fp_to_fp

    def new_cast(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target or _BF16 not in (source, target):
            return cast(self, src, dst_type)
        values = widen(src.data) if source == _BF16 else src.data
        out = narrow(values) if target == _BF16 else values.astype(ti._get_np_dtype(target))
        return ti.TensorHandle(out, target)

    def new_to_fp(self, src, dst_type, rounding):
        pair = (src.dtype.scalar, dst_type.scalar)
        if rounding == ti._ir.ROUNDING_MODE.RTZ or pair not in ((_F32, _BF16), (_BF16, _F32)):
            return to_fp(self, src, dst_type, rounding)
        return new_cast(self, src, dst_type)

    def new_binary(self, lhs, rhs, op):
        if not (_is_bf16(lhs) and _is_bf16(rhs)):
            return binary(self, lhs, rhs, op)
        out = op(widen(lhs.data), widen(rhs.data))
        return ti.TensorHandle(out if out.dtype == np.bool_ else narrow(out), _BF16)

    def new_unary(self, arg, op):
        return ti.TensorHandle(narrow(op(widen(arg.data))), _BF16) if _is_bf16(arg) else unary(self, arg, op)

    def new_fma(self, x, y, z):
        if not _is_bf16(z):
            return fma(self, x, y, z)
        return ti.TensorHandle(narrow(widen(x.data).astype(np.float64) * widen(y.data) + widen(z.data)), _BF16)

    def new_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return dot(self, _up(a), _up(b), d, input_precision, max_num_imprecise_acc)

    def new_sum(self, value):
        if value.dtype.scalar != _BF16:
            return reduce_sum(self, value)
        total = np.sum(widen(value.handle.data), axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(narrow(total)[()], value.dtype)

    return {
        (builder, "cast_impl"): new_cast,
        (builder, "create_fp_to_fp"): new_to_fp,
        (builder, "binary_op"): new_binary,
        (builder, "unary_op"): new_unary,
        (builder, "create_fma"): new_fma,
        (builder, "create_dot"): new_dot,
        (ti.ReduceOps, "sum"): new_sum,
    }


@contextlib.contextmanager
def exact_bfloat16() -> Iterator[None]:
    patches = _patches()
    saved = {key: getattr(*key) for key in patches}
    for (owner, name), replacement in patches.items():
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name), original in saved.items():
            setattr(owner, name, original)

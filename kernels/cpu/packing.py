"""Packed weights, kept while the parameter lives and packed again when it changes.

The key is the tensor itself, its address, version counter, shape and strides; inference tensors have no version, and
are packed at every call. Writes through `.data` raise none: `torch.autograd.graph.increment_version` tells of them.
"""

from __future__ import annotations

import dataclasses
import weakref

import torch
from torch import Tensor

from accel.kernels.caches import forgetting
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU
from accel.kernels.quantize import FOUR


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """Panels of one weight tensor, followed by a row of zeros, or of zero points, that padding taps read."""

    storage: Tensor
    address: int
    zero: int


_cache: dict[tuple[int, str, int, int, str], tuple[Packed, tuple, tuple, weakref.ref]] = {}


def packed_weight(weight: Tensor, groups: int, kind: str, zero_point: int = 0, precision: str = "fp32") -> Packed:
    """The panels of `weight` [K, C / groups, kh, kw], packed now or found in the cache.

    `kind`: "conv", "narrow" (panels of one vector), "depthwise" (groups = C = K: lanes are channels) or "input
    gradient" (input and output exchanged). `zero_point`: of the bytes that int8 weights multiply. `precision`: "bf16"
    rounds fp32 weights to it.
    """
    if weight.is_inference():
        return _pack(weight, groups, kind, zero_point, precision)
    address, version = weight.data_ptr(), weight._version
    slot = (id(weight), kind, groups, zero_point, precision)
    found = _cache.get(slot)
    layout = (weight.shape, weight.stride(), _engine.isa())
    if found is not None:
        packed, seen, seen_layout, _ = found
        if layout == seen_layout and seen == (address, version):
            return packed
    packed = _pack(weight, groups, kind, zero_point, precision)
    _cache[slot] = (packed, (address, version), layout, forgetting(weight, _cache, slot))
    return packed


def _pack(weight: Tensor, groups: int, kind: str, zero_point: int, precision: str) -> Packed:
    out_channels, inner, kh, kw = weight.shape
    padding = -(-inner * groups * weight.itemsize // FOUR) * FOUR  # pixels of few bytes are filled up
    element = element_of(kind, precision if weight.dtype is torch.float32 else "int8")
    groups = 1 if kind == "depthwise" else groups
    outer = out_channels // groups
    stride_g, stride_k, stride_c = outer * weight.stride(0), weight.stride(0), weight.stride(1)
    most_vectors = record.MAX_VECTORS
    if kind == "narrow":
        most_vectors = 1
    elif kind == "input gradient":
        outer, inner, stride_k, stride_c, most_vectors = inner, outer, stride_c, stride_k, record.GRAD_VECTORS
    code = record.KINDS[element]
    size = _engine.packed_size(groups=groups, k_group=outer, c_group=inner, taps=kh * kw, kind=code)
    with torch.inference_mode(False):
        storage = torch.empty(size + padding, dtype=torch.uint8, device=CPU)
        storage[size:] = zero_point
    job = record.PACKING.pack(
        w=weight.data_ptr(), packed=storage.data_ptr(), stride_g=stride_g, stride_k=stride_k, stride_c=stride_c,
        stride_h=weight.stride(2), stride_w=weight.stride(3), groups=groups, k_group=outer, c_group=inner, kh=kh, kw=kw,
        most_vectors=most_vectors, kind=code, zero_point=zero_point, threads=torch.get_num_threads(),
    )  # fmt: skip
    _engine.pack(job)
    return Packed(storage, storage.data_ptr(), storage.data_ptr() + size)


def element_of(kind: str, precision: str) -> str:
    """The key of `record.KINDS` for what convolutions of a kind multiply."""
    if precision == "fp32":
        return "floats"
    alone, together = ("bf16", "bf16_pairs") if precision == "bf16" else ("bytes", "fours")
    return alone if kind == "depthwise" else together

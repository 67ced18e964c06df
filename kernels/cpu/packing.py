"""Packed weights, kept while the parameter lives and packed again when it changes.

The key is the tensor itself, its address, version counter, shape and strides, and a fingerprint of some of its values:
`p.data.fill_()` changes the values without raising `p._version`, and inference tensors have no version at all.
"""

from __future__ import annotations

import dataclasses
import weakref

import torch
from torch import Tensor

from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import CPU


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """Panels of one weight tensor, followed by a row of zeros that padding taps read."""

    storage: Tensor
    address: int
    zero: int
    count: int  # elements of the weight


_cache: dict[tuple[int, str, int], tuple[Packed, tuple, tuple, weakref.ref]] = {}


def packed_weight(weight: Tensor, groups: int, kind: str) -> Packed:
    """The panels of `weight` [K, C / groups, kh, kw], packed now or found in the cache.

    `kind`: "conv", "narrow" (panels of one vector), "depthwise" (groups = C = K: lanes are channels) or "input
    gradient" (input and output exchanged).
    """
    address = weight.data_ptr()
    version = 0 if weight.is_inference() else weight._version
    slot = (id(weight), kind, groups)
    found = _cache.get(slot)
    layout = (weight.shape, weight.stride(), _engine.isa())
    if found is not None:
        packed, seen, seen_layout, _ = found
        if layout == seen_layout and seen == (address, version, _engine.fingerprint(address, packed.count)):
            return packed
    packed = _pack(weight, groups, kind)
    if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):  # no gaps to fingerprint
        seen = (address, version, _engine.fingerprint(address, packed.count))
        _cache[slot] = (packed, seen, layout, weakref.ref(weight, lambda _: _cache.pop(slot, None)))
    return packed


def _pack(weight: Tensor, groups: int, kind: str) -> Packed:
    out_channels, inner, kh, kw = weight.shape
    zeros = inner * groups
    groups = 1 if kind == "depthwise" else groups
    outer = out_channels // groups
    stride_g, stride_k, stride_c = outer * weight.stride(0), weight.stride(0), weight.stride(1)
    most_vectors = _engine.MAX_VECTORS
    if kind == "narrow":
        most_vectors = 1
    elif kind == "input gradient":
        outer, inner, stride_k, stride_c, most_vectors = inner, outer, stride_c, stride_k, _engine.GRAD_VECTORS
    size = _engine.packed_size(groups, outer, inner, kh * kw)
    with torch.inference_mode(False):
        storage = torch.empty(size + zeros, dtype=torch.float32, device=CPU)
        storage[size:] = 0
    _engine.pack(
        weight.data_ptr(), storage.data_ptr(), stride_g, stride_k, stride_c, weight.stride(2), weight.stride(3), groups,
        outer, inner, kh, kw, most_vectors, torch.get_num_threads(),
    )  # fmt: skip
    return Packed(storage, storage.data_ptr(), storage.data_ptr() + storage.element_size() * size, weight.numel())

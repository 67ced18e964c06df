"""Batch norm folded into the weights of the convolution before it, in a cache: the modules themselves stay as they are.

In evaluation a batch norm is y -> (y - mean) * scale + shift per channel, so that it can be carried by the weight and
bias of the convolution that feeds it. `FoldedWeights` keeps the folded copies until one of the tensors changes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

_PROBE = 32  # bytes read at either end of a tensor: writes through `.data` do not raise its version counter


class FoldedWeights:
    """Weight and bias of a convolution with a batch norm folded in, made anew when any of their tensors changed."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._folded: tuple[Tensor, Tensor] | None = None

    def get(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """(weight [K, C / groups, kh, kw], bias [K]) of `norm(conv(x))` in evaluation; they carry no gradient."""
        tensors = (
            conv.weight,
            conv.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
        )
        key = tuple(map(_fingerprint, tensors))
        if key != self._key:
            self._folded, self._key = fold(conv, norm), key
        return self._folded


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(weight, bias) such that conv2d with them is `norm(conv(x))` with the running statistics of `norm`."""
    dtype = conv.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)  # as the norm itself computes in lower precisions
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    return (conv.weight * scale[:, None, None, None]).to(dtype), bias.to(dtype)


def _fingerprint(tensor: Tensor | None) -> tuple | None:
    """Changes when the tensor is replaced or written to; on other devices than the CPU, not when through `.data`."""
    if tensor is None:
        return None
    version = -1 if tensor.is_inference() else tensor._version
    address = tensor.data_ptr()
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return address, version
    size = tensor.element_size()
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        size *= tensor.numel()
    probe = min(size, _PROBE)
    return address, version, ctypes.string_at(address, probe), ctypes.string_at(address + size - probe, probe)

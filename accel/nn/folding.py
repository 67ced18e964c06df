"""Batch norm folded into the weights of the convolution before it, in a cache: the modules themselves stay as they are.

In evaluation a batch norm is y -> (y - mean) * scale + shift per channel, so that it can be carried by the weight and
bias of the convolution that feeds it; so can the correction that a fit found. `FoldedWeights` keeps the folded copies
until one of the tensors changes.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn

from accel.nn.fitted import Fit

_PROBE = 32  # bytes read at either end of a tensor: writes through `.data` do not raise its version counter


class Folded(NamedTuple):
    """Weight [K, C / groups, kh, kw] and bias [K] of a convolution with all that follows folded in; without gradient.

    Where a fit fills in skipped positions, the `sums` [classes, T, K] and the constant [classes, K] for such rows.
    """

    weight: Tensor
    bias: Tensor
    sums: Tensor | None
    constant: Tensor | None


class FoldedWeights:
    """The folded weights of a convolution, made anew when the fit or any of the tensors changed that they come from."""

    def __init__(self) -> None:
        self._kept: tuple[tuple, Folded] | tuple[None, None] = (None, None)  # replaced as a whole: threads share it

    def get(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, fit: Fit | None = None) -> Folded:
        """What `norm(conv(x))` in evaluation computes with, its convolution corrected as `fit` says."""
        if is_computed(conv):
            return fold(conv, norm, fit)
        tensors = (conv.weight, conv.bias, *(() if norm is None else _state(norm)))
        key = (fit, None if norm is None else norm.eps, *map(_fingerprint, tensors))
        before, folded = self._kept
        if key != before:
            folded = fold(conv, norm, fit)
            self._kept = key, folded
        return folded


def is_computed(conv: nn.Conv2d) -> bool:
    """Whether weight or bias are no parameters of the layer but worked out from others (parametrized, pruned): they are
    new tensors again and again, in memory that others had before, so that nothing made from them can be kept."""
    return conv._parameters.get("weight") is None or "bias" not in conv._parameters


def _state(norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    count = getattr(norm, "num_batches_tracked", None)  # frozen batch norms have none
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, count


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, fit: Fit | None = None) -> Folded:
    """A convolution with these weights is `norm(scale * conv(x) + shift)`, with the running statistics of `norm`."""
    weight, bias, sums, constant = conv.weight, conv.bias, None, None
    dtype, device = weight.dtype, weight.device
    wide = torch.promote_types(dtype, torch.float32)  # as the norm itself computes in lower precisions
    neutral = weight.new_ones((), dtype=wide), weight.new_zeros((), dtype=wide)
    gain, offset = neutral if norm is None else _affine(norm, wide)
    bias = torch.zeros((), dtype=wide, device=device) if bias is None else bias.to(wide)
    weight = weight.to(wide)
    if fit is not None:
        scale, shift, sums, constant = (
            tensor.to(device, wide) for tensor in (fit.scale, fit.shift, fit.weights, fit.constant)
        )
        weight, bias = fit.corrected(weight), bias * scale + shift
        constant = (gain * constant + offset * (1 - sums.sum(1))).to(dtype)
        sums = sums.to(dtype)
    weight = weight * gain.expand(conv.out_channels)[:, None, None, None]
    return Folded(weight.to(dtype), (gain * bias + offset).to(dtype), sums, constant)


def _affine(norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(gain, offset): the norm in evaluation is y -> gain * y + offset per channel."""
    gain = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    offset = -norm.running_mean * gain
    return gain, offset if norm.bias is None else offset + norm.bias


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

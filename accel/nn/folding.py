"""Batch norm folded into the weights of the convolution before it, in a cache: the modules themselves stay as they are.

In evaluation a batch norm is y -> (y - mean) * scale + shift per channel, so that it can be carried by the weight and
bias of the convolution that feeds it; so can the correction that a fit found. `FoldedWeights` keeps the folded copies
until one of the tensors changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.fills import Fit

_KEPT = 3  # foldings of a convolution: with its norm and a fit, without the norm, with the fit of another size
_NOTHING = ((), (), None)
_COUNTING = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


class Folded(NamedTuple):
    """Weight [K, C / groups, kh, kw] and bias [K] of a convolution with all that follows folded in; without gradient.

    Where a fit fills in skipped positions, the `sums` [classes, T, K] and the constant [classes, K] for such rows.
    Where the norm was kept apart, the `gain` [K] by which the weight is still to be multiplied.
    """

    weight: Tensor
    bias: Tensor
    sums: Tensor | None
    constant: Tensor | None
    gain: Tensor | None = None

    def multiplied(self) -> Folded:
        """The same with the gain in the weight."""
        if self.gain is None:
            return self
        wide = self.weight.to(self.gain) * self.gain[:, None, None, None]
        return self._replace(weight=wide.to(self.weight.dtype), gain=None)


class FoldedWeights:
    """The folded weights of a convolution, made anew when the fit or any of the tensors changed that they come from.

    A `norm` is a batch norm, or another module with what one norms by under the same names.

    They are a copy even where nothing is folded in, so that writes that torch cannot see change nothing before
    `accel.refresh`.
    """

    def __init__(self) -> None:
        # by norm and fit, with all that the weights come from; replaced as a whole: threads share it
        self._kept: dict[tuple, tuple[tuple, tuple, Folded]] = {}

    def get(self, conv: nn.Conv2d, norm: nn.Module | None, fit: Fit | None = None, apart: bool = False) -> Folded:
        """What `normed(norm, conv(x))` computes with, its convolution corrected as `fit` says; see `fold`."""
        tensors = () if is_computed(conv) else (conv.weight, conv.bias, *(() if norm is None else _state(norm)))
        if not tensors or any(tensor is not None and tensor.is_inference() for tensor in tensors):
            return fold(conv, norm, fit, apart)  # nobody counts the writes to these
        seen = [tuple(statistic.tolist()) for statistic in unseen_statistics(norm)]
        key = (fit, apart, None if norm is None else norm.eps, *map(written, tensors), *seen)
        slot = (id(norm), id(fit))
        sources, before, folded = self._kept.get(slot, _NOTHING)
        if folded is None or key != before or any(a is not b for a, b in zip(tensors, sources)):
            with torch.inference_mode(False):  # else nobody would count the writes to what is kept
                folded = fold(conv, norm, fit, apart)
            others = [(other, kept) for other, kept in self._kept.items() if other != slot]
            self._kept = dict([*others[1 - _KEPT :], (slot, (tensors, key, folded))])
        return folded


def is_computed(conv: nn.Conv2d) -> bool:
    """Whether weight or bias are no parameters of the layer but worked out from others (parametrized, pruned): they are
    new tensors again and again, in memory that others had before, so that nothing made from them can be kept."""
    return conv._parameters.get("weight") is None or "bias" not in conv._parameters


def normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    """What a norm makes of `x` in evaluation; of a module that does more than that, this alone."""
    if norm is None:
        return x
    if type(norm) is nn.BatchNorm2d:
        return norm(x)  # hooks may watch it
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _state(norm: nn.Module) -> tuple[Tensor | None, ...]:
    count = getattr(norm, "num_batches_tracked", None)  # frozen batch norms have none
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, count


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.Module | None, fit: Fit | None = None, apart: bool = False) -> Folded:
    """A convolution with these weights is `normed(norm, scale * conv(x) + shift)`.

    `apart`: the norm's gain is not multiplied into the weight, which are then rounded the same with any norm behind.
    """
    weight, bias, sums, constant = conv.weight, conv.bias, None, None
    if norm is None and fit is None:
        return Folded(weight.clone(), None if bias is None else bias.clone(), None, None)
    dtype, device = weight.dtype, weight.device
    wide = torch.promote_types(dtype, torch.float32)  # as the norm itself computes in lower precisions
    neutral = weight.new_ones((), dtype=wide), weight.new_zeros((), dtype=wide)
    gain, offset = neutral if norm is None else affine(norm, wide)
    bias = torch.zeros((), dtype=wide, device=device) if bias is None else bias.to(wide)
    weight = weight.to(wide)
    if fit is not None:
        scale, shift, sums, constant = (
            tensor.to(device, wide) for tensor in (fit.scale, fit.shift, fit.weights, fit.constant)
        )
        weight, bias = fit.corrected(weight), bias * scale + shift
        constant = (gain * constant + offset * (1 - sums.sum(1))).to(dtype)
        sums = sums.to(dtype)
    bias = (gain * bias + offset).to(dtype)
    if apart and norm is not None:
        return Folded(weight.to(dtype), bias, sums, constant, gain)
    weight = weight * gain.expand(conv.out_channels)[:, None, None, None]
    return Folded(weight.to(dtype), bias, sums, constant)


def affine(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(gain [C], offset [C]), in `dtype`: the norm in evaluation is y -> gain * y + offset per channel."""
    gain = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    offset = -norm.running_mean * gain
    return gain, offset if norm.bias is None else offset + norm.bias


def unseen_statistics(norm: nn.Module | None) -> tuple[Tensor, ...]:
    """The running statistics of a norm that may be written unseen: a forward in training raises their versions never,
    and nothing but torch's own batch norms counts the batches beside them."""
    mean, var, counted = (getattr(norm, name, None) for name in ("running_mean", "running_var", "num_batches_tracked"))
    told = counted is not None and type(norm).forward in _COUNTING
    return () if told or not (isinstance(mean, Tensor) and isinstance(var, Tensor)) else (mean, var)


def written(tensor: Tensor | None) -> tuple | None:
    """Changes where torch writes to the tensor, or moves it to other memory as `Module.half` does."""
    return None if tensor is None else (tensor.data_ptr(), tensor._version)

"""Convolutions that stay dense inside a converted model, with what is fused into them.

A perforated convolution that keeps every position is a dense one. On a CPU it runs faster than torch's where a norm and
an activation are fused, and where the output is larger than the caches: it writes once what torch writes three times.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from accel.kernels.caches import kept_by_size
from accel.kernels.dispatch import active_backend
from accel.kernels.perforated_conv2d import perforated_conv2d
from accel.kernels.positions import PositionSet, every_position
from accel.kernels.reference.activation import activate
from accel.nn.folding import FoldedWeights, normed
from accel.nn.geometry import geometry_of


class _Own:
    """What belongs to one convolution: its folded weights, and the position sets of the newest sizes of its output."""

    def __init__(self) -> None:
        self.weights = FoldedWeights()
        self.sets: dict[tuple[int, int], PositionSet] = {}


_own: weakref.WeakKeyDictionary[nn.Conv2d, _Own] = weakref.WeakKeyDictionary()


def convolve(
    conv: nn.Conv2d,
    x: Tensor,
    norm: nn.Module | None = None,
    activation: str = "none",
    residual: Tensor | float | None = None,
) -> Tensor:
    """activation(norm(conv(x)) + residual) in evaluation, without gradients.

    Args:
        x: [N, C, H, W] or [C, H, W].
        norm: a batch norm; see `accel.nn.folding.FoldedWeights`.
        residual: what the model adds: a tensor of any shape that the sum allows, or a number.
        activation: see `accel.ops.perforated_conv2d`.

    Returns:
        [N, K, H_out, W_out] or [K, H_out, W_out].
    """
    around = getattr(conv.__dict__.get("forward"), "around", None)  # an observer: see accel.running.observer
    return (_convolve if around is None else around(_convolve))(conv, x, norm, activation, residual)


def _convolve(
    conv: nn.Conv2d, x: Tensor, norm: nn.Module | None, activation: str, residual: Tensor | float | None
) -> Tensor:
    forward = conv.__dict__.get("forward")
    replaced = forward is not None and not hasattr(forward, "around")
    called = replaced or conv._forward_hooks or conv._forward_pre_hooks  # these want the module to be called
    if called or x.dim() != 4 or active_backend(x) != "cpu" or x.dtype is not torch.float32:
        out = conv(x) if called else nn.Conv2d.forward(conv, x)  # the latter: it is observed already
        out = normed(norm, out)
        return activate(out if residual is None else out + residual, activation)
    own = _own.get(conv)
    if own is None:
        own = _own.setdefault(conv, _Own())
    weight, bias, *_ = own.weights.get(conv, norm)
    now = geometry_of(conv)
    size = now.output_size(*x.shape[2:])
    apart = residual is not None and not joins(residual, x, (len(x), conv.out_channels, *size))
    out = perforated_conv2d(
        x,
        weight,
        bias,
        kept_by_size(own.sets, size, lambda: every_position(*size)),
        stride=now.stride,
        padding=now.padding,
        dilation=now.dilation,
        groups=now.groups,
        padding_mode=now.padding_mode,
        activation="none" if apart else activation,
        residual=None if apart else residual,
    )
    return activate(out + residual, activation) if apart else out


def joins(residual: Tensor | float, x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the residual can be added to the output of a convolution of `x` in the same pass: no broadcasting."""
    if not isinstance(residual, Tensor):
        return False
    return residual.shape == shape and residual.dtype == x.dtype and residual.device == x.device

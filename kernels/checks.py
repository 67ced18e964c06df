"""Argument checks shared by the ops. Errors name the op, what was expected, what was got, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.reference.activation import ACTIVATIONS

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def check_conv(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> None:
    """What every convolution op of floats asks of its arguments, x being a map [N, C, H, W] or rows [R, C]."""
    check_kernel(op, x, weight, bias, stride, padding, dilation, groups)
    check_activation(op, activation)
    check_same(op, x, weight=weight, bias=bias, residual=residual)


def check_kernel(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The shapes and steps of a convolution."""
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must be [K, C / groups, kh, kw], got shape {tuple(weight.shape)}")
    if not weight.numel():
        raise ValueError(
            f"{op}: weight must have output channels, input channels and taps, at least one of each, "
            f"got shape {tuple(weight.shape)}"
        )
    channels, outputs = weight.shape[1] * groups, weight.shape[0]
    if groups < 1 or outputs % groups:
        raise ValueError(f"{op}: groups must divide the {outputs} output channels, got {groups}")
    if x.shape[1] != channels:
        raise ValueError(
            f"{op}: weight of shape {tuple(weight.shape)} with groups={groups} expects {channels} input channels, "
            f"got x of shape {tuple(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"{op}: bias must have shape ({outputs},), got {tuple(bias.shape)}")
    if len(stride) != 2 or len(dilation) != 2 or min(*stride, *dilation) < 1:
        raise ValueError(f"{op}: stride and dilation must be pairs of positive ints, got {stride} and {dilation}")
    if len(padding) != 4 or min(padding) < 0:
        raise ValueError(f"{op}: padding must be (top, bottom, left, right), none negative, got {padding}")


def check_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_same(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Same floating dtype and device as x."""
    if not x.is_floating_point():
        raise TypeError(f"{op}: x must be a floating tensor, got {x.dtype}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise TypeError(f"{op}: x is {x.dtype} but {name} is {tensor.dtype}: convert one of them")
        check_device(op, x, name, tensor)


def check_device(op: str, x: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{op}: x is on {x.device} but {name} is on {tensor.device}: move {name} with .to({x.device})")


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} must have shape {expected}, got {tuple(tensor.shape)}")


def check_in_size(op: str, x: Tensor, in_size: tuple[int, int, int]) -> None:
    """A graph that torch.jit.trace wrote gives every input the geometry of the first one."""
    if x.dim() == 4 and (x.shape[0], *x.shape[2:]) != in_size:
        expected, got = ("x".join(map(str, size)) for size in (in_size, (x.shape[0], *x.shape[2:])))
        raise ValueError(f"{op}: traced for an input of {expected} (images, height, width), got {got}: trace it anew")


def sizes(x: Tensor) -> tuple[int, ...]:
    """The shape of x in numbers: torch.jit.trace makes tensors of the sizes, which an int[] argument refuses."""
    return tuple(int(size) for size in x.shape) if torch.jit.is_tracing() else tuple(x.shape)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The floating tensors in the dtype that an enclosing torch.autocast asks for; untouched outside of one.

    On a CPU that is float32: the C engine computes in it, and the reference in bfloat16 would only be slower.
    """
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(x.device.type):
        return x, *others
    dtype = torch.float32 if x.device.type == "cpu" else torch.get_autocast_dtype(x.device.type)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *others))


def form(tensor: Tensor | None) -> tuple | None:
    """All of a tensor that the checks look at."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)

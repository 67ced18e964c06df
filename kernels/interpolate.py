"""interpolate: compact rows -> a dense map, every position holding the row of its stand-in.

| backward         | dtypes   | layouts                          | granularity | limits                            |
|------------------|----------|----------------------------------|-------------|-----------------------------------|
| yes, and twice   | floating | rows in, channels_last map out   | position    | H * W below 2**31                 |

Figurnov et al. 2016, arXiv 1504.08362 (the nearest computed position stands in for a perforated one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device, sizes
from accel.kernels.dispatch import implementation, is_direct
from accel.kernels.positions import PositionSet


def interpolate(rows: Tensor, positions: PositionSet) -> Tensor:
    """Fill every position of the map with the row of its stand-in (`positions.nearest`).

    Args:
        rows: [N * P, C], floating, the values at the P computed positions of each of N images, image-major.
        positions: the static set, on the device of `rows`.

    Returns:
        [N, C, H, W], channels_last, dtype of `rows`.

    Raises:
        ValueError: `rows` is not 2-D, its length is no multiple of P, or it lies on another device.
    """
    if rows.dim() != 2 or len(rows) % len(positions):
        raise ValueError(f"interpolate: rows must be [N * {len(positions)}, C], got shape {tuple(rows.shape)}")
    check_device("interpolate", rows, "positions", positions.nearest)
    arguments = (rows, positions.nearest, sizes(rows)[0] // len(positions), (positions.height, positions.width))
    if is_direct(rows):
        return implementation("interpolate", rows)(*arguments)
    return _INTERPOLATE(*arguments)


@torch.library.custom_op(
    "accel::interpolate", mutates_args=(), schema="(Tensor rows, Tensor nearest, SymInt batch, SymInt[] size) -> Tensor"
)
def _interpolate(rows, nearest, batch, size):
    return implementation("interpolate", rows)(rows, nearest, batch, size)


@torch.library.custom_op(
    "accel::interpolate_backward", mutates_args=(), schema="(Tensor grad, Tensor nearest, SymInt count) -> Tensor"
)
def _interpolate_backward(grad, nearest, count):
    return implementation("interpolate_backward", grad, "interpolate")(grad, nearest, count)


@_interpolate.register_fake
def _(rows, nearest, batch, size):
    shape = (batch, rows.shape[1], *size)
    return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last)


@_interpolate_backward.register_fake
def _(grad, nearest, count):
    return grad.new_empty(grad.shape[0] * count, grad.shape[1])


def _setup_interpolate(ctx, inputs, output):
    rows, nearest, batch, _ = inputs
    ctx.save_for_backward(nearest)
    ctx.count = rows.shape[0] // batch if batch else 0


def _interpolate_grad(ctx, grad):
    return _BACKWARD(grad, *ctx.saved_tensors, ctx.count), None, None, None


def _setup_backward(ctx, inputs, output):
    grad, nearest, _ = inputs
    ctx.save_for_backward(nearest)
    ctx.batch, _, *ctx.size = grad.shape


def _backward_grad(ctx, grad):
    return _INTERPOLATE(grad, *ctx.saved_tensors, ctx.batch, ctx.size), None, None


_interpolate.register_autograd(_interpolate_grad, setup_context=_setup_interpolate)
_interpolate_backward.register_autograd(_backward_grad, setup_context=_setup_backward)
_INTERPOLATE = torch.ops.accel.interpolate.default
_BACKWARD = torch.ops.accel.interpolate_backward.default

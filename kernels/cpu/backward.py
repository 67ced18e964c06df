"""Gradients of the convolutions on the engine, from the gradient of their rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import CPU, address, empty, invert, pixels_first, require_float32
from accel.kernels.cpu.packing import packed_weight
from accel.kernels.cpu.plans import Geometry, full_table, static_plan


def perforated_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    positions: Tensor,
    source_nearest: Tensor | None,
    in_size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX, dW, db) at a static set; as in `accel.kernels.reference.perforated_conv2d`."""
    batch, height, width = in_size
    in_pixels = height * width if source_nearest is None else x.shape[0] // max(batch, 1)
    geometry = Geometry(
        (height, width), tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), padding_mode
    )
    plan = static_plan(geometry, positions, None, source_nearest, tuple(out_size), in_pixels, False)
    first_rows = torch.arange(batch + 1, device=CPU) * plan.count
    return _gradients(grad, x, weight, groups, first_rows, plan.table, None, None, in_pixels, out_size)


def masked_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    positions: Tensor,
    counts: Tensor,
    source_positions: Tensor | None,
    in_size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX, dW, db) at a dynamic set; as in `accel.kernels.reference.masked_conv2d`."""
    batch, height, width = in_size
    geometry = Geometry(
        (height, width), tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), "zeros"
    )
    inverse = None if source_positions is None else invert(source_positions, batch * height * width)
    first_rows = torch.zeros(batch + 1, dtype=torch.int64, device=CPU)
    first_rows[1:] = counts.cumsum(0)
    table, positions = full_table(geometry), positions.contiguous()
    return _gradients(grad, x, weight, groups, first_rows, table, positions, inverse, height * width, out_size)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    groups: int,
    first_rows: Tensor,
    table: Tensor,
    positions: Tensor | None,
    inverse: Tensor | None,
    in_pixels: int,
    out_size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`first_rows` int64 [N + 1]: the first row of each image; `positions`: of a dynamic set, None for a static one."""
    require_float32(grad, x, weight)
    grad, x = grad.contiguous(), pixels_first(x)
    out_channels, c_group, kh, kw = weight.shape
    threads = torch.get_num_threads()
    packed = packed_weight(weight, groups, "input gradient")
    d_x = empty(x.shape, torch.contiguous_format if x.dim() == 2 else torch.channels_last).zero_()
    d_weight = empty(weight.shape)
    d_bias = torch.empty(out_channels, dtype=torch.float32, device=CPU)
    job = (
        x.data_ptr(), grad.data_ptr(), packed.address, d_x.data_ptr(), d_weight.data_ptr(), table.data_ptr(),
        address(positions), address(inverse), first_rows.data_ptr(), positions is not None, len(first_rows) - 1,
        table.shape[1], in_pixels, c_group * groups, kh * kw, out_size[0] * out_size[1], out_channels, groups, threads,
    )  # fmt: skip
    _engine.grad_input(*job)
    _engine.grad_weight(*job)
    _engine.column_sums(grad.data_ptr(), int(first_rows[-1]), out_channels, d_bias.data_ptr(), threads)
    return d_x, d_weight, d_bias

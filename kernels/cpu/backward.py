"""Gradients of the convolutions on the engine, from the gradient of their rows."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU, address, empty, invert, pixels_first, require_float32
from accel.kernels.cpu.packing import packed_weight
from accel.kernels.cpu.plans import Geometry, full_table, static_table
from accel.kernels.geometry import CallGeometry


def perforated_conv2d_backward(grad, x, weight, positions, source_nearest, geometry):
    """(dX, dW, db) at a static set; as in `accel.kernels.reference.perforated_conv2d`."""
    batch, height, width = geometry.in_size
    in_pixels = height * width if source_nearest is None else x.shape[0] // max(batch, 1)
    taps = Geometry((height, width), tuple(weight.shape[2:]), *geometry.taps)
    first_rows = torch.arange(batch + 1, device=CPU) * len(positions)
    table = static_table(taps, positions, source_nearest)
    return _gradients(grad, x, weight, geometry, first_rows, table, None, None, in_pixels)


def masked_conv2d_backward(grad, x, weight, positions, counts, source_positions, geometry):
    """(dX, dW, db) at a dynamic set; as in `accel.kernels.reference.masked_conv2d`."""
    batch, height, width = geometry.in_size
    inverse = None if source_positions is None else invert(source_positions, batch * height * width)
    first_rows = torch.zeros(batch + 1, dtype=torch.int64, device=CPU)
    first_rows[1:] = counts.cumsum(0)
    table = full_table(Geometry((height, width), tuple(weight.shape[2:]), *geometry.taps))
    return _gradients(grad, x, weight, geometry, first_rows, table, positions.contiguous(), inverse, height * width)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: CallGeometry,
    first_rows: Tensor,
    table: Tensor,
    positions: Tensor | None,
    inverse: Tensor | None,
    in_pixels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`first_rows` int64 [N + 1]: the first row of each image; `positions`: of a dynamic set, None for a static one."""
    require_float32(grad, x, weight)
    grad, x = grad.contiguous(), pixels_first(x)
    out_channels, c_group, kh, kw = weight.shape
    (out_h, out_w), groups, threads = geometry.out_size, geometry.groups, torch.get_num_threads()
    packed = packed_weight(weight, groups, "input gradient")
    d_x = empty(x.shape, torch.contiguous_format if x.dim() == 2 else torch.channels_last).zero_()
    d_weight = empty(weight.shape)
    d_bias = torch.empty(out_channels, dtype=torch.float32, device=CPU)
    job = record.GRAD_JOB.pack(
        x=x.data_ptr(), grad=grad.data_ptr(), packed=packed.address, dx=d_x.data_ptr(), dw=d_weight.data_ptr(),
        table=table.data_ptr(), positions=address(positions), inverse=address(inverse), row_image=first_rows.data_ptr(),
        dynamic=positions is not None, images=len(first_rows) - 1, table_rows=table.shape[1], in_pixels=in_pixels,
        in_pitch=c_group * groups, taps=kh * kw, out_pixels=out_h * out_w, out_channels=out_channels, groups=groups,
        threads=threads,
    )  # fmt: skip
    _engine.grad_input(job)
    _engine.grad_weight(job)
    _engine.column_sums(
        rows=grad.data_ptr(), sums=d_bias.data_ptr(), count=int(first_rows[-1]), columns=out_channels, threads=threads
    )
    return d_x, d_weight, d_bias

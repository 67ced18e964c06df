"""quantized_interpolate: compact rows -> a dense map in bytes, skipped positions by fitted weighted sums.

| backward | dtypes           | layouts                        | granularity | limits                           |
|----------|------------------|--------------------------------|-------------|----------------------------------|
| none     | float32 to uint8 | rows in, channels_last map out | position    | CPU tensors; H * W below 2**31   |

`accel.kernels.quantize` of what `accel.kernels.interpolate` gives, whose map is never written: behind an eight-bit
convolution its bytes would take longer to move than to compute. What is added to the map may be bytes as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_activation, check_device, check_shape, sizes
from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.interpolate import FITTED_LISTS, check_fitted
from accel.kernels.positions import Neighbors, PositionSet
from accel.kernels.quantization import Affine


def quantized_interpolate(
    rows: Tensor,
    positions: PositionSet,
    neighbors: Neighbors,
    weights: Tensor,
    constant: Tensor,
    inverse: float,
    zero_point: int,
    activation: str = "none",
    residual: Tensor | None = None,
    added: Affine | None = None,
) -> Tensor:
    """The nearest bytes of a map whose skipped positions are weighted sums of computed ones.

    Args:
        rows, positions, neighbors, weights, constant, activation: as of `accel.kernels.interpolate`; float32.
        inverse, zero_point: as of `accel.kernels.quantize`.
        residual: [N, C, H, W], added at every position before the activation; float32, or uint8, which stand for what
            `added` says: fp32 of their difference from its zero point, times fp32 of its scale.

    Returns:
        uint8 [N, C, H, W], channels_last.

    Raises:
        ValueError: what `accel.kernels.interpolate` and `accel.kernels.quantize` raise; bytes are added of which
            nothing is known. TypeError: another dtype.
    """
    op = "quantized_interpolate"
    if rows.dtype is not torch.float32:
        raise TypeError(f"{op}: rows must be float32, got {rows.dtype}: convert them")
    if rows.device.type not in ("cpu", "meta"):
        raise ValueError(f"{op}: runs on CPU tensors, got rows on {rows.device}: move them with .to('cpu')")
    check_device(op, rows, "positions", positions.nearest)
    check_activation(op, activation)
    check_fitted(op, rows, positions, neighbors, weights, constant)
    batch, size = sizes(rows)[0] // len(positions), (positions.height, positions.width)
    sets = (positions.positions, neighbors.skipped, neighbors.rows, neighbors.starts)
    if residual is not None:
        _check_residual(op, rows, residual, added, (batch, rows.shape[1], *size))
    levels = (0.0, 0) if added is None else (added.scale, added.zero_point)
    direct = is_direct(rows, weights, constant, residual) and not rows.is_meta
    run = implementation(op, rows) if direct else _QUANTIZED
    return run(rows, *sets, weights, constant, batch, size, activation, residual, inverse, zero_point, *levels)


def _check_residual(op: str, rows: Tensor, residual: Tensor, added: Affine | None, shape: tuple[int, ...]) -> None:
    check_shape(op, "residual", residual, shape)
    check_device(op, rows, "residual", residual)
    if residual.dtype not in (torch.float32, torch.uint8):
        raise TypeError(f"{op}: residual must be float32 or uint8, got {residual.dtype}: convert it")
    if (residual.dtype is torch.uint8) != (added is not None):
        raise ValueError(f"{op}: added= says what the bytes of a residual stand for, got {residual.dtype} and {added}")


def _fake(rows, _positions, _skipped, _neighbors, _starts, _weights, _constant, batch, size, *_):
    shape = (batch, rows.shape[1], *size)
    return torch.empty(shape, dtype=torch.uint8, device=rows.device, memory_format=torch.channels_last)


define(
    "quantized_interpolate",
    f"(Tensor rows, {FITTED_LISTS}, Tensor constant, SymInt batch, SymInt[] size, str activation, Tensor? residual, "
    "float inverse, int zero_point, float added_scale, int added_zero) -> Tensor",
    _fake,
)
_QUANTIZED = torch.ops.accel.quantized_interpolate.default

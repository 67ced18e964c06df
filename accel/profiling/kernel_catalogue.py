"""One small launch of every Triton kernel, as a layer with 128 channels makes it: what is compiled to be looked at.

Sizes of batch and map do not reach the compiler, so tiny ones do; channels do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.kernels.geometry import CallGeometry

BATCH, CHANNELS, SIDE = 2, 128, 8
NEIGHBORS = 12  # of a fitted position: `Perforate`'s default
GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), 1)  # stride, padding, dilation, groups of a 3x3 convolution


def launches(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Name of the op -> a call of its Triton launcher on CPU tensors, to be made on a pretend card."""
    from accel.kernels.triton import (
        active_positions,
        halting_step,
        interpolate,
        local_deviation,
        masked_conv2d,
        max_rows,
        perforated_conv2d,
        ponder_cost,
        select_positions,
    )

    count = SIDE * SIDE
    size = (SIDE, SIDE)
    geometry = CallGeometry((BATCH, SIDE, SIDE), size, *GEOMETRY)
    everywhere = torch.arange(count, dtype=torch.int32, device="cpu")
    active = torch.arange(BATCH * count, dtype=torch.int32, device="cpu")
    counts = torch.full((BATCH,), count, dtype=torch.int32, device="cpu")
    rows = torch.zeros(BATCH * count, CHANNELS, dtype=dtype, device="cpu")
    maps = image_maps(CHANNELS, SIDE, dtype)
    weight = torch.zeros(CHANNELS, CHANNELS, 3, 3, dtype=dtype, device="cpu")
    bias = weight.new_zeros(CHANNELS)
    state = torch.ones(BATCH, SIDE, SIDE, dtype=torch.float32, device="cpu")
    units = torch.zeros(BATCH, SIDE, SIDE, dtype=torch.int32, device="cpu")
    step = (state, maps, state, state, units, maps, 0.01, False)
    back = (state, maps, state, state, state, maps, state, 0.01, False)
    static, dynamic = (everywhere, everywhere, everywhere), (active, counts, active)
    half, classes = count // 2, torch.tensor([0, 1, count // 2], dtype=torch.int32, device="cpu")
    fitted = (everywhere[:half], everywhere[half:], everywhere.new_zeros(half, NEIGHBORS), classes)
    factors, constant = weight.new_zeros(2, NEIGHBORS, CHANNELS), weight.new_zeros(2, CHANNELS)
    return {
        "perforated_conv2d": lambda: perforated_conv2d.perforated_conv2d(
            rows, weight, bias, *static, maps, geometry, "relu", False
        ),
        "perforated_conv2d_backward": lambda: perforated_conv2d.perforated_conv2d_backward(
            rows, maps, weight, everywhere, None, geometry
        ),
        "masked_conv2d": lambda: masked_conv2d.masked_conv2d(rows, weight, bias, *dynamic, maps, geometry, "relu"),
        "masked_conv2d_backward": lambda: masked_conv2d.masked_conv2d_backward(rows, rows, weight, *dynamic, geometry),
        "interpolate": lambda: interpolate.interpolate(rows, everywhere, BATCH, size),
        "interpolate_backward": lambda: interpolate.interpolate_backward(maps, everywhere, count),
        "interpolate_fitted": lambda: interpolate.interpolate_fitted(
            rows[: BATCH * half], *fitted, factors, constant, BATCH, size, "relu"
        ),
        "interpolate_fitted_backward": lambda: interpolate.interpolate_fitted_backward(
            maps, rows[: BATCH * half], *fitted, factors
        ),
        "max_rows": lambda: max_rows.max_rows(rows, everywhere.new_zeros(9, half), BATCH),
        "local_deviation": lambda: local_deviation.local_deviation(maps, 16),
        "active_positions": lambda: active_positions.active_positions(units == 0, 1),
        "select_positions": lambda: select_positions.select_positions(state, 5),
        "halting_step": lambda: halting_step.halting_step(*step),
        "halting_step_": lambda: halting_step.halting_step_(*step),
        "halting_step_backward": lambda: halting_step.halting_step_backward(*back),
        "ponder_cost": lambda: ponder_cost.ponder_cost(state, units),
    }


def convolution(out_channels: int, in_channels: int, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """Launch the forward of one layer's shape, dense output, float16."""
    from accel.kernels.positions import PositionSet, output_size
    from accel.kernels.triton.perforated_conv2d import perforated_conv2d

    padding = (kernel[0] // 2,) * 2 + (kernel[1] // 2,) * 2
    out_size = output_size((SIDE, SIDE), kernel, stride, padding, (1, 1))
    everywhere = PositionSet.full(*out_size)
    weight = torch.zeros(out_channels, in_channels, *kernel, dtype=torch.float16, device="cpu")
    x, bias = image_maps(in_channels, SIDE, torch.float16), weight.new_zeros(out_channels)
    geometry = CallGeometry((BATCH, SIDE, SIDE), out_size, stride, padding, (1, 1), 1)
    perforated_conv2d(x, weight, bias, everywhere.positions, everywhere.nearest, None, None, geometry, "relu", False)


def image_maps(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    """Zeros [BATCH, channels, side, side], channels_last."""
    return torch.zeros(BATCH, channels, side, side, dtype=dtype, device="cpu").to(memory_format=torch.channels_last)

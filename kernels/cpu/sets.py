"""Interpolation, pooling of rows, dynamic position sets and halting on the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import CPU, address, empty, pixels_first, require_float32
from accel.kernels.cpu.plans import IdentityCache
from accel.kernels.positions import PositionSet
from accel.kernels.reference import halting_step as reference

_segments = IdentityCache()


def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Rows to a dense map; arguments and result as in `accel.kernels.reference.interpolate`."""
    require_float32(rows)
    rows, nearest = rows.contiguous(), nearest.contiguous()
    out = empty((batch, rows.shape[1], *size), memory_format=torch.channels_last)
    _engine.interpolate(
        rows.data_ptr(), out.data_ptr(), nearest.data_ptr(), 0, 0, batch, rows.shape[0] // max(batch, 1),
        nearest.numel(), rows.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    return out


def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The adjoint; arguments and result as in `accel.kernels.reference.interpolate_backward`."""
    require_float32(grad)
    grad = pixels_first(grad)
    batch, channels, height, width = grad.shape

    def build(_: tuple) -> tuple[Tensor, Tensor]:
        return PositionSet(torch.arange(count, dtype=torch.int32, device=CPU), nearest, height, width).segments

    starts, targets = _segments.get((nearest,), (count, height, width), build)
    out = empty((batch * count, channels))
    _engine.interpolate_backward(
        grad.data_ptr(), out.data_ptr(), 0, starts.data_ptr(), targets.data_ptr(), batch, count, height * width,
        channels, torch.get_num_threads(),
    )  # fmt: skip
    return out


def max_rows(rows: Tensor, taps: Tensor, batch: int) -> Tensor:
    """The largest of several rows; arguments and result as in `accel.kernels.reference.max_rows`."""
    require_float32(rows)
    rows, taps = rows.contiguous(), taps.contiguous()
    (tap_count, windows), channels = taps.shape, rows.shape[1]
    out = empty((batch * windows, channels))
    _engine.max_rows(
        rows.data_ptr(), out.data_ptr(), taps.data_ptr(), batch, rows.shape[0] // max(batch, 1), windows, tap_count,
        channels, torch.get_num_threads(),
    )  # fmt: skip
    return out


def active_positions(mask: Tensor, dilate: int) -> tuple[Tensor, Tensor]:
    """Mask to positions; arguments and result as in `accel.kernels.reference.active_positions`."""
    mask = mask.contiguous()
    batch, height, width = mask.shape
    positions = torch.empty(mask.numel(), dtype=torch.int32, device=CPU)
    counts = torch.empty(batch, dtype=torch.int32, device=CPU)
    _engine.active(
        mask.data_ptr(), positions.data_ptr(), counts.data_ptr(), batch, height, width, dilate, torch.get_num_threads()
    )
    return positions, counts


def select_positions(score: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The highest scores; arguments and result as in `accel.kernels.reference.select_positions`."""
    require_float32(score)
    score = score.contiguous()
    batch = score.shape[0]
    positions = torch.empty(batch * budget, dtype=torch.int32, device=CPU)
    _engine.select(
        score.data_ptr(), batch, score[0].numel() if batch else 0, budget, positions.data_ptr(), torch.get_num_threads()
    )
    return positions, torch.full((batch,), budget, dtype=torch.int32, device=CPU)


def local_deviation(x: Tensor, channels: int) -> Tensor:
    """The score of adaptive masks; arguments and result as in `accel.kernels.reference.local_deviation`."""
    require_float32(x)
    x = pixels_first(x)
    batch, pitch, height, width = x.shape
    score = torch.empty(batch, height, width, dtype=torch.float32, device=CPU)
    _engine.local_deviation(
        x.data_ptr(), batch, height, width, pitch, min(channels, pitch), score.data_ptr(), torch.get_num_threads()
    )
    return score


def halting_step(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    ponder: Tensor,
    units: Tensor,
    output: Tensor,
    eps: float,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step, functional; arguments and result as in `accel.kernels.reference.halting_step`."""
    state = (remainder, ponder, units, output)
    if not _takes(h, x, *state):
        return reference.halting_step(h, x, *state, eps, last)
    new = tuple(torch.empty_like(tensor) for tensor in state)
    weight = torch.empty_like(remainder)
    _step(h, x, state, new, weight, None, eps, last)
    return (*new, weight)


def halting_step_(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    ponder: Tensor,
    units: Tensor,
    output: Tensor,
    eps: float,
    last: bool,
) -> Tensor:
    """One step, in place; arguments and result as in `accel.kernels.reference.halting_step_`."""
    state = (remainder, ponder, units, output)
    if not _takes(h, x, *state):
        return reference.halting_step_(h, x, *state, eps, last)
    running = torch.empty_like(remainder, dtype=torch.bool)
    _step(h, x, state, state, None, running, eps, last)
    return running


def halting_step_backward(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    d_remainder: Tensor,
    d_ponder: Tensor,
    d_output: Tensor,
    d_weight: Tensor,
    eps: float,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one step; arguments and result as in `accel.kernels.reference.halting_step`."""
    if not _takes(h, x, remainder, remainder, remainder, x):
        return reference.halting_step_backward(
            h, x, remainder, d_remainder, d_ponder, d_output, d_weight, eps, last
        )  # fmt: skip
    require_float32(d_remainder, d_ponder, d_output, d_weight)
    d_states = [tensor.contiguous() for tensor in (d_remainder, d_ponder, d_weight)]
    d_output = pixels_first(d_output) if remainder.dim() == 3 else d_output.contiguous()
    d_h, d_x, d_old = torch.empty_like(remainder), torch.empty_like(x), torch.empty_like(remainder)
    positions = remainder.numel()
    _engine.halting_step_backward(
        address(h), x.data_ptr(), remainder.data_ptr(), d_states[0].data_ptr(), d_states[1].data_ptr(),
        d_output.data_ptr(), d_states[2].data_ptr(), d_h.data_ptr(), d_x.data_ptr(), d_old.data_ptr(), positions,
        x.numel() // max(positions, 1), last or h is None, torch.get_num_threads(), eps,
    )  # fmt: skip
    return d_h, d_x, d_old


def ponder_cost(ponder: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of each image; arguments and result as in `accel.kernels.reference.ponder_cost`."""
    require_float32(ponder)
    ponder, units = ponder.contiguous(), units.contiguous()
    batch = ponder.shape[0]
    rho = torch.empty(batch, dtype=torch.float32, device=CPU)
    executed = torch.empty(batch, dtype=torch.int64, device=CPU)
    _engine.ponder_cost(
        ponder.data_ptr(), units.data_ptr(), batch, ponder[0].numel() if batch else 0, rho.data_ptr(),
        executed.data_ptr(),
    )  # fmt: skip
    return rho, executed


def _takes(h: Tensor | None, x: Tensor, remainder: Tensor, ponder: Tensor, units: Tensor, output: Tensor) -> bool:
    """Whether the engine can step this state as it lies: fp32, maps and images with contiguous pixels."""
    maps = (x, output)
    states = (remainder, ponder, units) if h is None else (h, remainder, ponder, units)
    layout = torch.channels_last if remainder.dim() == 3 else torch.contiguous_format
    return (
        remainder.dtype is x.dtype is torch.float32
        and all(tensor.is_contiguous() for tensor in states)
        and all(tensor.is_contiguous(memory_format=layout) for tensor in maps)
    )


def _step(h, x, old, new, weight, running, eps, last) -> None:
    remainder, ponder, units, output = old
    positions = remainder.numel()
    _engine.halting_step(
        address(h), x.data_ptr(), remainder.data_ptr(), ponder.data_ptr(), output.data_ptr(), units.data_ptr(),
        *(new[i].data_ptr() for i in (0, 1, 3)), address(weight), new[2].data_ptr(), address(running), positions,
        x.numel() // max(positions, 1), last or h is None, torch.get_num_threads(), eps,
    )  # fmt: skip

"""Fitted interpolation and its adjoint on the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import CPU, address, empty, pixels_first, require_float32
from accel.kernels.cpu.footprints import images_together, of_interpolation
from accel.kernels.cpu.forward import ACTIVATIONS
from accel.kernels.cpu.replay import tape

# Neighbours reach four positions far, so that at 16x16 hardly any two rows of an image have one footprint: there 64
# pictures of 32 channels at a quarter took 0.5 ms one by one.
MOST_TOGETHER = 4096  # positions
_footprints = IdentityCache()
_lists = IdentityCache()
_readers = IdentityCache()


def interpolate_fitted(
    rows, positions, skipped, neighbors, starts, weights, constant, batch, size, activation, residual=None
):
    """Rows to a dense map; arguments and result as in `accel.kernels.reference.interpolate`."""
    require_float32(rows, weights, constant, residual)
    out = empty((batch, rows.shape[1], *size), memory_format=torch.channels_last)
    if not out.numel():
        return out
    residual = None if residual is None else pixels_first(residual)
    rows, weights, constant = rows.contiguous(), weights.contiguous(), constant.contiguous()
    pixels = size[0] * size[1]
    lists = (positions, skipped, neighbors, starts)
    images = images_together(batch, pixels, MOST_TOGETHER)
    footprints = _footprints.get(
        lists, (pixels, images), lambda _: of_interpolation(*_checked_lists(*lists, pixels), size[1], images)
    )
    channels = rows.shape[1]
    fields = (
        rows.data_ptr(), weights.data_ptr(), constant.data_ptr(), address(residual), out.data_ptr(),
        *footprints.addresses, batch // images, footprints.bands, len(positions) * images, pixels * images, channels,
        channels, weights.shape[1], ACTIVATIONS[activation], True, True, False, torch.get_num_threads(),
    )  # fmt: skip
    _engine.convolve_footprints(*fields)
    recorded = tape()
    if recorded is not None:
        recorded.append(True, rows, residual, out, fields, weights, (constant, footprints))
    return out


def interpolate_fitted_backward(grad, rows, positions, skipped, neighbors, starts, weights):
    """Gradients to (rows, weights, constant); arguments as in `accel.kernels.reference.interpolate`."""
    require_float32(grad, rows, weights)
    if not rows.numel():
        return torch.empty_like(rows), torch.zeros_like(weights), weights.new_zeros(len(weights), weights.shape[2])
    grad, rows, weights = pixels_first(grad), rows.contiguous(), weights.contiguous()
    lists = _checked_lists(positions, skipped, neighbors, starts, grad.shape[2] * grad.shape[3])
    readers = _readers.get(
        (skipped, neighbors, starts), len(positions), lambda sets: _list_readers(*sets, len(positions))
    )
    classes, taps, channels = weights.shape
    rows_grad = torch.empty_like(rows)
    weights_grad, constant_grad = torch.zeros_like(weights), weights.new_zeros(classes, channels)
    _engine.interpolate_fitted_backward(
        grad.data_ptr(), rows.data_ptr(), weights.data_ptr(), rows_grad.data_ptr(), weights_grad.data_ptr(),
        constant_grad.data_ptr(), *(tensor.data_ptr() for tensor in (*lists, *readers)), len(grad), len(positions),
        taps, classes, grad.shape[2] * grad.shape[3], channels, torch.get_num_threads(),
    )  # fmt: skip
    return rows_grad, weights_grad, constant_grad


def _checked_lists(
    positions: Tensor, skipped: Tensor, neighbors: Tensor, starts: Tensor, pixels: int
) -> tuple[Tensor, ...]:
    """The four lists, contiguous; looked at once, since the engine follows their numbers without looking."""

    def build(lists: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for name, tensor, end in zip(
            ("positions", "skipped", "neighbors", "starts"), lists, (pixels, pixels, len(positions), len(skipped) + 1)
        ):
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < end:
                raise ValueError(f"interpolate: {name} must hold 0 to {end - 1}, got {tensor.min()} to {tensor.max()}")
        return tuple(tensor.contiguous() for tensor in lists)

    return _lists.get((positions, skipped, neighbors, starts), pixels, build)


def _list_readers(skipped: Tensor, neighbors: Tensor, starts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who reads each row, as CSR lists: int32 (starts [count + 1], pixels, rows of weights [classes * taps, C])."""
    taps = neighbors.shape[1]
    kind = torch.repeat_interleave(torch.arange(len(starts) - 1, device=CPU), starts.diff().long())
    row = neighbors.flatten().long()
    order = torch.argsort(row, stable=True)
    first = torch.zeros(count + 1, dtype=torch.int32, device=CPU)
    first[1:] = torch.bincount(row, minlength=count).cumsum(0)
    pixel = skipped.repeat_interleave(taps)[order]
    weight = (kind[:, None] * taps + torch.arange(taps, device=CPU)).flatten()[order]
    return first, pixel.to(torch.int32), weight.to(torch.int32)

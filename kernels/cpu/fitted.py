"""Fitted interpolation and its adjoint on the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU, address, empty, pixels_first, require_float32
from accel.kernels.cpu.footprints import Footprints, images_together, of_interpolation
from accel.kernels.cpu.replay import tape
from accel.kernels.quantize import refuse_odd

# Neighbours reach four positions far, so that at 16x16 hardly any two rows of an image have one footprint: there 64
# pictures of 32 channels at a quarter took 0.5 ms one by one.
MOST_TOGETHER = 4096  # positions
_calls = IdentityCache()
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
    lists = (positions, skipped, neighbors, starts)
    footprints, job = _prepared(lists, batch, *size, weights.shape, activation, False)
    _engine.convolve_footprints(
        job, x=rows.data_ptr(), weights=weights.data_ptr(), bias=constant.data_ptr(), residual=address(residual),
        out=out.data_ptr(), threads=torch.get_num_threads(),
    )  # fmt: skip
    recorded = tape()
    if recorded is not None:
        given = {"weights": weights.data_ptr(), "bias": constant.data_ptr()}
        recorded.append("footprints", rows, residual, out, job, given, weights, (constant, footprints))
    return out


def quantized_interpolate(
    rows, positions, skipped, neighbors, starts, weights, constant, batch, size, activation, residual, inverse,
    zero_point, added_scale, added_zero,
):  # fmt: skip
    """Rows to a dense map in bytes; arguments and result as in `accel.kernels.reference.quantized_interpolate`."""
    require_float32(rows, weights, constant)
    out = empty((batch, rows.shape[1], *size), torch.channels_last, torch.uint8)
    if not out.numel():
        return out
    residual = None if residual is None else pixels_first(residual)
    narrow = residual is not None and residual.dtype is torch.uint8
    rows, weights, constant = rows.contiguous(), weights.contiguous(), constant.contiguous()
    lists = (positions, skipped, neighbors, starts)
    footprints, job = _prepared(lists, batch, *size, weights.shape, activation, True)
    given = {"weights": weights.data_ptr(), "bias": constant.data_ptr(), "inverse": inverse, "zero_point": zero_point}
    given |= {"added_scale": added_scale if narrow else 0.0, "added_zero": added_zero if narrow else 0}
    finite = _engine.convolve_footprints(
        job, x=rows.data_ptr(), residual=0 if narrow else address(residual), added=address(residual) if narrow else 0,
        bytes=out.data_ptr(), threads=torch.get_num_threads(), **given,
    )  # fmt: skip
    if not finite:
        refuse_odd()
    recorded = tape()
    if recorded is not None:
        recorded.append("footprints", rows, residual, out, job, given, weights, (constant, footprints))
    return out


def _prepared(lists, *kind) -> tuple[Footprints, bytes]:
    """The footprints of the lists, and what the calls of one kind have in common."""
    return _calls.get(lists, kind, lambda _: _prepare(lists, *kind))


def _prepare(lists, batch, height, width, kernel, activation, in_bytes) -> tuple[Footprints, bytes]:
    pixels, (_, taps, channels) = height * width, kernel
    images = images_together(batch, pixels, MOST_TOGETHER)
    footprints = _footprints.get(
        lists, (pixels, images), lambda _: of_interpolation(*_checked_lists(*lists, pixels), width, images)
    )
    job = record.FOOTPRINT_JOB.pack(
        **footprints.addresses, images=batch // images, band_count=footprints.bands, in_pixels=len(lists[0]) * images,
        out_pixels=pixels * images, in_channels=channels, channels=channels, taps=taps,
        activation=record.ACTIVATIONS[activation], filled=True, plain=True, narrow=False,
        **({"out": 0} if in_bytes else record.FOOTPRINTS_OF_FLOATS),
    )  # fmt: skip
    return footprints, job


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
    names = ("positions", "skipped", "neighbors", "starts", "reader_starts", "reader_pixel", "reader_weight")
    job = record.FITTED_GRAD_JOB.pack(
        grad=grad.data_ptr(), rows=rows.data_ptr(), weights=weights.data_ptr(), rows_grad=rows_grad.data_ptr(),
        weights_grad=weights_grad.data_ptr(), constant_grad=constant_grad.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in zip(names, (*lists, *readers))}, images=len(grad),
        count=len(positions), taps=taps, classes=classes, pixels=grad.shape[2] * grad.shape[3], channels=channels,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    _engine.interpolate_fitted_backward(job)
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

"""Triton kernels of `accel::interpolate`, `accel::interpolate_fitted` and their adjoints.

The contracts are the reference's, argument by argument. Nearest copies rows: out[n, q] = rows[n, nearest[q]]; its
adjoint adds, for every computed position, the gradients of the positions it stands in for. Fitted works on tiles of
skipped positions of one class, so that a weight is loaded once per tile; computed positions are copied by programs of
the same launch. Its adjoint gathers the rows' gradients along the list of their readers, and sums those of the weights
over every tile, then over the tiles of a class. Lists are precomputed, sums run in a fixed order and in float32: no
atomics, the same result at every run.

`perforated_conv2d` fills nearest from its registers; where a map is fitted it writes compact rows and the fitted pass
follows, because a neighbour's row may be another program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from accel.kernels.triton.gather_conv import WEIGHT_PROGRAMS
from accel.kernels.triton.gather_gemm import _store
from accel.kernels.triton.launch import cdiv, channels_last, check_dtype, copy_block, new_channels_last, on_its_device

# Kept for as long as the tensor they are made from: a position set never changes.
_SEGMENTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_TILES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_READERS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

TILE = 32  # skipped positions of a tile: classes at borders are small, and a tile holds one class
TILE_CHANNELS = 128  # 4096 elements: 16 bytes of a half-precision row per thread with 4 warps


class Tiles(NamedTuple):
    """The skipped positions of K classes in tiles; there are as many as the sizes of the lists allow, some idle.

    Attributes:
        first: int32 [M, 2], class and first skipped position of each; idle: class 0 and one past the last position.
        starts: int32 [K + 1], the tiles of class k are starts[k] : starts[k + 1].
        order: int32 [M], 0 to M - 1.
    """

    first: Tensor
    starts: Tensor
    order: Tensor


class Readers(NamedTuple):
    """Who reads each computed row: row p is read by entries starts[p] : starts[p + 1], each a skipped position and t.

    Attributes:
        starts: int32 [P + 1].
        pixels: int32 [F * T], the skipped position of each entry.
        weights: int32 [F * T], class * T + t of each entry: the row of `weights` it multiplies with.
    """

    starts: Tensor
    pixels: Tensor
    weights: Tensor


def segments(nearest: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """CSR list of the adjoint of `nearest`: (int32 [count + 1] starts, int32 [H * W] positions in row order)."""
    if nearest not in _SEGMENTS:
        _SEGMENTS[nearest] = _grouped(nearest, count)
    return _SEGMENTS[nearest]


def _grouped(groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """int32 [count + 1] and [n]: where each group starts in the order of groups, and that (stable) order."""
    order = torch.argsort(groups, stable=True)
    numbers = torch.arange(count + 1, dtype=groups.dtype, device=groups.device)
    return torch.searchsorted(groups[order], numbers, out_int32=True), order.to(torch.int32)


def tiles(starts: Tensor, count: int) -> Tiles:
    """The tiles of `count` skipped positions in classes that begin at `starts`; asks the device for no number."""
    if starts not in _TILES:
        classes = len(starts) - 1
        ends = ((starts.diff() + TILE - 1) // TILE).cumsum(0)
        bounds = F.pad(ends, (1, 0)).to(torch.int32)
        number = torch.arange(count // TILE + classes, dtype=torch.int32, device=starts.device)
        owner = torch.searchsorted(bounds[1:], number, right=True, out_int32=True)
        owned = owner < classes
        owner = torch.where(owned, owner, 0)
        first = torch.where(owned, starts[owner] + (number - bounds[owner]) * TILE, count)
        _TILES[starts] = Tiles(torch.stack([owner, first], 1), bounds, number)
    return _TILES[starts]


def readers(skipped: Tensor, neighbors: Tensor, starts: Tensor, count: int) -> Readers:
    """The readers of `count` computed rows; the three lists are those of one `Neighbors`."""
    if neighbors not in _READERS:
        bounds, order = _grouped(neighbors.flatten(), count)
        skip, tap = order // neighbors.shape[1], order % neighbors.shape[1]
        owner = torch.searchsorted(starts, skip, right=True, out_int32=True) - 1
        _READERS[neighbors] = Readers(bounds, skipped[skip], owner * neighbors.shape[1] + tap)
    return _READERS[neighbors]


@triton.jit(do_not_specialize=["positions", "per_image"])
def interpolate_rows(
    rows, nearest, out, positions, per_image, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of positions, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = position < positions
    row = tl.load(nearest + position, mask=inside, other=0)
    mask = inside[:, None] & (channel < C)[None, :]
    value = tl.load(rows + (image * per_image + row)[:, None] * C + channel[None, :], mask=mask, other=0.0)
    tl.store(out + (image * positions + position)[:, None] * C + channel[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["positions", "per_image"])
def sum_segments(
    grad, starts, order, out, positions, per_image, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of rows, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = row < per_image
    start = tl.load(starts + row, mask=inside, other=0)
    length = tl.load(starts + row + 1, mask=inside, other=0) - start
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for j in range(0, tl.max(length, 0)):
        more = j < length
        position = tl.load(order + start + j, mask=more, other=0)
        where = (image * positions + position)[:, None] * C + channel[None, :]
        total += tl.load(grad + where, mask=more[:, None] & (channel < C)[None, :], other=0.0).to(tl.float32)
    where = (image * per_image + row)[:, None] * C + channel[None, :]
    tl.store(out + where, total.to(out.dtype.element_ty), mask=inside[:, None] & (channel < C)[None, :])


@triton.jit
def _of_tile(tile, tiles, starts, BLOCK_P: tl.constexpr):
    """-> (class of a tile, its skipped positions, which of them there are)."""
    owner = tl.load(tiles + 2 * tile)
    skip = tl.load(tiles + 2 * tile + 1) + tl.arange(0, BLOCK_P)
    return owner.to(tl.int64), skip, skip < tl.load(starts + owner + 1)


@triton.jit(do_not_specialize=["pixels", "per_image", "copies"])
def interpolate_fitted_rows(
    rows,
    positions,
    skipped,
    neighbors,
    starts,
    tiles,
    weights,
    constant,
    residual,  # shaped like out, or None
    out,
    pixels,
    per_image,
    copies,  # programs of axis 0 that copy computed positions; the others have a tile each
    C: tl.constexpr,
    T: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid: (blocks of computed positions + tiles, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = channel < C
    columns = rows + image * per_image * C + channel[None, :]
    tile = tl.program_id(0) - copies
    if tile < 0:
        row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = row < per_image
        position = tl.load(positions + row, mask=inside, other=0)
        mask = inside[:, None] & c_in[None, :]
        value = tl.load(columns + row.to(tl.int64)[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    else:
        owner, skip, inside = _of_tile(tile, tiles, starts, BLOCK_P)
        position = tl.load(skipped + skip, mask=inside, other=0)
        mask = inside[:, None] & c_in[None, :]
        # a tile has one row of weights: read in the layout of its values, it comes 16 bytes at a time, past no barrier
        across = tl.broadcast_to(channel[None, :], (BLOCK_P, BLOCK_C))
        value = tl.load(constant + owner * C + across, mask=mask, other=0.0).to(tl.float32)
        for t in range(T):
            row = tl.load(neighbors + skip.to(tl.int64) * T + t, mask=inside, other=0)
            weight = tl.load(weights + (owner * T + t) * C + across, mask=mask, other=0.0).to(tl.float32)
            term = tl.load(columns + row.to(tl.int64)[:, None] * C, mask=mask, other=0.0).to(tl.float32)
            value += weight * term
    _store(value, residual, out, (image * pixels + position)[:, None] * C + channel[None, :], mask, ACTIVATION)


@triton.jit(do_not_specialize=["pixels", "per_image"])
def sum_readers(
    grad,
    positions,
    weights,
    reader_starts,
    reader_pixels,
    reader_weights,
    out,
    pixels,
    per_image,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The rows' gradients. Grid: (blocks of rows, images, blocks of channels)."""
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = row < per_image
    c_in = (channel < C)[None, :]
    columns = grad + image * pixels * C + channel[None, :]
    own = tl.load(positions + row, mask=inside, other=0).to(tl.int64)
    total = tl.load(columns + own[:, None] * C, mask=inside[:, None] & c_in, other=0.0).to(tl.float32)
    start = tl.load(reader_starts + row, mask=inside, other=0)
    length = tl.load(reader_starts + row + 1, mask=inside, other=0) - start
    for j in range(0, tl.max(length, 0)):
        more = j < length
        pixel = tl.load(reader_pixels + start + j, mask=more, other=0).to(tl.int64)
        share = tl.load(reader_weights + start + j, mask=more, other=0).to(tl.int64)
        mask = more[:, None] & c_in
        weight = tl.load(weights + share[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        total += weight * tl.load(columns + pixel[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    where = (image * per_image + row)[:, None] * C + channel[None, :]
    tl.store(out + where, total.to(out.dtype.element_ty), mask=inside[:, None] & c_in)


@triton.jit(do_not_specialize=["pixels", "per_image", "batch"])
def sum_tiles(
    grad,
    rows,
    skipped,
    neighbors,
    starts,
    tiles,
    partial,  # float32 [shares, M, T + 1, C]: of each tile, the gradients of T weights and of the constant
    pixels,
    per_image,
    batch,
    C: tl.constexpr,
    T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid: (tiles * (T + 1), shares of the images, blocks of channels)."""
    t = tl.program_id(0) % (T + 1)
    _, skip, inside = _of_tile(tl.program_id(0) // (T + 1), tiles, starts, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = channel < C
    mask = inside[:, None] & c_in[None, :]
    is_weight = tl.zeros((BLOCK_P,), dtype=tl.int32) + t < T  # a block: a scalar does not combine with masks everywhere
    pixel = tl.load(skipped + skip, mask=inside, other=0)
    row = tl.load(neighbors + skip.to(tl.int64) * T + t, mask=inside & is_weight, other=0)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for number in range(tl.program_id(1), batch, tl.num_programs(1)):
        image = tl.zeros((), dtype=tl.int64) + number
        upstream = tl.load(grad + (image * pixels + pixel)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        # the constant's factor is 1
        factor = tl.load(
            rows + (image * per_image + row)[:, None] * C + channel[None, :], mask=mask & is_weight[:, None], other=1.0
        ).to(tl.float32)
        total += upstream * factor
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + place * C + channel, tl.sum(total, 0), mask=c_in)


@on_its_device
def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate", rows)
    height, width = size
    channels = rows.shape[1]
    out = new_channels_last(rows, batch, channels, height, width)
    if out.numel():
        blocks = copy_block(channels)
        grid = (cdiv(height * width, blocks[0]), batch, cdiv(channels, blocks[1]))
        interpolate_rows[grid](
            rows.contiguous(), nearest, out, height * width, rows.shape[0] // batch, C=channels,
            BLOCK_P=blocks[0], BLOCK_C=blocks[1],
        )  # fmt: skip
    return out


@on_its_device
def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate_backward", grad)
    batch, channels, height, width = grad.shape
    out = grad.new_empty(batch * count, channels)
    if out.numel():
        _sum_segments(channels_last(grad), *segments(nearest, count), out, batch, height * width)
    return out


def _sum_segments(values: Tensor, starts: Tensor, order: Tensor, out: Tensor, batch: int, per_image: int) -> None:
    """Launch `sum_segments`: `values` holds `per_image` rows an image, `out` one row a segment and image."""
    count, channels = out.shape[0] // batch, out.shape[1]
    blocks = copy_block(channels)
    grid = (cdiv(count, blocks[0]), batch, cdiv(channels, blocks[1]))
    sum_segments[grid](values, starts, order, out, per_image, count, C=channels, BLOCK_P=blocks[0], BLOCK_C=blocks[1])


@on_its_device
def interpolate_fitted(
    rows, positions, skipped, neighbors, starts, weights, constant, batch, size, activation, residual=None
):
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate_fitted", rows, weights, constant, residual)
    residual = None if residual is None else channels_last(residual)
    channels, per_image, count = rows.shape[1], len(positions), len(skipped)
    out = new_channels_last(rows, batch, channels, *size)
    if out.numel():
        lists, copies = tiles(starts, count), cdiv(per_image, TILE)
        grid = (copies + len(lists.first), batch, cdiv(channels, TILE_CHANNELS))
        interpolate_fitted_rows[grid](
            rows.contiguous(), positions, skipped, neighbors, starts, lists.first, weights.contiguous(),
            constant.contiguous(), residual, out, per_image + count, per_image, copies, C=channels,
            T=neighbors.shape[1], ACTIVATION=activation, **_fitted_blocks(channels),
        )  # fmt: skip
    return out


@on_its_device
def interpolate_fitted_backward(grad, rows, positions, skipped, neighbors, starts, weights):
    """See `accel.kernels.reference.interpolate`."""
    check_dtype("interpolate_fitted_backward", grad, rows, weights)
    batch, channels = grad.shape[:2]
    per_image, count = len(positions), len(skipped)
    d_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if not rows.numel():
        return d_rows, torch.zeros_like(weights), weights.new_zeros(len(weights), channels)
    grad, weights, blocks = channels_last(grad), weights.contiguous(), _fitted_blocks(channels)
    grid = (cdiv(per_image, TILE), batch, cdiv(channels, TILE_CHANNELS))
    sum_readers[grid](
        grad, positions, weights, *readers(skipped, neighbors, starts, per_image), d_rows, per_image + count,
        per_image, C=channels, **blocks,
    )  # fmt: skip

    lists, classes, terms = tiles(starts, count), len(starts) - 1, neighbors.shape[1] + 1
    sums = weights.new_empty(classes, terms * channels)
    if sums.numel():
        programs = len(lists.first) * terms * grid[2]
        shares = max(1, min(batch, cdiv(WEIGHT_PROGRAMS, programs)))
        partial = torch.empty(shares, len(lists.first), terms * channels, dtype=torch.float32, device=grad.device)
        sum_tiles[len(lists.first) * terms, shares, grid[2]](
            grad, rows.contiguous(), skipped, neighbors, starts, lists.first, partial, per_image + count, per_image,
            batch, C=channels, T=terms - 1, **blocks,
        )  # fmt: skip
        _sum_segments(partial.sum(0), lists.starts, lists.order, sums, 1, len(lists.first))
    sums = sums.view(classes, terms, channels)
    return d_rows, sums[:, :-1].clone(), sums[:, -1].clone()


def _fitted_blocks(channels: int) -> dict[str, int]:
    return {"BLOCK_P": TILE, "BLOCK_C": min(TILE_CHANNELS, triton.next_power_of_2(channels))}

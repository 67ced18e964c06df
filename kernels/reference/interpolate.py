"""Reference of `accel::interpolate` and `accel::interpolate_fitted`, and of their adjoints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.reference.activation import activate


def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Fill every position with the row of its stand-in.

    Args:
        rows: [N * P, C], image-major.
        nearest: int32 [H * W], the row (within its image) that stands in for each position.
        batch, size: N and (H, W).

    Returns:
        [N, C, H, W], channels_last.
    """
    height, width = size
    count = len(rows) // max(batch, 1)
    row = torch.arange(batch, device=rows.device)[:, None] * count + nearest
    return rows[row].view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The adjoint: row p of each image gets the sum of `grad` over the positions that p stands in for.

    Args:
        grad: [N, C, H, W], any memory format.
        nearest: int32 [H * W].
        count: P, the rows of one image.

    Returns:
        [N * P, C].
    """
    batch, channels = grad.shape[:2]
    pixels = grad.permute(0, 2, 3, 1).flatten(1, 2)
    rows = grad.new_zeros(batch, count, channels)
    return rows.index_add_(1, nearest, pixels).flatten(0, 1)


def interpolate_fitted(
    rows: Tensor,
    positions: Tensor,
    skipped: Tensor,
    neighbors: Tensor,
    starts: Tensor,
    weights: Tensor,
    constant: Tensor,
    batch: int,
    size: Sequence[int],
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    """Computed positions get their row, skipped ones a weighted sum of T rows plus a constant.

    The residual is added to both, then comes the activation.

    Args:
        rows: [N * P, C], image-major.
        positions: int32 [P], the flat index of each row.
        skipped, neighbors, starts: of `Neighbors`: int32 [F], [F, T], [K + 1].
        weights, constant: [K, T, C] and [K, C], per class, neighbour and channel.
        batch, size: N and (H, W).
        residual: [N, C, H, W], any memory format.

    Returns:
        [N, C, H, W], channels_last.
    """
    height, width = size
    channels = rows.shape[1]
    values = rows.view(batch, len(positions), channels)
    wide = torch.promote_types(rows.dtype, torch.float32)
    out = torch.empty(batch, height * width, channels, dtype=wide, device=rows.device)
    out[:, positions.long()] = values.to(wide)
    for k, (start, end) in enumerate(_segments(starts)):
        total = constant[k].to(wide).expand(batch, end - start, channels)
        for t, weight in enumerate(weights[k]):
            total = total + weight.to(wide) * values[:, neighbors[start:end, t].long()].to(wide)
        out[:, skipped[start:end].long()] = total
    out = out.view(batch, height, width, channels).permute(0, 3, 1, 2)
    if residual is not None:
        out = out + residual.to(wide)
    return activate(out, activation).to(rows.dtype, memory_format=torch.channels_last)


def interpolate_fitted_backward(grad, rows, positions, skipped, neighbors, starts, weights):
    """Gradients of `rows`, `weights` and `constant`; `grad` [N, C, H, W] is the one before the activation."""
    batch, channels = grad.shape[:2]
    wide = torch.promote_types(grad.dtype, torch.float32)
    pixels = grad.permute(0, 2, 3, 1).flatten(1, 2).to(wide)
    values = rows.view(batch, len(positions), channels).to(wide)
    d_rows = pixels[:, positions.long()]
    d_weights = torch.zeros(weights.shape, dtype=wide, device=grad.device)
    d_constant = d_weights.new_zeros(len(weights), channels)
    for k, (start, end) in enumerate(_segments(starts)):
        part = pixels[:, skipped[start:end].long()]
        d_constant[k] = part.sum((0, 1))
        for t, weight in enumerate(weights[k]):
            where = neighbors[start:end, t].long()
            d_rows.index_add_(1, where, part * weight.to(wide))
            d_weights[k, t] = (part * values[:, where]).sum((0, 1))
    return d_rows.flatten(0, 1).to(rows.dtype), d_weights.to(weights.dtype), d_constant.to(weights.dtype)


def _segments(starts: Tensor) -> list[tuple[int, int]]:
    """(start, end) of every class."""
    return list(itertools.pairwise(starts.tolist()))

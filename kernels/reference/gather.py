"""Convolution as gather and matrix product, shared by the static and the dynamic op.

Both ops are the same sum: output row m is `sum_t table[index[m, t]] @ weight[:, :, t].T`, where `table` holds one pixel
per row and an index of -1 is a pixel of zeros (the padding).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from accel.kernels.positions import tap_map


def pixel_table(x: Tensor) -> Tensor:
    """[N, C, H, W] in any memory format, or rows [R, C] -> one pixel per row [R, C]."""
    return x if x.dim() == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def table_to_input(table: Tensor, x: Tensor) -> Tensor:
    """The inverse of `pixel_table`: rows back into the shape of `x`, channels_last when it is a map."""
    if x.dim() == 2:
        return table
    n, c, h, w = x.shape
    return table.view(n, h, w, c).permute(0, 3, 1, 2)


def gathered_conv(table: Tensor, index: Tensor, weight: Tensor, groups: int) -> Tensor:
    """table [R, C], index int [M, T], weight [K, C / groups, kh, kw] with kh * kw = T -> rows [M, K]."""
    pixels = _gather(table, index, groups)
    return torch.einsum("mtgc,gkct->mgk", pixels, _by_group(weight, groups)).reshape(len(index), len(weight))


def gathered_conv_backward(
    grad: Tensor, table: Tensor, index: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gathered_conv` to (table, weight) and to a bias added to its rows, from row gradients [M, K]."""
    grads = grad.reshape(len(index), groups, len(weight) // groups)
    d_pixels = torch.einsum("mgk,gkct->mtgc", grads, _by_group(weight, groups)).flatten(2)
    d_table = table.new_zeros(len(table) + 1, table.shape[1])
    d_table.index_add_(0, _with_zero_row(index, len(table)).flatten(), d_pixels.flatten(0, 1))
    d_weight = torch.einsum("mgk,mtgc->gkct", grads, _gather(table, index, groups)).reshape(weight.shape)
    return d_table[:-1].clone(), d_weight.contiguous(), grad.sum(0)


@functools.lru_cache(maxsize=32)  # a table takes 8 bytes for every tap of every position
def cached_tap_map(in_size, kernel, stride, padding, dilation, padding_mode) -> Tensor:
    """`tap_map`, kept per geometry; int64, as torch indexes."""
    with torch.inference_mode(False):  # an inference tensor in the cache could not be used by a later training step
        return tap_map(in_size, kernel, stride, padding, dilation, padding_mode).long()


def _gather(table: Tensor, index: Tensor, groups: int) -> Tensor:
    """[M, T, groups, C / groups] pixels, zeros where the index is -1."""
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return padded[_with_zero_row(index, len(table))].unflatten(2, (groups, -1))


def _with_zero_row(index: Tensor, rows: int) -> Tensor:
    return torch.where(index < 0, rows, index)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups, kh, kw] -> [groups, K / groups, C / groups, T]."""
    return weight.flatten(2).unflatten(0, (groups, -1))

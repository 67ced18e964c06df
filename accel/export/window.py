"""What the positions of an output map read of the input, as crops, paddings and strides, or as a list of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.export.phases import Phase
from accel.nn.geometry import ConvGeometry


class Window:
    """A convolution at one phase of its output map."""

    def __init__(self, now: ConvGeometry, size: tuple[int, int], phase: Phase) -> None:
        """Args:
        size: (H, W) of the input.
        """
        self.around, padding = _around(now)
        self.stride = (now.stride[0] * phase.down, now.stride[1] * phase.across)
        self.dilation, self.groups = now.dilation, now.groups
        self.crop, self.sides = [], []
        for axis, (first, count) in enumerate(((phase.top, phase.rows), (phase.left, phase.columns))):
            before, behind = padding[2 * axis : 2 * axis + 2]
            if now.padding_mode == "zeros":
                length = size[axis]
            else:
                length, before, behind = size[axis] + sum(now.padding[2 * axis : 2 * axis + 2]), 0, 0
            start = first * now.stride[axis] - before
            reach = (count - 1) * self.stride[axis] + now.dilation[axis] * (now.kernel[axis] - 1) + 1
            needed = max(0, start + reach - length)
            self.crop.append(max(0, start))
            # the padding on both sides, which a convolution has itself, wherever it brings no further position
            self.sides.append(
                (-start, -start) if start <= 0 and needed <= -start <= behind else (max(0, -start), needed)
            )

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = self.around(x)
        for axis, first in enumerate(self.crop):
            if first:
                x = x.narrow(2 + axis, first, x.shape[2 + axis] - first)
        (top, bottom), (left, right) = self.sides
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)


class Taps:
    """A convolution at positions whose input pixels are listed."""

    def __init__(self, now: ConvGeometry) -> None:
        self.around, (top, bottom, left, right) = _around(now)
        self.sides, self.groups = (left, right, top, bottom), now.groups

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> Tensor:
        """[N, K, P]; taps: int64 [P * kh * kw], flat pixels of the padded input."""
        x = self.around(x)
        if any(self.sides):
            x = F.pad(x, self.sides)
        count = weight[0, 0].numel()
        read = x.flatten(2).mT.index_select(1, taps)  # [N, P * kh * kw, C]
        if self.groups == 1:
            rows = torch.matmul(
                read.reshape(-1, len(taps) // count, weight[0].numel()), weight.flatten(2).mT.flatten(1).T
            )
        else:
            read = read.reshape(-1, len(taps) // count, count, self.groups, weight.shape[1])
            read = read.permute(0, 3, 1, 2, 4).flatten(3)  # [N, G, P, kh * kw * C / G]
            weight = weight.flatten(2).mT.reshape(self.groups, len(weight) // self.groups, -1)
            rows = torch.matmul(read, weight.mT).permute(0, 2, 1, 3).flatten(2)
        return (rows if bias is None else rows + bias).mT


def at_taps(now: ConvGeometry, size: tuple[int, int], positions: Tensor, width: int) -> tuple[Taps, Tensor]:
    """(the convolution at flat positions, int64 [P], of an output of this width; the taps to call it with)."""
    padded = size[1] + now.padding[2] + now.padding[3]
    rows, columns = positions // width * now.stride[0], positions % width * now.stride[1]
    down, across = (torch.arange(count, device="cpu") * step for count, step in zip(now.kernel, now.dilation))
    taps = (rows[:, None, None] + down[:, None]) * padded + (columns[:, None, None] + across)
    return Taps(now), taps.flatten()


def _around(now: ConvGeometry):
    """(what pads x as the mode says, the zeros (top, bottom, left, right) that are left to pad)."""
    if now.padding_mode == "zeros":
        return _as_it_is, now.padding
    top, bottom, left, right = now.padding
    return lambda x: F.pad(x, (left, right, top, bottom), mode=now.padding_mode), (0, 0, 0, 0)


def _as_it_is(x: Tensor) -> Tensor:
    return x

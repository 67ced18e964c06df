"""What torch computes a convolution with now: the one place that reads the geometry of an `nn.Conv2d`.

Attributes can be set after construction, and torch then reads some of them and not others: `padding` in the mode
'zeros' only, in the others the sides that the constructor derived from it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import nn

from accel.kernels.positions import output_size

Pair = tuple[int, int]


class ConvGeometry(NamedTuple):
    """Pairs are (vertical, horizontal); padding is (top, bottom, left, right)."""

    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int
    padding_mode: str

    def output_size(self, height: int, width: int) -> Pair:
        """Height and width of the output for an input of `height` x `width`."""
        return output_size((height, width), self.kernel, self.stride, self.padding, self.dilation)


def geometry_of(conv: nn.Conv2d) -> ConvGeometry:
    """The geometry that `conv(x)` has at this moment.

    Raises:
        ValueError: padding 'same' with a stride, which torch refuses as well.
    """
    mode = conv.padding_mode
    padding = conv.padding if mode == "zeros" else conv._reversed_padding_repeated_twice
    settings = (conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups, mode)
    if torch.compiler.is_compiling():  # dynamo warns of caches
        return _geometry.__wrapped__(*settings)
    try:
        return _geometry(*settings)
    except TypeError:  # lists have no hash
        return _geometry(*(tuple(value) if isinstance(value, list) else value for value in settings))


@functools.lru_cache(maxsize=1024)  # a look-up takes half a microsecond, and every call of a layer asks
def _geometry(
    kernel: Pair,
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    mode: str,
) -> ConvGeometry:
    """`padding`: as F.conv2d takes it in the mode 'zeros'; in the others as F.pad does: (left, right, top, bottom)."""
    stride, dilation = _pair(stride), _pair(dilation)
    if mode != "zeros":
        left, right, top, bottom = padding
    elif padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding 'same' is not supported for strided convolutions, got stride {stride}")
        (top, bottom), (left, right) = (
            (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(kernel, dilation)
        )
    else:
        top, left = (0, 0) if padding == "valid" else _pair(padding)
        bottom, right = top, left
    return ConvGeometry(kernel, stride, (top, bottom, left, right), dilation, groups, mode)


def _pair(value: int | tuple[int, ...]) -> Pair:
    """(value, value), as F.conv2d repeats a number or a tuple of one."""
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]

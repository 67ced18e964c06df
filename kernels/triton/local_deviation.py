"""Triton kernel of `accel::local_deviation`; the contract is the reference's, argument by argument.

One pass: a block of positions reads the first channels of its pixels and of their four neighbours, 32 bytes a pixel
with 16 channels of half precision, and adds the deviations up in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.launch import cdiv, channels_last, check_dtype, on_its_device

BLOCK_POSITIONS, BLOCK_CHANNELS = 128, 16  # 16 values of each of five pixels a thread with 4 warps


@triton.jit(do_not_specialize=["height", "width"])
def deviations(
    x, out, height, width, C: tl.constexpr, TAKEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid: (blocks of positions, images)."""
    image = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    y = position // width
    x_pos = position % width
    inside = position < height * width
    above = inside & (y > 0)
    below = inside & (y + 1 < height)
    left = inside & (x_pos > 0)
    right = inside & (x_pos + 1 < width)
    count = above.to(tl.float32) + below.to(tl.float32) + left.to(tl.float32) + right.to(tl.float32)
    pixels = x + (image * height * width + position)[:, None] * C
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for first in tl.static_range(0, TAKEN, BLOCK_C):
        channel = (first + tl.arange(0, BLOCK_C))[None, :]
        taken = channel < TAKEN
        sums = tl.load(pixels - width.to(tl.int64) * C + channel, mask=above[:, None] & taken, other=0.0).to(tl.float32)
        sums += tl.load(pixels + width.to(tl.int64) * C + channel, mask=below[:, None] & taken, other=0.0)
        sums += tl.load(pixels - C + channel, mask=left[:, None] & taken, other=0.0)
        sums += tl.load(pixels + C + channel, mask=right[:, None] & taken, other=0.0)
        own = tl.load(pixels + channel, mask=inside[:, None] & taken, other=0.0).to(tl.float32)
        total += tl.sum(tl.abs(own - sums / tl.maximum(count, 1.0)[:, None]), 1)
    total = tl.where(count > 0, total, 0.0)
    tl.store(out + image * height * width + position, total.to(out.dtype.element_ty), mask=inside)


@on_its_device
def local_deviation(x: Tensor, channels: int) -> Tensor:
    """See `accel.kernels.reference.local_deviation`."""
    check_dtype("local_deviation", x)
    batch, width_of_pixel, height, width = x.shape
    out = x.new_empty(batch, height, width)
    taken = min(channels, width_of_pixel)
    if out.numel():
        block = min(BLOCK_CHANNELS, triton.next_power_of_2(taken))
        deviations[cdiv(height * width, BLOCK_POSITIONS), batch](
            channels_last(x), out, height, width, C=width_of_pixel, TAKEN=taken, BLOCK_P=BLOCK_POSITIONS, BLOCK_C=block
        )
    return out

"""active_positions: a mask -> the positions where it is true, and how many each image has.

| backward | dtypes    | layouts        | granularity | limits            |
|----------|-----------|----------------|-------------|-------------------|
| none     | bool mask | mask [N, H, W] | position    | N * H * W < 2**31 |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.positions import INT32_MAX, ActiveSet


def active_positions(mask: Tensor, *, dilate: int = 0) -> ActiveSet:
    """The active positions of a mask, as the convolution ops take them.

    Args:
        mask: bool [N, H, W], contiguous or not.
        dilate: max-pool the mask over (2 * dilate + 1)-sided windows first: dilate=1 gives every position that a 3x3
            convolution at the active ones reads.

    Returns:
        An ActiveSet. Its capacity is N * H * W, so that nothing is copied from the device; on a CPU, in eager mode, it
        is cut to the total.

    Raises:
        TypeError: the mask is not bool.
        ValueError: it is not 3-D, holds 2**31 positions or more, or `dilate` is negative.
    """
    if mask.dtype is not torch.bool:
        raise TypeError(f"active_positions: mask must be bool, got {mask.dtype}; compare it with a threshold first")
    if mask.dim() != 3 or mask.numel() > INT32_MAX:
        raise ValueError(
            f"active_positions: mask must be [N, H, W] of at most {INT32_MAX} positions, got {tuple(mask.shape)}"
        )
    if dilate < 0:
        raise ValueError(f"active_positions: dilate must be 0 or more, got {dilate}")
    run = implementation("active_positions", mask) if is_direct(mask) else _ACTIVE
    positions, counts = run(mask, dilate)
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(counts):
        positions = positions[: int(counts.sum())]
    return ActiveSet(positions, counts, *mask.shape)


def _fake(mask, dilate):
    return mask.new_empty(mask.numel(), dtype=torch.int32), mask.new_empty(mask.shape[0], dtype=torch.int32)


define("active_positions", "(Tensor mask, SymInt dilate) -> (Tensor, Tensor)", _fake)
_ACTIVE = torch.ops.accel.active_positions.default

"""soft_threshold: sign(x) * max(|x| - threshold, 0).

| backward | dtypes   | layouts | granularity | limits                |
|----------|----------|---------|-------------|-----------------------|
| yes      | floating | any     | position    | x.numel() below 2**31 |
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.dispatch import define, implementation, is_direct


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """Of x's shape and dtype; threshold at least 0."""
    if threshold < 0:
        raise ValueError(f"soft_threshold: threshold must be at least 0, got {threshold}")
    run = implementation("soft_threshold", x) if is_direct(x) else _SOFT
    return run(x, threshold)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output)


def _grad(ctx, grad):
    (output,) = ctx.saved_tensors
    return grad * (output != 0), None


_op = define("soft_threshold", "(Tensor x, float threshold) -> Tensor", lambda x, _: torch.empty_like(x))
_op.register_autograd(_grad, setup_context=_setup)
_SOFT = torch.ops.accel.soft_threshold.default

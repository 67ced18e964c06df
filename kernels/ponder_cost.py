"""ponder_cost: per-image sums of the ponder cost and of the executed units.

| backward       | dtypes                      | layouts            | granularity | limits               |
|----------------|-----------------------------|--------------------|-------------|----------------------|
| of the rho sum | floating ponder, int32 units | [N] or [N, H, W]  | image       | units sum below 2**63 |
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device, check_shape
from accel.kernels.dispatch import define, implementation, is_direct


def ponder_cost(ponder: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the positions of each image; the same at every run and for any number of threads.

    Args:
        ponder: rho, floating, [N] (ACT) or [N, H, W] (SACT).
        units: executed units, int32, same shape and device.

    Returns:
        (sum of rho [N], dtype of `ponder`; sum of units [N], int64). Divided by H * W they are the image's means, whose
        batch mean is the ponder cost in the loss (Figurnov et al. 2017, arXiv 1612.02297).

    Raises:
        TypeError: other dtypes.
        ValueError: shapes or devices that differ, or another number of dimensions.
    """
    if not ponder.is_floating_point() or units.dtype is not torch.int32:
        raise TypeError(f"ponder_cost: ponder must be floating and units int32, got {ponder.dtype} and {units.dtype}")
    if ponder.dim() not in (1, 3):
        raise ValueError(f"ponder_cost: ponder must be [N] or [N, H, W], got shape {tuple(ponder.shape)}")
    check_shape("ponder_cost", "units", units, tuple(ponder.shape))
    check_device("ponder_cost", ponder, "units", units)
    run = implementation("ponder_cost", ponder) if is_direct(ponder) else _PONDER
    return run(ponder, units)


def _fake(ponder, units):
    return ponder.new_empty(ponder.shape[0]), units.new_empty(units.shape[0], dtype=torch.int64)


def _setup(ctx, inputs, output):
    ctx.shape = inputs[0].shape


def _grad(ctx, d_rho, d_units):
    return d_rho.view(-1, *[1] * (len(ctx.shape) - 1)).expand(ctx.shape), None


_op = define("ponder_cost", "(Tensor ponder, Tensor units) -> (Tensor, Tensor)", _fake)
_op.register_autograd(_grad, setup_context=_setup)
_PONDER = torch.ops.accel.ponder_cost.default

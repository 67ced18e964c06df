"""Reference of `accel::ponder_cost`: per-image sums of the ponder cost and of the executed units."""

from __future__ import annotations

import torch
from torch import Tensor


def ponder_cost(ponder: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the positions of each image.

    Args:
        ponder: rho, floating [N] or [N, H, W].
        units: executed units, int32, same shape.

    Returns:
        (sum of rho [N] in the dtype of `ponder`, sum of units int64 [N]). Summed in float64, where float32 terms
        between 2 and 2**7 add up without rounding to 2**31: the order of the additions cannot show.
    """
    rho = ponder.reshape(len(ponder), -1).double().sum(1).to(ponder.dtype)
    return rho, units.reshape(len(units), -1).sum(1, dtype=torch.int64)

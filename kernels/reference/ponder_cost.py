"""Reference of `accel::ponder_cost`: per-image sums of the ponder cost and of the executed units."""

from __future__ import annotations

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
    rho, executed = ponder.double(), units.long()
    if ponder.dim() > 1:
        rho, executed = rho.flatten(1).sum(1), executed.flatten(1).sum(1)
    return rho.to(ponder.dtype).clone(), executed

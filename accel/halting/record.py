"""What a stage did, and the means of it that a loss and a table need."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from accel.ops import ponder_cost


@dataclasses.dataclass
class Halted:
    """What a stage did; per image [N] (ACT) or per position [N, H, W] (SACT).

    Attributes:
        output: like a unit's output.
        ponder: rho, what tau multiplies in the loss; differentiable where the policy is.
        units: int32, N: units that ran, or that evaluation would run.
        distribution: [L, ...], p, the weights of the units; sums to 1.
        logits: [L - 1, ...], log odds of halting in a unit that was reached, where the policy draws; else None.
    """

    output: Tensor
    ponder: Tensor
    units: Tensor
    distribution: Tensor
    logits: Tensor | None = None


def mean_ponder(ponder: Tensor, units: Tensor) -> Tensor:
    """Mean of rho over images and positions, the term that tau multiplies in the loss; a differentiable scalar.

    Each image's sum is rounded once, so that the mean is the same for any number of threads.
    """
    rho, _ = ponder_cost(ponder, units)
    return rho.sum() / ponder.numel()


def mean_units(ponder: Tensor, units: Tensor) -> Tensor:
    """Mean number of units that ran at the positions of each image, float64 [N]."""
    _, executed = ponder_cost(ponder, units)
    return executed.double() / units[:1].numel()

"""Budget control: tau follows the share of the MACs that a network executes until it meets the target.

The weight of the ponder cost that a given saving needs is not known beforehand (the authors tried several and took what
they got). Here it is the multiplier of the constraint `executed share = target`, in the manner of augmented Lagrangians
(Hestenes 1969, Powell 1969), with the ponder cost standing in for the share, which has no gradient: every training step
moves tau by MULTIPLIER * error, and that step's loss uses tau + PENALTY * error, error = executed share - target. Both
may fall below 0 and so reward units: else nothing but the task could lead a network back that has halted too early.
"""

from __future__ import annotations

from torch import Tensor

PENALTY = 0.3  # with 0.1 a network that had halted too early came back half as fast
MULTIPLIER = 0.001  # a time constant of 300 steps: with 1000 a run of 1500 steps on CIFAR-10 was still on its way


def control_tau(tau: Tensor, executed_share: float, target: float) -> float:
    """One step of the controller: moves `tau`, a scalar, in place and returns the tau of this step's loss."""
    error = executed_share - target
    tau.add_(MULTIPLIER * error)
    return float(tau) + PENALTY * error

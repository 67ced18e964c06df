"""How many units run: policies that turn scores into weights of the units' outputs, and stages run by them.

With L units x^1..x^L and scores of the first L - 1, per image or per position, a policy (`accel.halting.policies`) is a
step, repeated unit by unit, and a cost. `Steps` is a stage under way, shared by every executor that goes unit by unit;
`run_stage` runs every unit everywhere and is the oracle of the sparse ones; `Halted` is what a stage did.
"""

from .policies import EPS, AddedScores, Policy, Sticks, thresholded
from .prior import TruncatedGeometric
from .record import Halted, mean_ponder, mean_units
from .stage import Steps, halt, run_stage

__all__ = [
    "EPS",
    "AddedScores",
    "Halted",
    "Policy",
    "Steps",
    "Sticks",
    "TruncatedGeometric",
    "halt",
    "mean_ponder",
    "mean_units",
    "run_stage",
    "thresholded",
]

"""Gradients of expectations: Monte Carlo estimators, baselines, control variates.

>>> q = torch.distributions.Bernoulli(logits=logits)
>>> loss = expectation(lambda b: ((b - 0.45) ** 2).sum(-1), q, 4, ScoreFunction(baseline=LeaveOneOut()))
>>> loss.backward()

After Mohamed, Rosca, Figurnov and Mnih, Monte Carlo Gradient Estimation in Machine Learning, JMLR 21(132), 2020.
"""

from .antithetic import ARM, DisARM
from .baselines import LearnedBaseline, LeaveOneOut, MovingAverage
from .control_variates import ControlVariate, DeltaMethod
from .enumeration import Enumerate
from .estimate import Estimator, expectation, jacobians
from .measure_valued import MeasureValued
from .pathwise import Pathwise
from .rebar import REBAR, RELAX
from .relaxed import Concrete, StraightThrough
from .score import ScoreFunction

__all__ = [
    "ARM",
    "REBAR",
    "RELAX",
    "Concrete",
    "ControlVariate",
    "DeltaMethod",
    "DisARM",
    "Enumerate",
    "Estimator",
    "LearnedBaseline",
    "LeaveOneOut",
    "MeasureValued",
    "MovingAverage",
    "Pathwise",
    "ScoreFunction",
    "StraightThrough",
    "expectation",
    "jacobians",
]

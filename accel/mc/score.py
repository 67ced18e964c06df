"""The score-function estimator (REINFORCE, likelihood ratio)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from .cost import Cost
from .discrete import log_prob
from .rows import attach, sum_to
from .sampling import draw

Baseline = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScoreFunction:
    """``mean_n (f(x_n) - b) grad log q(x_n)`` (Mohamed et al., JMLR 21(132) 2020, section 4). Any q with a density.

    Args:
        baseline: None, or a callable from the detached costs ``[N, *c]`` to a baseline that broadcasts against them:
            ``MovingAverage``, ``LeaveOneOut``, ``LearnedBaseline`` or your own. Entry n must not depend on cost n,
            or the estimator is biased.

    Raises (on use):
        ValueError: the support of q depends on a parameter that requires a gradient (the score identity fails), or a
            probability that requires one is 0 or 1.
    """

    baseline: Baseline | None = None

    def plain(self) -> ScoreFunction:
        """The same estimator without its baseline, for use on a control variate."""
        return ScoreFunction()

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample costs ``[N, *c]`` whose gradient is the estimator."""
        _check_support(q)
        x = draw(q, generator)
        costs = cost(x)
        return attach(costs, self.signal(costs) * sum_to(log_prob(q, x, "ScoreFunction"), costs.dim()))

    def signal(self, costs: Tensor) -> Tensor:
        """What the score is multiplied by: detached costs ``[N, *c]``, less the baseline."""
        signal = costs.detach()
        if self.baseline is not None:
            with torch.no_grad():
                signal = signal - self.baseline(signal)
            _check_signal(signal, costs)
        return signal


def _check_signal(signal: Tensor, costs: Tensor) -> None:
    if signal.shape != costs.shape:
        raise ValueError(
            f"the baseline does not broadcast against the costs: costs {tuple(costs.shape)} minus baseline gives "
            f"{tuple(signal.shape)}; return a scalar, {tuple(costs.shape[1:])} or {tuple(costs.shape)}"
        )


def _check_support(q: Distribution) -> None:
    support = q.support
    support = getattr(support, "base_constraint", support)
    bounds = (getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))
    if any(isinstance(bound, Tensor) and bound.requires_grad for bound in bounds):
        raise ValueError(
            f"ScoreFunction is biased for {type(q).__name__}: its support depends on the parameter; "
            "use Pathwise, or MeasureValued for a Uniform"
        )

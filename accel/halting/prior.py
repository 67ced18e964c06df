"""The prior on the number of units: a truncated geometric, p(l) proportional to exp(-tau l) for l = 1..L.

It is flat for tau = 0, all on 1 in the limit of a large tau, and gives every further unit the price tau in the
log-density. With hazards of 1 - exp(-tau) and no truncation it would be PonderNet's geometric prior (Banino et al.
2021, arXiv 2107.05407).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TruncatedGeometric:
    """Attributes: tau, at least 0 and finite; length, L, at least 1."""

    tau: float
    length: int

    def log_prob(self) -> Tensor:
        """log p(l), float64 [L]."""
        steps = torch.arange(1, self.length + 1, dtype=torch.float64, device="cpu")
        return torch.log_softmax(-self.tau * steps, 0)

    @property
    def mean(self) -> float:
        steps = torch.arange(1, self.length + 1, dtype=torch.float64, device="cpu")
        return float((self.log_prob().exp() * steps).sum())

    def log_hazards(self) -> list[tuple[float, float]]:
        """(log h, log(1 - h)) of halting in a unit that is reached, for units 1..L - 1."""
        return [_log_hazard(self.tau, self.length - unit + 1) for unit in range(1, self.length)]

    def divergence(self, logits: Tensor, weights: Tensor) -> Tensor:
        """KL(q || p) of broken sticks, exact where the hazards do not depend on the decisions, differentiable in both.

        Args:
            logits: log odds of halting in a unit that is reached, [L - 1, ...].
            weights: of the units, [L, ...]; the sum over units of the chance to reach one times the divergence there.

        Returns:
            [...].
        """
        left = 1 - weights[:-1].cumsum(0)
        reached = torch.cat((torch.ones_like(left[:1]), left[:-1]))
        total = torch.zeros_like(weights[0])
        for share, odds, (halts, goes) in zip(reached, logits, self.log_hazards()):
            own = F.logsigmoid(odds), F.logsigmoid(-odds)
            here = own[0].exp() * (own[0] - halts) + own[1].exp() * (own[1] - goes)
            total = total + share * here
        return total


def _log_hazard(tau: float, left: int) -> tuple[float, float]:
    """Of a truncated geometric with `left` units to go, at least 2."""
    if tau == 0:
        return -math.log(left), math.log1p(-1 / left)
    mass = math.log(-math.expm1(-tau * left))
    return math.log(-math.expm1(-tau)) - mass, -tau + math.log(-math.expm1(-tau * (left - 1))) - mass

"""The policies: ACT's and SACT's scores that add up, and PACT's sticks.

ACT and SACT (Figurnov et al. 2017, arXiv 1612.02297, with the conventions of the authors' code: ponder starts at 1,
eps = 0.01), of scores h^1..h^(L-1):

    N = min { l : h^1 + ... + h^l >= 1 - eps }, or L      units that run
    R = 1 - (h^1 + ... + h^(N-1))                         remainder
    p^l = h^l for l < N, R for l = N, 0 after             halting distribution, sums to 1
    output = sum_l p^l x^l,   rho = N + R                 ponder cost, between 2 and L + 1

rho jumps where N changes; between the jumps its gradient is -1 for every h^l with l < N and 0 for the others.

PACT (Figurnov, Sobolev, Vetrov 2017, arXiv 1712.00386) makes N a latent variable: xi^l ~ Bernoulli(h^l), N the first l
with xi^l = 1, or L, and the output is x^N. In place of the decisions xi there may be relaxed ones, in [0, 1]:

    p^l = xi^l prod_(j<l) (1 - xi^j), p^L the rest        a stick broken
    rho = sum_l l p^l = 1 + sum_(l<L) prod_(j<=l) (1 - xi^j)   the number of units; between 1 and L

Of an image, relaxed, the output is sum_l p^l x^l. Where positions are each other's neighbours that would not do: what a
neighbour sees of a position that has halted is its frozen state, and where it has halted by part, a state that moved by
part. So there the state moves by the share of the stick that is left, x + prod_(j<=l) (1 - xi^j) * (unit(x) - x); it is
continuous in xi, equals the frozen state for decisions, and in the end it is the output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from accel.kernels.reference.halting_step import spread

EPS = 0.01
Draw = Callable[[Tensor, Tensor], Tensor]  # (log odds of halting, what is left of the stick) -> xi in [0, 1]


class Policy(Protocol):
    """What an executor needs to know of a policy.

    Attributes:
        eps, sticks: of `accel.ops.halting_step`.
        sums: whether the output is the weighted sum of the units' outputs; else it is the state in the end.
        keeps_logits: whether what the heads say is log odds, which the record keeps.
        plans: whether the units that the record counts are those that evaluation would run, rather than those that ran.
    """

    eps: float
    sticks: bool
    sums: bool
    keeps_logits: bool
    plans: bool

    def said_by(self, head: Callable) -> Callable[[Tensor], Tensor]:
        """The function of a unit's state through which a head speaks to this policy."""

    def share(self, said: Tensor, remainder: Tensor) -> Tensor:
        """The score that the step takes."""

    def advance(self, state: Tensor, new: Tensor, remainder: Tensor) -> Tensor:
        """The state after a unit that gave `new`, with what was left before it."""


@dataclasses.dataclass(frozen=True)
class AddedScores:
    """ACT, or with `freezes` SACT: where a position has halted, the state goes on feeding its neighbours."""

    eps: float = EPS
    freezes: bool = False
    sticks: ClassVar[bool] = False
    sums: ClassVar[bool] = True
    keeps_logits: ClassVar[bool] = False
    plans: ClassVar[bool] = False

    def said_by(self, head: Callable) -> Callable[[Tensor], Tensor]:
        return head

    def share(self, said: Tensor, remainder: Tensor) -> Tensor:
        return said

    def advance(self, state: Tensor, new: Tensor, remainder: Tensor) -> Tensor:
        return torch.where((remainder > 0).unsqueeze(1), new, state) if self.freezes else new


@dataclasses.dataclass(frozen=True)
class Sticks:
    """PACT. Heads speak in log odds, so that decisions near certain keep their gradients.

    Attributes:
        draw: gives the decisions, or relaxed ones.
        sums: for relaxed decisions about whole images.
        plans: see `Policy`; of decisions by which evaluation does not go.
    """

    draw: Draw
    sums: bool = False
    plans: bool = False
    eps: ClassVar[float] = 0.0
    sticks: ClassVar[bool] = True
    keeps_logits: ClassVar[bool] = True

    def said_by(self, head: Callable) -> Callable[[Tensor], Tensor]:
        return head.logits

    def share(self, said: Tensor, remainder: Tensor) -> Tensor:
        refuse_nan(said)
        return self.draw(said, remainder)

    def advance(self, state: Tensor, new: Tensor, remainder: Tensor) -> Tensor:
        if self.sums:
            return new
        dtype = torch.promote_types(state.dtype, new.dtype)  # under autocast they may differ
        state, new = state.to(dtype), new.to(dtype)
        return torch.lerp(state, new, spread(remainder, state))


def refuse_nan(values: Tensor) -> None:
    """ValueError where a halting head gave NaN, which no policy could obey; of its log odds, or costs made of them."""
    if not torch.compiler.is_exporting() and values.isnan().any():  # exported programs cannot decide by data
        raise ValueError(
            f"a halting head gave NaN at {int(values.isnan().sum())} of {values.numel()} places: look at its input and "
            "its weights, or lower the learning rate"
        )


def thresholded(logits: Tensor, remainder: Tensor) -> Tensor:
    """The decisions of evaluation: halt where that is likelier than not. A `Draw`."""
    return (logits > 0).to(remainder.dtype)

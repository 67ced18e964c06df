"""Whole stages: units run one after the other under a policy, as loops over the `halting_step` op."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from accel.halting.policies import EPS, AddedScores, Policy
from accel.halting.record import Halted
from accel.ops import halting_step, halting_step_


class Steps:
    """A stage under way: what is left of every halting budget, and what has been spent.

    Attributes:
        remainder: [N] or [N, H, W], 1 at first; a position still runs where it is above 0.
        running: whether it does, bool; with `in_place` only.
    """

    def __init__(self, policy: Policy, state: Tensor, remainder: Tensor, *, in_place: bool = False) -> None:
        """Args:
        state: like the outputs of the units.
        remainder: ones; what the policy decides about.
        in_place: for inference: memory is used again, and there are no gradients.
        """
        self.policy, self.remainder, self._in_place = policy, remainder, in_place
        self.running = remainder > 0
        self._ponder, self._count = torch.ones_like(remainder), torch.zeros_like(remainder, dtype=torch.int32)
        self._output = torch.zeros_like(self._summed(state))
        self._weights: list[Tensor] = []
        self._logits: list[Tensor] = []

    def take(self, head: Callable[[Tensor], Tensor] | None, state: Tensor) -> None:
        """A unit ran, and gave `state`; `head` None: the last one."""
        policy, last = self.policy, head is None
        h = None
        if not last:
            said = head(state)
            if policy.keeps_logits:
                self._logits.append(said)
            h = policy.share(said, self.remainder)
        x, rule = self._summed(state), (policy.eps, last, policy.sticks)
        if self._in_place:
            before = self.remainder.clone()
            kept = (self.remainder, self._ponder, self._count, self._output)
            self.running = halting_step_(h, x, *kept, *rule)
            weight = before - self.remainder
        else:
            old = (self.remainder, self._ponder, self._count, self._output)
            self.remainder, self._ponder, self._count, self._output, weight = halting_step(h, x, *old, *rule)
        self._weights.append(weight)

    def halted(self, state: Tensor) -> Halted:
        """What the stage did, after its last unit gave `state`."""
        output = self._output if self.policy.sums else state
        logits = torch.stack(self._logits) if self._logits else None
        units = self._count
        if self.policy.plans and logits is not None:
            units = 1 + (logits <= 0).to(torch.int32).cumprod(0).sum(0, dtype=torch.int32)
        return Halted(output, self._ponder, units, torch.stack(self._weights), logits)

    def _summed(self, state: Tensor) -> Tensor:
        """The part of a unit's output that the step adds up: nothing of it where the state is the output."""
        return state if self.policy.sums else state[:, :0].detach()


def halt(scores: Sequence[Tensor], outputs: Sequence[Tensor], *, eps: float = EPS) -> Halted:
    """Combine the outputs of L units by their halting scores, as ACT and SACT do.

    Args:
        scores: h^1..h^(L-1), each [N] (ACT; outputs [N, ...]) or [N, H, W] (SACT; outputs [N, C, H, W]). A score of the
            last unit may follow and is ignored.
        outputs: x^1..x^L, of one shape.
        eps: 0 <= eps < 1.

    Raises:
        ValueError: the numbers of scores and outputs do not fit.
    """
    if not outputs or len(scores) not in (len(outputs) - 1, len(outputs)) or not scores:
        raise ValueError(
            f"halt: L outputs of units need L - 1 or L scores, at least one; got {len(outputs)} outputs and "
            f"{len(scores)} scores"
        )
    steps = Steps(AddedScores(eps), outputs[0], scores[0].new_ones(scores[0].shape))
    for k, x in enumerate(outputs):
        steps.take(None if k == len(outputs) - 1 else lambda _, h=scores[k]: h, x)
    return steps.halted(outputs[-1])


def run_stage(
    units: Sequence[Callable[[Tensor], Tensor]],
    heads: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    *,
    spatial: bool,
    policy: Policy | None = None,
) -> Halted:
    """Run every unit densely and combine them; the oracle of sparse execution.

    Args:
        units: L residual units; the first may change shape and stride, and runs everywhere.
        heads: L - 1 functions of a unit's state, giving what the policy is told, [N] or [N, H, W]: halting scores in
            [0, 1], or the log odds of halting.
        x: input of the stage, [N, C, H, W].
        spatial: every position for itself.
        policy: None: ACT, or where spatial SACT.

    Raises:
        ValueError: not one head fewer than units, or no unit.
    """
    if len(units) < 1 or len(heads) != len(units) - 1:
        raise ValueError(f"run_stage: L units need L - 1 heads, got {len(units)} units and {len(heads)} heads")
    policy = AddedScores(freezes=spatial) if policy is None else policy
    state = units[0](x)
    steps = Steps(policy, state, whole_budgets(state, spatial))
    for unit, head in zip([None, *units[1:]], [*heads, None]):
        if unit is not None:
            state = policy.advance(state, unit(state), steps.remainder)
        steps.take(head, state)
    return steps.halted(state)


def whole_budgets(state: Tensor, spatial: bool) -> Tensor:
    """Ones, [N, H, W] or [N], for units that give `state`."""
    shape = (state.shape[0], *state.shape[2:]) if spatial else state.shape[:1]
    return state.new_ones(shape, dtype=torch.promote_types(state.dtype, torch.float32))  # bfloat16 ends at 1 - 0.004

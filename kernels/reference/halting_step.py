"""Reference of `accel::halting_step`: one unit of adaptive computation time, at every position at once.

What is left of a position's halting budget is its `remainder`, 1 before the first unit and 0 once it has halted. A unit
with score h takes its weight w from it:

* scores that add up (ACT and SACT, Figurnov et al. 2017, arXiv 1612.02297): w = h if remainder - h > eps and the unit
  is not the last, else the whole remainder, and the position halts. Every further unit costs 1, the last one its
  weight.
* stick-breaking (PACT, arXiv 1712.00386): w = h * remainder, in the last unit the whole remainder. A further unit costs
  the part of the stick that it is needed for, so that the cost is the mean of the number of units under the weights.

The remainder falls by w. A position that halted before has weight 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def halting_step(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    ponder: Tensor,
    units: Tensor,
    output: Tensor,
    eps: float,
    last: bool,
    sticks: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step, functional.

    Args:
        h: halting scores of this unit, [N] (ACT: x is [N, ...]) or [N, H, W] (SACT: x is [N, C, H, W]); None allowed
            in the last unit, which halts whatever still runs.
        x: the unit's output.
        remainder: like h; 1 before the first unit.
        ponder: like h; 1 before the first unit, rho = N + R (of sticks: the mean of N) after the last.
        units: int32, shape of h; 0 before the first unit, N after the last.
        output: like x, the sum of weight * x so far.
        eps: a position halts when its remainder would fall to eps or below; of scores that add up.
        last: whether this is the last unit.
        sticks: stick-breaking.

    Returns:
        (remainder, ponder, units, output, weight) after the unit; a position still runs where remainder > 0.
    """
    running = remainder > 0
    last = last or h is None
    if sticks:
        weight = remainder.clone() if last else h * remainder
        new_remainder = torch.zeros_like(remainder) if last else (1 - h) * remainder
        new_ponder = ponder + new_remainder
    else:
        going = _going(h, remainder, eps, last)
        stays = remainder * (running & ~going)
        weight = stays if h is None else torch.where(going, h, stays)
        new_remainder = torch.zeros_like(remainder) if h is None else torch.where(going, remainder - h, 0)
        new_ponder = ponder + going.to(ponder.dtype) + stays
    return new_remainder, new_ponder, units + running, output + spread(weight, x) * x, weight


def halting_step_backward(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    d_remainder: Tensor,
    d_ponder: Tensor,
    d_output: Tensor,
    d_weight: Tensor,
    eps: float,
    last: bool,
    sticks: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to (h, x, remainder), from those to the step's remainder, ponder, output and weight.

    (Those to the old ponder and output are `d_ponder` and `d_output` themselves.) Of scores that add up, when the
    position halts is a step function of h: the score of the unit it halts in gets no gradient. Sticks are smooth.
    """
    last = last or h is None
    d_weight = d_weight + _collect(d_output * x, remainder)
    if sticks:
        weight = remainder if last else h * remainder
        d_left = d_remainder + d_ponder
        d_h = torch.zeros_like(remainder) if last else remainder * (d_weight - d_left)
        d_old = d_weight if last else h * d_weight + (1 - h) * d_left
        return d_h, d_output * spread(weight, x), d_old
    going = _going(h, remainder, eps, last)
    halts = (remainder > 0) & ~going
    weight = remainder * halts if h is None else torch.where(going, h, remainder * halts)
    d_h = torch.where(going, d_weight - d_remainder, 0)
    d_old = torch.where(going, d_remainder, torch.where(halts, d_weight + d_ponder, 0))
    return d_h, d_output * spread(weight, x), d_old


def halting_step_(h, x, remainder, ponder, units, output, eps, last, sticks=False):
    """The same step, in place on remainder, ponder, units and output. Returns bool, shape of h: what still runs."""
    *state, _ = halting_step(h, x, remainder, ponder, units, output, eps, last, sticks)
    for old, new in zip((remainder, ponder, units, output), state):
        old.copy_(new)
    return remainder > 0


def _going(h: Tensor | None, remainder: Tensor, eps: float, last: bool) -> Tensor:
    """Which positions go on after this unit, where scores add up."""
    return torch.zeros_like(remainder, dtype=torch.bool) if last else (remainder > 0) & (remainder - h > eps)


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """A weight per image [N] or per position [N, H, W], shaped to multiply x, in the dtype of x."""
    shape = weight.shape + (1,) * (x.dim() - 1) if weight.dim() == 1 else (len(weight), 1, *weight.shape[1:])
    return weight.reshape(shape).to(x.dtype)


def _collect(values: Tensor, like: Tensor) -> Tensor:
    """The adjoint of `spread`: sum `values` (shape of x) down to the shape and dtype of `like`."""
    summed = values.flatten(1).sum(1) if like.dim() == 1 else values.sum(1)
    return summed.to(like.dtype)

"""Reference of `accel::halting_step`: one unit of adaptive computation time, at every position at once.

The state of a position is what is left of its halting budget: `remainder` = 1 - (sum of the halting scores so far)
while it runs, 0 once it has halted. After a unit with halting score h, a position that runs

* goes on, with weight w = h, if remainder - h > eps and the unit is not the last; the remainder falls by w;
* else halts, with weight w = remainder.

(A stick-breaking rule differs in w = h * remainder only.) One that halted before has weight 0. Figurnov et al. 2017,
arXiv 1612.02297.
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step, functional.

    Args:
        h: halting scores of this unit, [N] (ACT: x is [N, ...]) or [N, H, W] (SACT: x is [N, C, H, W]); None allowed
            in the last unit, which halts whatever still runs.
        x: the unit's output.
        remainder: like h; 1 before the first unit.
        ponder: like h; 1 before the first unit, rho = N + R after the last.
        units: int32, shape of h; 0 before the first unit, N after the last.
        output: like x, the sum of weight * x so far.
        eps: a position halts when its remainder would fall to eps or below.
        last: whether this is the last unit.

    Returns:
        (remainder, ponder, units, output, weight) after the unit; a position still runs where remainder > 0.
    """
    running, going = _decide(h, remainder, eps, last)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to (h, x, remainder), from those to the step's remainder, ponder, output and weight.

    (Those to the old ponder and output are `d_ponder` and `d_output` themselves.) When the position halts is a step
    function of h: the score of the unit it halts in gets no gradient.
    """
    running, going = _decide(h, remainder, eps, last)
    halts = running & ~going
    weight = remainder * halts if h is None else torch.where(going, h, remainder * halts)
    d_weight = d_weight + _collect(d_output * x, remainder)
    d_h = torch.where(going, d_weight - d_remainder, 0)
    d_old = torch.where(going, d_remainder, torch.where(halts, d_weight + d_ponder, 0))
    return d_h, d_output * spread(weight, x), d_old


def halting_step_(h, x, remainder, ponder, units, output, eps, last):
    """The same step, in place on remainder, ponder, units and output. Returns bool, shape of h: what still runs."""
    *state, _ = halting_step(h, x, remainder, ponder, units, output, eps, last)
    for old, new in zip((remainder, ponder, units, output), state):
        old.copy_(new)
    return remainder > 0


def _decide(h: Tensor | None, remainder: Tensor, eps: float, last: bool) -> tuple[Tensor, Tensor]:
    """(which positions run in this unit, which of them go on after it)."""
    running = remainder > 0
    if last or h is None:
        return running, torch.zeros_like(running)
    return running, running & (remainder - h > eps)


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """A weight per image [N] or per position [N, H, W], shaped to multiply x, in the dtype of x."""
    shape = weight.shape + (1,) * (x.dim() - 1) if weight.dim() == 1 else (len(weight), 1, *weight.shape[1:])
    return weight.reshape(shape).to(x.dtype)


def _collect(values: Tensor, like: Tensor) -> Tensor:
    """The adjoint of `spread`: sum `values` (shape of x) down to the shape and dtype of `like`."""
    summed = values.flatten(1).sum(1) if like.dim() == 1 else values.sum(1)
    return summed.to(like.dtype)

"""ACT and SACT over a whole stage of residual units, as loops over the `halting_step` op.

With L units x^1..x^L and halting scores h^1..h^(L-1) (the last unit has none), per image (ACT) or per position (SACT):

    N = min { l : h^1 + ... + h^l >= 1 - eps }, or L      units that run
    R = 1 - (h^1 + ... + h^(N-1))                         remainder
    p^l = h^l for l < N, R for l = N, 0 after             halting distribution, sums to 1
    output = sum_l p^l x^l,   rho = N + R                 ponder cost, between 2 and L + 1

rho jumps where N changes; between the jumps its gradient is -1 for every h^l with l < N and 0 for the others. Figurnov
et al. 2017, arXiv 1612.02297, with the conventions of the authors' code (ponder starts at 1, eps = 0.01).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from accel.ops import halting_step, ponder_cost

EPS = 0.01


@dataclasses.dataclass
class Halted:
    """What a stage did; per image [N] (ACT) or per position [N, H, W] (SACT).

    Attributes:
        output: sum of p^l x^l, like a unit's output.
        ponder: rho; differentiable.
        units: int32, N.
        distribution: [L, ...], p.
    """

    output: Tensor
    ponder: Tensor
    units: Tensor
    distribution: Tensor


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


def halt(scores: Sequence[Tensor], outputs: Sequence[Tensor], *, eps: float = EPS) -> Halted:
    """Combine the outputs of L units by their halting scores.

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
    heads = [lambda _, h=h: h for h in scores[: len(outputs) - 1]]
    units = [lambda _, x=x: x for x in outputs]
    shape = scores[0].shape
    return _run(units, heads, outputs[0], scores[0].new_ones(shape), eps, frozen=False)


def run_stage(
    units: Sequence[Callable[[Tensor], Tensor]],
    heads: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    *,
    spatial: bool,
    eps: float = EPS,
) -> Halted:
    """Run every unit densely and combine them; the oracle of sparse execution.

    Args:
        units: L residual units; the first may change shape and stride, and runs everywhere.
        heads: L - 1 functions of a unit's state, giving its halting scores in [0, 1], [N] or [N, H, W].
        x: input of the stage, [N, C, H, W].
        spatial: SACT: where a position has halted, the state keeps its value and goes on feeding its neighbours.
        eps: 0 <= eps < 1.

    Raises:
        ValueError: not one head fewer than units, or no unit.
    """
    if len(units) < 1 or len(heads) != len(units) - 1:
        raise ValueError(f"run_stage: L units need L - 1 heads, got {len(units)} units and {len(heads)} heads")
    x = units[0](x)
    shape = (x.shape[0], *x.shape[2:]) if spatial else x.shape[:1]
    remainder = x.new_ones(shape, dtype=torch.promote_types(x.dtype, torch.float32))  # bfloat16 ends at 1 - 0.004
    return _run([lambda state: state, *units[1:]], heads, x, remainder, eps, frozen=spatial)


def _run(
    units: Sequence[Callable[[Tensor], Tensor]],
    heads: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    remainder: Tensor,
    eps: float,
    frozen: bool,
) -> Halted:
    """The loop; with `frozen`, positions that have halted keep their state."""
    ponder, output = torch.ones_like(remainder), torch.zeros_like(x)
    count = torch.zeros_like(remainder, dtype=torch.int32)
    distribution = []
    for unit, head in zip(units, [*heads, None]):
        x = torch.where((remainder > 0).unsqueeze(1), unit(x), x) if frozen else unit(x)
        last = head is None
        h = None if last else head(x)
        remainder, ponder, count, output, p = halting_step(h, x, remainder, ponder, count, output, eps, last)
        distribution.append(p)
    return Halted(output, ponder, count, torch.stack(distribution))

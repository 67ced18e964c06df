"""halting_step: one unit of ACT, SACT or PACT in one pass over the state; functional for training, or in place.

| backward                | dtypes                          | layouts                | granularity | limits            |
|-------------------------|---------------------------------|------------------------|-------------|-------------------|
| functional form only:   | floating; int32 units;          | h [N] and x [N, ...],  | image (ACT) | N * H * W < 2**31 |
| h, x, and the old state | x and output may be narrower    | or h [N, H, W] and     | or position |                   |
|                         | than h, remainder and ponder    | x [N, C, H, W]         | (SACT)      |                   |

Figurnov et al. 2017, arXiv 1612.02297 (ACT of residual networks, and SACT) and arXiv 1712.00386 (PACT). The state of a
position is its `remainder`: what the units so far left of 1 while it runs, 0 once it has halted. A unit spends part of
it as the weight of its output: its score, where scores add up until the position halts; or its score times the
remainder, which is stick-breaking.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device, check_shape
from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.reference import halting_step as reference


def halting_step(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    ponder: Tensor,
    units: Tensor,
    output: Tensor,
    eps: float = 0.01,
    last: bool = False,
    sticks: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One unit: a position halts here if its scores, with this one, reach 1 - eps, or if the unit is the last.

    With `sticks` it spends the share h of what is left: it halts where h is 1, and in the last unit.

    Args:
        h: the unit's halting scores in [0, 1], [N] (ACT) or [N, H, W] (SACT); None allowed in the last unit.
        x: the unit's output, [N, ...] (ACT) or [N, C, H, W] (SACT). Without channels (C = 0), no output is summed.
        remainder: shape and dtype of h; 1 before the first unit, 0 where the position has halted.
        ponder: shape and dtype of h; 1 before the first unit, rho = N + R after the last; with `sticks`, the mean of N
            under the weights.
        units: int32, shape of h; 0 before the first unit, N after the last.
        output: shape and dtype of x, the sum of weight * x so far.
        eps: 0 <= eps < 1; without a meaning for `sticks`.
        last: whether this is the last unit of the stage.
        sticks: stick-breaking; differentiable everywhere.

    Returns:
        (remainder, ponder, units, output, weight): the new state, where remainder > 0 is what the next unit is needed
        for, and the halting distribution p of this unit, shaped like h: h where the position goes on, the remainder
        where it halts, 0 where it had halted before (with `sticks`, h * remainder). Of scores that add up, the one of
        the unit in which a position halts gets no gradient: when it halts is a step function.

    Raises:
        TypeError: dtypes that differ, or are not floating (int32 for `units`).
        ValueError: shapes or devices that do not fit, eps out of range, or no h before the last unit.
    """
    _check(h, x, remainder, ponder, units, output, eps, last)
    run = implementation("halting_step", x) if is_direct(h, x, remainder, ponder, output) else _STEP
    return tuple(run(h, x, remainder, ponder, units, output, eps, last, sticks))


def halting_step_(
    h: Tensor | None,
    x: Tensor,
    remainder: Tensor,
    ponder: Tensor,
    units: Tensor,
    output: Tensor,
    eps: float = 0.01,
    last: bool = False,
    sticks: bool = False,
) -> Tensor:
    """The same step without gradients, in place on remainder, ponder, units and output (contiguous or channels_last).

    Arguments and errors of `halting_step`. Returns bool, shaped like h: where the next unit is still needed.
    """
    _check(h, x, remainder, ponder, units, output, eps, last)
    direct = is_direct(h, x, remainder, ponder, output)
    run = implementation("halting_step_", x, "halting_step") if direct else _STEP_IN_PLACE
    return run(h, x, remainder, ponder, units, output, eps, last, sticks)


def _check(h, x, remainder, ponder, units, output, eps, last):
    if h is None and not last:
        raise ValueError("halting_step: h may be None in the last unit only; give the halting scores of this unit")
    if not 0 <= eps < 1:
        raise ValueError(f"halting_step: eps must be in [0, 1), got {eps}")
    shape = tuple(remainder.shape)
    if len(shape) not in (1, 3) or shape not in ((x.shape[0],), (x.shape[0], *x.shape[2:])):
        raise ValueError(
            f"halting_step: remainder must be [N] (ACT) or [N, H, W] (SACT) for x {tuple(x.shape)}, got {shape}"
        )
    joins = {"ponder": (ponder, remainder), "output": (output, x)}
    if h is not None:
        joins["h"] = (h, remainder)
    for name, (tensor, like) in joins.items():
        check_shape("halting_step", name, tensor, tuple(like.shape))
        check_device("halting_step", x, name, tensor)
        if tensor.dtype != like.dtype or not tensor.is_floating_point():
            raise TypeError(f"halting_step: {name} must be {like.dtype} as what it joins, got {tensor.dtype}")
    if units.dtype is not torch.int32:
        raise TypeError(f"halting_step: units must be int32, got {units.dtype}")
    check_shape("halting_step", "units", units, shape)


_RULE = "float eps, bool last, bool sticks=False"
_STATE = f"Tensor{{}} remainder, Tensor{{}} ponder, Tensor{{}} units, Tensor{{}} output, {_RULE}"


def _fake_step(h, x, remainder, ponder, units, output, *rule):
    return *(torch.empty_like(state) for state in (remainder, ponder, units, output)), torch.empty_like(remainder)


def _fake_in_place(h, x, remainder, *rest):
    return torch.empty_like(remainder, dtype=torch.bool)


def _fake_backward(h, x, remainder, *rest):
    return torch.empty_like(remainder), torch.empty_like(x), torch.empty_like(remainder)


_step = define(
    "halting_step",
    f"(Tensor? h, Tensor x, {_STATE.format('', '', '', '')}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_step,
    of=1,
)
define(
    "halting_step_",
    f"(Tensor? h, Tensor x, {_STATE.format('(a!)', '(b!)', '(c!)', '(d!)')}) -> Tensor",
    _fake_in_place,
    module="halting_step",
    of=1,
    mutates=("remainder", "ponder", "units", "output"),
)
_backward = define(
    "halting_step_backward",
    "(Tensor? h, Tensor x, Tensor remainder, Tensor d_remainder, Tensor d_ponder, Tensor d_output, Tensor d_weight, "
    f"{_RULE}) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    module="halting_step",
    of=1,
)


def _setup(ctx, inputs, output):
    h, x, remainder, _, _, _, *ctx.rule = inputs
    ctx.save_for_backward(h, x, remainder)


def _grad(ctx, d_remainder, d_ponder, _, d_output, d_weight):
    h, x, remainder = ctx.saved_tensors
    if d_output.stride() != x.stride():  # a pool's gradient is an expanded view: every unit would go through it slowly
        d_output = torch.empty_like(x).copy_(d_output)
    d_h, d_x, d_old = _STEP_BACKWARD(h, x, remainder, d_remainder, d_ponder, d_output, d_weight, *ctx.rule)
    return None if h is None else d_h, d_x, d_old, d_ponder, None, d_output, None, None, None


def _setup_again(ctx, inputs, output):
    *tensors, ctx.eps, ctx.last, ctx.sticks = inputs
    ctx.save_for_backward(*tensors)


def _grad_again(ctx, *grads):
    """Gradients of the gradients, which control variates need: by autograd through the reference."""
    with torch.enable_grad():
        given = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        found = reference.halting_step_backward(*given, ctx.eps, ctx.last, ctx.sticks)
        depend = [k for k, output in enumerate(found) if output.requires_grad]  # a last unit's score has none
        wanted = [t for t in given if t is not None]
        outputs, upstream = [found[k] for k in depend], [grads[k] for k in depend]
        got = iter(torch.autograd.grad(outputs, wanted, upstream, allow_unused=True, materialize_grads=True))
    return *(None if t is None else next(got) for t in given), None, None, None


_step.register_autograd(_grad, setup_context=_setup)
_backward.register_autograd(_grad_again, setup_context=_setup_again)
_STEP = torch.ops.accel.halting_step.default
_STEP_IN_PLACE = torch.ops.accel.halting_step_.default
_STEP_BACKWARD = torch.ops.accel.halting_step_backward.default

"""The checked cost: what every estimator evaluates in place of the user's ``f``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Cost:
    """``f`` with its contract enforced.

    Args:
        f: maps samples ``[rows, *batch_shape, *event_shape]`` to costs ``[rows, *c]`` where ``c`` is a prefix of
            ``batch_shape``. Entry ``c`` may depend on the latents under the same leading indices only: whatever lies
            under other indices is left out of its gradient (Rao-Blackwellisation of factorised costs).
        batch_shape: the batch shape of q as the user gave it.

    Raises (on call):
        TypeError: ``f`` returned something else than a floating-point tensor.
        ValueError: a wrong shape, or NaN.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], batch_shape: torch.Size) -> None:
        self.f = f
        self.batch_shape = batch_shape

    def __call__(self, x: Tensor) -> Tensor:
        costs = floating(self.f(x), "costs")
        rows, rest = x.shape[0], tuple(costs.shape[1:])
        if costs.dim() == 0 or costs.shape[0] != rows or rest != tuple(self.batch_shape[: len(rest)]):
            raise ValueError(
                f"f returned shape {tuple(costs.shape)} for {rows} samples of q with batch shape "
                f"{tuple(self.batch_shape)}; expected ({rows},) or ({rows}, *c) with c leading dimensions of the batch "
                "shape: sum over the other dimensions, not over the samples"
            )
        if costs.isnan().any():
            raise ValueError(f"f returned NaN for {int(costs.isnan().sum())} of {costs.numel()} costs")
        return costs

    def through(self, x: Tensor, estimator: str) -> Tensor:
        """Costs of an estimator that differentiates ``f``; a detached result would silently lose the gradient."""
        costs = self(x)
        if torch.is_grad_enabled() and x.requires_grad and not costs.requires_grad:
            raise ValueError(
                f"{estimator} differentiates through f, but f returned a value detached from its input; "
                "drop the .detach() or no_grad in f, or use ScoreFunction or MeasureValued, which need values only"
            )
        return costs


def floating(value: object, what: str) -> Tensor:
    """What ``f`` returned, which must be a floating-point tensor of `what`; else TypeError."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"a {value.dtype} tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"f must return a floating-point tensor of {what}, got {got}")
    return value

"""``expectation`` and ``jacobians``: the two ways to use an estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from .control_variates import ControlVariate, DeltaMethod, controlled_rows, sample_jacobians
from .cost import Cost
from .measure_valued import MeasureValued
from .pathwise import Pathwise
from .rows import check_parameters, expand_rows, parameter, parameter_names, unwrap
from .sampling import distribution_device, fork
from .score import ScoreFunction


class Estimator(Protocol):
    """What ``expectation`` needs of an estimator; write your own by providing it.

    ``rows`` gets a distribution whose batch shape starts with N and returns per-sample costs ``[N, *c]`` whose
    gradient in the parameters of row n is the n-th estimate. ``exact = True`` marks one that needs a single row.
    """

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor: ...


def expectation(
    f: Callable[[Tensor], Tensor],
    q: Distribution,
    num_samples: int,
    estimator: Estimator,
    *,
    generator: torch.Generator | None = None,
    control_variate: ControlVariate | DeltaMethod | None = None,
) -> Tensor:
    """Monte Carlo estimate of ``E_q f(x)`` whose backward is the chosen gradient estimator.

    Gradients reach whatever lies behind the parameters of q by the chain rule, and the parameters of f itself. First
    derivatives only.

    Args:
        f: maps samples ``[rows, *batch_shape, *event_shape]``, for any number of rows, to costs ``[rows, *c]``, ``c``
            a prefix of q's batch shape. A cost of shape ``[rows]`` sees all latents; with a longer prefix each entry
            is taken to depend on the latents under its own indices only, and gets no noise from the others
            (Rao-Blackwellisation of factorised costs).
        q: a torch distribution with batched parameters; ``Independent`` marks dimensions that share a cost.
        num_samples: N, at least 1 (ignored by Enumerate; DisARM counts pairs).
        estimator: an instance, for example ``ScoreFunction(baseline=LeaveOneOut())``.
        generator: of all noise. The same seed in two calls gives common random numbers.
        control_variate: for ScoreFunction, Pathwise and MeasureValued.

    Returns:
        The mean cost, of shape ``c``. Concrete returns the relaxed expectation.

    Several latents compose by nesting: let f itself return ``expectation(g, q2(x), ...)``, where the batch shape of
    ``q2`` begins with the rows of x. Every latent may have its own estimator, and q2 may depend on x or not
    (``q2.expand((len(x), *q2.batch_shape))``).

    Raises:
        TypeError: q is no distribution, the estimator no instance, f returns no floating-point tensor.
        ValueError: parameters outside their support or NaN, no samples, a wrong cost shape, NaN or detached costs, or
            an estimator that does not fit q; the message names an alternative.
    """
    cost, bare, names = _prepare(f, q, num_samples, estimator)
    rows = _row_function(cost, bare, names, estimator, generator, control_variate)
    return rows(expand_rows(bare, _row_count(estimator, num_samples))).mean(0)


def jacobians(
    f: Callable[[Tensor], Tensor],
    q: Distribution,
    num_samples: int,
    estimator: Estimator,
    *,
    generator: torch.Generator | None = None,
    control_variate: ControlVariate | DeltaMethod | None = None,
) -> dict[str, Tensor]:
    """Per-sample gradient estimates, for the study of their variance. Arguments and errors as in ``expectation``.

    Returns:
        For each parameter of q that requires a gradient, by the name it was given under (logits or probs, say), a
        tensor ``[num_samples, *parameter]`` whose mean over samples is the estimator. With factorised costs these
        are gradients of the sum of the costs. The rows of LeaveOneOut and of a fitted coefficient are not independent.

    Raises:
        ValueError: also where no parameter of q requires a gradient.
    """
    cost, bare, names = _prepare(f, q, num_samples, estimator)
    if not any(parameter(bare, name).requires_grad for name in names):
        known = ", ".join(names) or "none that can be read off it"
        raise ValueError(
            f"no parameter of {type(bare).__name__} requires a gradient (parameters: {known}); "
            "build q from tensors with requires_grad"
        )
    rows = _row_function(cost, bare, names, estimator, generator, control_variate)
    found = sample_jacobians(rows, bare, names, _row_count(estimator, num_samples))
    return {name: grad.expand(num_samples, *grad.shape[1:]) for name, grad in found.items()}


def _prepare(f: Callable, q: Distribution, num_samples: int, estimator: Estimator) -> tuple[Cost, Distribution, tuple]:
    if not isinstance(q, Distribution):
        raise TypeError(f"q must be a torch.distributions.Distribution, got {type(q).__name__}")
    if isinstance(estimator, type) or not hasattr(estimator, "rows"):
        raise TypeError(f"estimator must be an instance such as ScoreFunction(), got {estimator!r}")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples!r}; Enumerate() is exact without samples")
    bare = unwrap(q)
    names = parameter_names(bare)
    check_parameters(bare, names)
    return Cost(f, q.batch_shape), bare, names


def _row_count(estimator: Estimator, num_samples: int) -> int:
    return 1 if getattr(estimator, "exact", False) else num_samples


def _row_function(
    cost: Cost,
    q: Distribution,
    names: tuple[str, ...],
    estimator: Estimator,
    generator: torch.Generator | None,
    control: ControlVariate | DeltaMethod | None,
) -> Callable[[Distribution], Tensor]:
    """Maps q with rows to per-sample costs, with the control variate where there is one."""
    if control is None:
        return lambda expanded: estimator.rows(cost, expanded, generator)
    if not isinstance(estimator, (ScoreFunction, Pathwise, MeasureValued)):
        raise ValueError(
            f"a control_variate goes with ScoreFunction, Pathwise or MeasureValued, not {type(estimator).__name__}"
        )
    device = distribution_device(q)
    plain = estimator.plain() if isinstance(estimator, ScoreFunction) else estimator

    def seeded(choice: Estimator) -> Callable[[Cost, Distribution, int], Tensor]:
        return lambda some, expanded, seed: choice.rows(some, expanded, torch.Generator(device).manual_seed(seed))

    seeds = fork(generator, device), fork(generator, device)
    return controlled_rows(seeded(estimator), seeded(plain), control, cost, q, names, seeds)

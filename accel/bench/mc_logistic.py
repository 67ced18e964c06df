"""Bayesian logistic regression on the breast-cancer data by each estimator (JMLR 21(132) 2020, section 9.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn import functional as F

import accel
from accel.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
BATCH, LEARNING_RATE, SNAPSHOTS = 32, 1e-3, 20
# One measure-valued step looks at the base sample and, for each of 31 latents, at two points for the mean and one
# more for the scale: 94 evaluations a sample. The last entry spends as many on the score function.
EQUAL_EVALUATIONS = 94 * 50


@dataclass(frozen=True)
class Fit:
    """An estimator of the study with its samples per step."""

    build: Callable[[], accel.mc.Estimator]
    samples: int
    delta: bool = False

    def control(self) -> accel.mc.DeltaMethod | None:
        return accel.mc.DeltaMethod() if self.delta else None


FITS: dict[str, Fit] = {
    "score function, N=50": Fit(lambda: accel.mc.ScoreFunction(), 50),
    "score function, N=100": Fit(lambda: accel.mc.ScoreFunction(), 100),
    "score function + moving average, N=50": Fit(lambda: accel.mc.ScoreFunction(accel.mc.MovingAverage()), 50),
    "score function + delta method, N=10": Fit(lambda: accel.mc.ScoreFunction(), 10, delta=True),
    "score function + delta method, N=50": Fit(lambda: accel.mc.ScoreFunction(), 50, delta=True),
    "pathwise, N=50": Fit(lambda: accel.mc.Pathwise(), 50),
    "pathwise + delta method, N=50": Fit(lambda: accel.mc.Pathwise(), 50, delta=True),
    "measure-valued, coupled, N=50": Fit(lambda: accel.mc.MeasureValued(), 50),
    "measure-valued, independent, N=50": Fit(lambda: accel.mc.MeasureValued(coupled=False), 50),
    f"score function + moving average, N={EQUAL_EVALUATIONS}": Fit(
        lambda: accel.mc.ScoreFunction(accel.mc.MovingAverage()), EQUAL_EVALUATIONS
    ),
}


def breast_cancer() -> tuple[Tensor, Tensor]:
    """Standardised features with a constant column, ``[569, 31]``, and labels in {0, 1}.

    Raises:
        DataError: scikit-learn, which brings the data, is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ModuleNotFoundError as error:
        raise DataError("the breast-cancer data come with scikit-learn: pip install scikit-learn") from error
    features, labels = load_breast_cancer(return_X_y=True)
    x = torch.from_numpy(features)
    x = (x - x.mean(0)) / x.std(0)
    return torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1), torch.from_numpy(labels).to(x.dtype)


def _negative_likelihood(x: Tensor, y: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """Weights ``[rows, 31]`` -> minus the log-likelihood of the batch, scaled to the whole data, ``[rows]``."""

    def cost(weights: Tensor) -> Tensor:
        logits = weights @ x.T
        return scale * F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").mean(-1)

    return cost


def _fit(name: str, data: tuple[Tensor, Tensor], steps: int, seed: int) -> list[Row]:
    """SGD on the negative ELBO with a cosine schedule; one row per snapshot."""
    x, y = data
    fit, estimator = FITS[name], FITS[name].build()
    generator = torch.Generator().manual_seed(seed)
    loc, log_std = (torch.zeros(x.shape[1], dtype=x.dtype).requires_grad_() for _ in range(2))
    prior = td.Normal(torch.zeros_like(loc), 1.0)
    optimizer = torch.optim.SGD([loc, log_std], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(math.pi / 2 * step / steps))
    rows = []
    for step in range(steps + 1):
        if step % max(1, steps // SNAPSHOTS) == 0:
            snapshot = _snapshot(loc, log_std, data, fit, copy.deepcopy(estimator), seed)
            rows.append({"case": "logistic regression", "estimator": name, "step": step, **snapshot})
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        q = td.Normal(loc, log_std.exp())
        cost = _negative_likelihood(x[chosen], y[chosen], float(len(x)))
        loss = accel.mc.expectation(cost, q, fit.samples, estimator, generator=generator, control_variate=fit.control())
        loss = loss + td.kl_divergence(q, prior).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return rows


def _snapshot(
    loc: Tensor, log_std: Tensor, data: tuple[Tensor, Tensor], fit: Fit, estimator: accel.mc.Estimator, seed: int
) -> Row:
    """ELBO and accuracy on all data from 1000 samples, and the variance of one step's gradient in the mean."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    q = td.Normal(loc.detach(), log_std.detach().exp())
    samples = q.mean + q.stddev * torch.randn(1000, len(q.mean), generator=generator, dtype=x.dtype)
    cost = _negative_likelihood(x, y, float(len(x)))
    divergence = td.kl_divergence(q, td.Normal(torch.zeros_like(q.mean), 1.0)).sum()
    q = td.Normal(loc, log_std.exp())
    variance_samples = min(fit.samples, 100)
    found = accel.mc.jacobians(
        cost, q, variance_samples, estimator, generator=generator, control_variate=fit.control()
    )["loc"]
    return {
        "distribution": "Normal x31",
        "samples": fit.samples,
        "elbo": float(-(cost(samples).mean() + divergence)),
        "accuracy": float(((torch.sigmoid(samples @ x.T).mean(0) > 0.5) == (y > 0.5)).double().mean()),
        "gradient_variance": float(found.var(0).mean()) / fit.samples,
    }


def study(data: tuple[Tensor, Tensor], steps: int, seed: int) -> list[Row]:
    """All fits, `steps` steps each."""
    return [row for name in FITS for row in _fit(name, data, steps, seed)]


def conclusions(rows: list[Row]) -> list[Row]:
    """The survey's statements about this task, each with the numbers that decide it."""

    def last(name: str, column: str) -> float:
        return [row for row in rows if row["estimator"] == name][-1][column]

    def early(name: str, column: str = "gradient_variance") -> float:
        """At a tenth of the run, where the fits still move."""
        picked = [row for row in rows if row["estimator"] == name]
        return picked[len(picked) // 10][column]

    plain, averaged = "score function, N=50", "score function + moving average, N=50"
    delta, path, coupled = "score function + delta method, N=50", "pathwise, N=50", "measure-valued, coupled, N=50"
    rich = f"score function + moving average, N={EQUAL_EVALUATIONS}"
    independent = "measure-valued, independent, N=50"
    few, many = "score function + delta method, N=10", "score function, N=100"
    spread = [last(name, "elbo") for name in (path, coupled, delta)]
    checks = [
        (
            "a moving average and the delta method each lower the score function's variance",
            early(averaged) < early(plain) and early(delta) < early(plain),
            [early(plain), early(averaged), early(delta)],
        ),
        (
            "the delta method with 10 samples has no more variance than 100 plain ones",
            early(few) <= early(many),
            [early(few), early(many)],
        ),
        (
            "measure-valued gradients have about the pathwise variance, without gradients of f",
            0.2 < early(coupled) / early(path) < 5,
            [early(coupled), early(path)],
        ),
        (
            "at equal evaluations the score function with a moving average has less variance than measure-valued",
            early(rich) < early(coupled),
            [early(rich), early(coupled)],
        ),
        (
            "coupling makes little difference for the mean here",
            0.2 < early(independent) / early(coupled) < 5,
            [early(independent), early(coupled)],
        ),
        ("the low-variance estimators end at the same ELBO", max(spread) - min(spread) < 2, spread),
    ]
    return [
        {"case": "survey, logistic regression", "claim": claim, "holds": holds, "numbers": numbers}
        for claim, holds, numbers in checks
    ]


def draw(rows: list[Row]) -> Figure:
    """ELBO and gradient variance over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(FITS):
        picked = [row for row in rows if row["estimator"] == name]
        steps = [row["step"] for row in picked]
        left.plot(steps, [row["elbo"] for row in picked], color=f"C{number}", label=name)
        right.plot(steps, [row["gradient_variance"] for row in picked], color=f"C{number}")
    left.set(title="ELBO on all data", xlabel="step", ylabel="nats")
    best = max(row["elbo"] for row in rows)
    left.set_ylim(best - 40, best + 2)
    right.set(title="variance of one step's gradient in a mean", xlabel="step", yscale="log")
    figure.legend(loc="outside lower center", ncols=3)
    figure.suptitle("Bayesian logistic regression, breast cancer (569 x 31), batch 32")
    return figure

"""Variance on the survey's toy integrands and against the dimension (Mohamed et al., JMLR 21(132) 2020, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributions as td

import accel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

# x ~ N(1, 1); cost, and the sweep of its parameter k
SWEEPS: dict[str, tuple[Callable[[Tensor, float], Tensor], list[float]]] = {
    "(x - k)^2": (lambda x, k: (x - k) ** 2, [-3 + 0.5 * i for i in range(13)]),
    "exp(-k x^2)": (lambda x, k: torch.exp(-k * x**2), [0.1 * 10 ** (i / 6) for i in range(13)]),
    "cos(k x)": (lambda x, k: torch.cos(k * x), [0.5 + 0.375 * i for i in range(13)]),
}
# isotropic Gaussians in D dimensions: mean, cost
DIMENSIONS = (1, 4, 16, 64, 256)
LADDERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "100 at mean 0.5": (0.5, lambda x: 0 * x.sum(-1) + 100),
    "sum x at mean 0.5": (0.5, lambda x: x.sum(-1)),
    "sum x^4 at mean 10": (10.0, lambda x: (x**4).sum(-1)),
}


def _baseline() -> accel.mc.ControlVariate:
    """The constant 1: its estimator is the score itself, so its fitted coefficient is the optimal baseline."""
    return accel.mc.ControlVariate(lambda x, q: torch.ones_like(x), lambda q: 1 + 0 * q.mean, fresh_samples=1000)


ESTIMATORS: dict[str, Callable[[], tuple[accel.mc.Estimator, accel.mc.ControlVariate | None]]] = {
    "score function": lambda: (accel.mc.ScoreFunction(), None),
    "score function, optimal baseline": lambda: (accel.mc.ScoreFunction(), _baseline()),
    "pathwise": lambda: (accel.mc.Pathwise(), None),
    "measure-valued, coupled": lambda: (accel.mc.MeasureValued(), None),
    "measure-valued, independent": lambda: (accel.mc.MeasureValued(coupled=False), None),
}
COLOURS = {name: f"C{number}" for number, name in enumerate(ESTIMATORS)}


def _normal(mean: float, dimension: int | None = None) -> td.Distribution:
    shape = () if dimension is None else (dimension,)
    loc = torch.full(shape, mean, dtype=torch.float64, requires_grad=True)
    q = td.Normal(loc, torch.ones(shape, dtype=torch.float64).requires_grad_())
    return q if dimension is None else td.Independent(q, 1)


def integrand_sweeps(num_samples: int, seed: int) -> list[Row]:
    """One row per integrand, k, estimator and parameter: variance of a single-sample gradient at N(1, 1)."""
    rows = []
    for integrand, (cost, sweep) in SWEEPS.items():
        for k in sweep:
            for name, build in ESTIMATORS.items():
                estimator, control = build()
                found = accel.mc.jacobians(
                    lambda x, cost=cost, k=k: cost(x, k),
                    _normal(1.0),
                    num_samples,
                    estimator,
                    generator=torch.Generator().manual_seed(seed),
                    control_variate=control,
                )
                rows += [
                    {
                        "case": integrand,
                        "estimator": name,
                        "distribution": "Normal(1, 1)",
                        "k": k,
                        "parameter": parameter,
                        "samples": num_samples,
                        "mean": float(grad.mean()),
                        "variance": float(grad.var()),
                    }
                    for parameter, grad in found.items()
                ]
    return rows


def dimension_sweep(num_samples: int, seed: int) -> list[Row]:
    """One row per cost, dimension and estimator: gradient variance of one mean, averaged over the coordinates."""
    rows = []
    for case, (mean, cost) in LADDERS.items():
        for dimension in DIMENSIONS:
            for name in ("score function", "pathwise", "measure-valued, coupled"):
                if name == "pathwise" and case.startswith("100"):
                    continue  # a constant has no path to differentiate
                generator = torch.Generator().manual_seed(seed)
                q = _normal(mean, dimension)
                grad = accel.mc.jacobians(cost, q, num_samples, ESTIMATORS[name]()[0], generator=generator)["loc"]
                rows.append(
                    {
                        "case": case,
                        "estimator": name,
                        "distribution": f"Normal({mean:g}, 1)",
                        "dimension": dimension,
                        "samples": num_samples,
                        "variance": float(grad.var(0).mean()),
                    }
                )
    return rows


def conclusions(toy: list[Row], dimension: list[Row]) -> list[Row]:
    """The survey's statements about these figures, each with the numbers that decide it."""

    def variance(case: str, estimator: str, k: float, parameter: str = "loc") -> float:
        wanted = (case, estimator, k, parameter)
        return next(r["variance"] for r in toy if (r["case"], r["estimator"], r["k"], r["parameter"]) == wanted)

    def growth(case: str, estimator: str) -> float:
        """Slope of log variance against log dimension over the upper half of the ladder."""
        picked = {r["dimension"]: r["variance"] for r in dimension if (r["case"], r["estimator"]) == (case, estimator)}
        low, high = picked[16], picked[256]
        return math.log(high / low) / math.log(16) if low > 0 else 0.0

    path = [variance("(x - k)^2", "pathwise", k) for k in SWEEPS["(x - k)^2"][1]]
    fast, slow = SWEEPS["cos(k x)"][1][-1], SWEEPS["cos(k x)"][1][0]
    score, pathwise = (variance("cos(k x)", name, fast) for name in ("score function", "pathwise"))
    score_slow, pathwise_slow = (variance("cos(k x)", name, slow) for name in ("score function", "pathwise"))
    steep = growth("sum x at mean 0.5", "score function")
    flat = [
        growth(case, name)
        for case in ("sum x at mean 0.5", "sum x^4 at mean 10")
        for name in ("pathwise", "measure-valued, coupled")
    ]
    far = variance("(x - k)^2", "score function", -3.0)
    helped = variance("(x - k)^2", "score function, optimal baseline", -3.0)
    checks = [
        ("pathwise variance of (x - k)^2 is 4 s^2 for every k", max(abs(v / 4 - 1) for v in path) < 0.05, path),
        (
            "cos(k x): the pathwise variance overtakes the score function's as k grows",
            pathwise > score and pathwise_slow < score_slow,
            [pathwise_slow, score_slow, pathwise, score],
        ),
        ("a baseline helps the score function most where the cost is large", helped < far / 2, [far, helped]),
        ("sum x: the score function's variance grows about quadratically with D", 1.5 < steep < 2.3, [steep]),
        ("pathwise and measure-valued variances do not grow with D", max(map(abs, flat)) < 0.2, flat),
    ]
    return [{"case": "survey", "claim": claim, "holds": holds, "numbers": numbers} for claim, holds, numbers in checks]


def draw_sweeps(rows: list[Row]) -> Figure:
    """Log variance over k, one panel per integrand and parameter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(2, 3, sharex="col")
    for column, case in enumerate(SWEEPS):
        for line, parameter in enumerate(("loc", "scale")):
            panel = panels[line][column]
            for name in ESTIMATORS:
                picked = [r for r in rows if (r["case"], r["parameter"], r["estimator"]) == (case, parameter, name)]
                panel.plot(
                    [r["k"] for r in picked], [r["variance"] for r in picked], ".-", color=COLOURS[name], label=name
                )
            panel.set_yscale("log")
            if case.startswith("exp"):
                panel.set_xscale("log")
            panel.set_title(f"{case}, d / d {'mean' if parameter == 'loc' else 'std'}")
            panel.set_ylim(bottom=max(panel.get_ylim()[0], 1e-3))  # a coupled pair is exact at k = 1
            panel.set_ylabel("variance of one sample" if column == 0 else "")
            panel.set_xlabel("k" if line else "")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle("Gradient estimators at x ~ N(1, 1)")
    return figure


def draw_dimension(rows: list[Row]) -> Figure:
    """Log variance over log dimension, one panel per cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for panel, case in zip(figure.subplots(1, len(LADDERS)), LADDERS):
        for name in ("score function", "pathwise", "measure-valued, coupled"):
            picked = [r for r in rows if (r["case"], r["estimator"]) == (case, name) and r["variance"] > 1e-20]
            if picked:
                panel.plot(
                    [r["dimension"] for r in picked],
                    [r["variance"] for r in picked],
                    ".-",
                    color=COLOURS[name],
                    label=name,
                )
        panel.set(xscale="log", yscale="log", title=case, xlabel="dimension", ylabel="variance of one coordinate")
        panel.set_ylim(panel.get_ylim()[0] / 5, panel.get_ylim()[1] * 5)
        panel.legend()
    figure.suptitle("x ~ N(mean, I); where an estimator is missing, its variance is 0")
    return figure

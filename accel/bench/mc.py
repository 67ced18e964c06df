"""`accel bench mc`: bias, variance and cost of every gradient estimator, as rows and figures.

Files written, each whole or not at all: mc_ztest.jsonl (every estimator on every distribution it fits, against exact
gradients), mc_toy, mc_dimension and mc_logistic (.jsonl and .png: the studies of Mohamed et al., JMLR 21(132) 2020,
sections 3 and 9), and mc.jsonl (variance reduction by leave-one-out, and the survey's conclusions checked on the rows).
"""

from __future__ import annotations

import datetime
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

import accel
from accel.bench import mc_cases, mc_logistic, mc_toy
from accel.files import write_figure, write_rows

Row = dict[str, Any]


def run(out_dir: pathlib.Path, seed: int = 0, quick: bool = False) -> list[Row]:
    """Run all studies into `out_dir` (made if missing) and return their rows; `quick` takes far fewer samples.

    Raises:
        DataError: scikit-learn is missing, or the folder cannot be written.
    """
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    data = mc_logistic.breast_cancer()  # first, so that a missing package is told before the long work
    stamp = {
        "seed": seed,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    ztest = list(bias_grid(2_000 if quick else 100_000, seed))
    toy = mc_toy.integrand_sweeps(1_000 if quick else 100_000, seed)
    dimension = mc_toy.dimension_sweep(100 if quick else 2_000, seed)
    logistic = mc_logistic.study(data, 5 if quick else 1_000, seed)
    summary = [leave_one_out_row(50 if quick else 1_000, seed), ztest_row(ztest, seed), *temperature_rows(ztest)]
    summary += mc_toy.conclusions(toy, dimension) + mc_logistic.conclusions(logistic)
    tables = {"mc_ztest": ztest, "mc_toy": toy, "mc_dimension": dimension, "mc_logistic": logistic, "mc": summary}
    for name, rows in tables.items():
        write_rows(out_dir / f"{name}.jsonl", ({**row, **stamp} for row in rows))
    figures = {
        "mc_toy": mc_toy.draw_sweeps(toy),
        "mc_dimension": mc_toy.draw_dimension(dimension),
        "mc_logistic": mc_logistic.draw(logistic),
    }
    for name, figure in figures.items():
        write_figure(out_dir / f"{name}.png", figure)
    return [{**row, **stamp} for rows in tables.values() for row in rows]


def bias_grid(num_samples: int, seed: int) -> Iterator[Row]:
    """One row per estimator, distribution and integrand: z-score of the worst parameter coordinate, or the bias."""
    for method, chosen in mc_cases.METHODS.items():
        integrands = dict(mc_cases.INTEGRANDS)
        if chosen.values_only:
            integrands["step"] = mc_cases.STEP
        for case in chosen.cases:
            for number, (name, integrand) in enumerate(integrands.items()):
                counted = _Counter(integrand)
                start = time.perf_counter()
                found = mc_cases.gradients(case, method, counted, num_samples, seed + number)
                seconds = time.perf_counter() - start
                scores = mc_cases.score_cell(found, mc_cases.CASES[case].exact(integrand))
                yield {
                    "case": name,
                    "estimator": method,
                    "distribution": case,
                    "samples": num_samples,
                    "claims_unbiased": not chosen.biased,
                    **scores,
                    "evaluations_per_sample": counted.rows / num_samples,
                    "seconds": seconds,
                }


class _Counter:
    """An integrand that counts the values it was asked for."""

    def __init__(self, integrand: Callable[[Tensor], Tensor]) -> None:
        self.integrand = integrand
        self.rows = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += x.numel()
        return self.integrand(x)


def ztest_row(rows: list[Row], seed: int) -> Row:
    """The grid in one line: number of cells, worst z-score, cells at 4 or above."""
    unbiased = [row for row in rows if row["claims_unbiased"]]
    worst = max(unbiased, key=lambda row: row["z"])
    planted = planted_row(max(row["samples"] for row in rows), seed)
    return {
        "case": "z-test grid",
        "estimator": "all unbiased",
        "distribution": "all",
        "cells": len(unbiased),
        "worst_z": worst["z"],
        "worst_cell": [worst["estimator"], worst["distribution"], worst["case"]],
        "cells_at_4_or_more": sum(row["z"] >= 4 for row in unbiased),
        "planted_bias_z": planted,
    }


def temperature_rows(rows: list[Row]) -> list[Row]:
    """For each relaxed estimator, in how many cells the bias at temperature 0.1 is below that at 1.

    Concrete's bias vanishes with the temperature. The straight-through one's does not: f' is seen at
    the discrete points only, so what remains is the error of the trapezoid rule, 0 for a quadratic f.
    """
    found = []
    for family in ("Concrete", "StraightThrough"):
        by_temperature = {
            t: {
                (row["distribution"], row["case"]): row["bias_norm"]
                for row in rows
                if row["estimator"] == f"{family}, temperature {t}"
            }
            for t in ("1", "0.5", "0.25", "0.1")
        }
        cells = by_temperature["1"]
        found.append(
            {
                "case": "bias against temperature",
                "estimator": family,
                "distribution": "all relaxed",
                "cells": len(cells),
                "cells_with_less_bias_at_0.1_than_at_1": sum(by_temperature["0.1"][c] < cells[c] for c in cells),
                "mean_bias_norm": {t: sum(b.values()) / max(1, len(b)) for t, b in by_temperature.items()},
            }
        )
    return found


def planted_row(num_samples: int, seed: int) -> float:
    """z-score of a score function whose baseline peeks at its own cost, 5 % of it (Poisson rate, quadratic)."""
    q = td.Poisson(torch.tensor(2.3, dtype=torch.float64, requires_grad=True))
    case, integrand = mc_cases.CASES["Poisson"], mc_cases.INTEGRANDS["quadratic"]
    peeking = accel.mc.ScoreFunction(baseline=lambda costs: 0.05 * costs)
    generator = torch.Generator().manual_seed(seed)
    found = accel.mc.jacobians(case.cost(integrand), q, num_samples, peeking, generator=generator)
    return mc_cases.score_cell(found, case.exact(integrand))["z"]


def leave_one_out_row(repeats: int, seed: int) -> Row:
    """Variance without baseline over that of leave-one-out: 4 samples, 200 Bernoullis at 1/2, sum (b - 0.45)^2."""
    q = td.Bernoulli(logits=torch.zeros(200, dtype=torch.float64, requires_grad=True))

    def variance(estimator: accel.mc.ScoreFunction) -> float:
        generator = torch.Generator().manual_seed(seed)
        cost = lambda b: ((b - 0.45) ** 2).sum(-1)  # noqa: E731
        estimates = [
            accel.mc.jacobians(cost, q, 4, estimator, generator=generator)["logits"].mean(0) for _ in range(repeats)
        ]
        return float(torch.stack(estimates).var(0).sum())

    plain, others = variance(accel.mc.ScoreFunction()), variance(accel.mc.ScoreFunction(accel.mc.LeaveOneOut()))
    return {
        "case": "leave-one-out against no baseline",
        "estimator": "ScoreFunction",
        "distribution": "Bernoulli x200",
        "samples": 4,
        "repeats": repeats,
        "variance_without": plain,
        "variance_leave_one_out": others,
        "ratio": plain / others,
    }

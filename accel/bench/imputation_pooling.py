"""Cases of kind `imputation_pooling`: is a regression on imputed tables, pooled by Rubin's rules, as sure as it says?

A case: `table` and `columns` as in `accel.bench.imputation`, `log` (columns whose logarithm is taken), `target` (the
column that is regressed on all others), `rows`, `mechanism`, `share`, `imputations`, `amputations`, `numpy_seed`,
`block` (of several cases, which draw other samples), `rivals`, and of ours `epochs`, where not by default. The whole
table is the population: least squares on it give the truth. Every amputation draws `rows` of it without replacement,
loses cells, and asks each method for its intervals of 95 %; "complete" is given the sample with nothing lost.

Rows, one a method: `covered`, of each amputation the share of the coefficients inside their intervals; `coverage`, its
mean; `width`, the mean of the intervals' widths over those of "complete".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.bench.amputation import amputate
from accel.bench.imputation import alike, check_rivals, read_table, timed
from accel.bench.imputation_rivals import run_rival
from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("case", "method", "coverage", "width", "seconds")
_TAIL = 2.5758293035489004  # of a normal: 99 % lie within as many deviations


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    from accel.vae.pooling import pool

    check_rivals(case["rivals"])
    table = read_table(case)
    for name in case["log"]:
        table[name] = np.log(table[name])
    classes = {name: sorted(table[name].dropna().unique()) for name in table if table[name].dtype == object}
    truth, _ = least_squares(table, case["target"], classes)
    methods = _methods(case, settings.seed)
    found: dict[str, dict[str, list]] = {name: {"covered": [], "width": [], "seconds": []} for name in methods}
    wrong = set()
    for number in range(case["amputations"]):
        rng = np.random.default_rng([case["numpy_seed"], case["block"], number])
        sample = table.iloc[rng.choice(len(table), case["rows"], replace=False)].reset_index(drop=True)
        lost = amputate(sample, case["mechanism"], case["share"], rng)
        given, whole = sample.mask(lost), None
        for name, impute in methods.items():
            completed, seconds = ([sample] * 2, 0.0) if impute is None else impute(given)
            found[name]["seconds"].append(seconds)
            fits = [least_squares(one, case["target"], classes) for one in completed]
            low, high = pool(fits, df_complete=len(sample) - len(truth)).intervals(0.95)
            whole = high - low if whole is None else whole
            found[name]["covered"].append(round(float(((low <= truth) & (truth <= high)).mean()), 4))
            found[name]["width"].append(float(((high - low) / whole).mean()))
            wrong |= {name} if not all(alike(one, given) for one in completed) else set()
    for name, values in found.items():
        means = {key: round(float(np.mean(values[key])), 4) for key in ("width", "seconds")}
        coverage = round(float(np.mean(values["covered"])), 4)
        told = {"method": name, "table": case["table"], "coverage": coverage, "covered": values["covered"], **means}
        yield {**told, "error": 0.0, "correct": name not in wrong}


def least_squares(table: pd.DataFrame, target: str, classes: Mapping[str, Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients, their variances) of `target` on a constant, numbers, and all classes of a column but its first."""
    columns = [np.ones(len(table))]
    for name in table.columns:
        if name in classes:
            columns += [(table[name] == one).to_numpy(float) for one in classes[name][1:]]
        elif name != target:
            columns.append(table[name].to_numpy(float))
    x, y = np.stack(columns, 1), table[target].to_numpy(float)
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ (x.T @ y)
    return beta, np.diagonal(inverse) * ((y - x @ beta) ** 2).sum() / (len(y) - len(beta))


def summary(saved: Sequence[Row]) -> list[Row]:
    """One row a table and method: coverage over all blocks, how far from 0.95 chance alone may bring it (99 %,
    clustered by amputation), and whether it is within; mean width."""
    found, keys = [], dict.fromkeys((row["table"], row["method"]) for row in saved)
    for table, method in keys:
        own = [row for row in saved if (row["table"], row["method"]) == (table, method)]
        covered = np.concatenate([row["covered"] for row in own])
        chance = _TAIL * covered.std(ddof=1) / len(covered) ** 0.5 if len(covered) > 1 else np.inf
        line = {"table": table, "method": method, "amputations": len(covered), "coverage": round(covered.mean(), 4)}
        line |= {"chance_99": round(chance, 4), "within": bool(abs(covered.mean() - 0.95) <= chance)}
        found.append(line | {"width": round(float(np.mean([row["width"] for row in own])), 4)})
    return found


def _methods(case: Mapping[str, Any], seed: int) -> dict[str, Callable[[pd.DataFrame], tuple] | None]:
    from accel.vae.imputer import Imputer

    def ours(given: pd.DataFrame) -> tuple:
        imputer = Imputer(epochs=case.get("epochs"), random_state=seed)
        return timed(lambda: imputer.fit(given).impute(given, case["imputations"]))

    def runner(name: str) -> Callable[[pd.DataFrame], tuple]:
        return lambda given: run_rival(name, given, case["imputations"], seed)

    return {"complete": None, "ours": ours, **{name: runner(name) for name in case["rivals"]}}

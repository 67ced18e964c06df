"""Cases of kind `imputation_tables`: rows that nobody learned from, with lost cells, filled by ours and by what people
use.

A case: `table` and `columns` as in `accel.bench.imputation`, `rows` (at most; drawn), `mechanism` and `share` of the
lost cells (`accel.bench.amputation`), `test` (share of the rows that is not learned from), `numpy_seed` of all of this,
`imputations`, `rivals`, and of ours `epochs`, where not by default. mice ignores the rows to be judged (its `ignore`);
miceforest has seen them, see there.

Rows, one a method: `combined`, over the columns the mean of NRMSE (numbers) and of the share of wrong classes, of the
method's point estimates: ours of `transform`, others' the mean or the majority of their imputations; `rank` by it, of
ours by "ours, fixed scale" alone; `over_missforest` and `over_simple` (means and modes), the ratios of it. Of methods
that draw: `crps` over the column's deviation, `log_loss` of the draws' classes (of K classes each counts half a draw
more), `coverage_90` of the intervals of the draws; and their ratios to mice's and miceforest's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.bench.amputation import amputate
from accel.bench.imputation import alike, cell_errors, check_rivals, read_table, timed
from accel.bench.imputation_rivals import run_rival
from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("case", "method", "combined", "rank", "crps", "log_loss", "coverage_90", "seconds")
POINTS, DRAWS, SIMPLE = "ours, fixed scale", "ours, learned scale", "mean and mode"
_DRAWN = ("crps", "log_loss")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Completed tables of the rows to judge: those that point estimates are made of, and draws, where there are any."""

    points: list[pd.DataFrame]
    draws: list[pd.DataFrame] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A table without its lost cells, whose first `learn` rows may be learned from, and the truth of the others."""

    given: pd.DataFrame
    learn: int
    truth: pd.DataFrame
    lost: np.ndarray
    imputations: int
    seed: int
    epochs: int | None = None

    @property
    def old(self) -> pd.DataFrame:
        return self.given[: self.learn]

    @property
    def new(self) -> pd.DataFrame:
        return self.given[self.learn :]


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    check_rivals(case["rivals"])
    problem = pose(case, settings.seed)
    found = []
    for method, answer in _methods(case["rivals"], problem).items():
        given, seconds = answer()
        untouched = all(alike(one, problem.new) for one in (*given.points, *given.draws))
        row = {"method": method, "mechanism": case["mechanism"], **judged(problem, given), "seconds": seconds}
        found.append({**row, "error": 0.0, "correct": untouched})
    compare(found)
    yield from found


def pose(case: Mapping[str, Any], seed: int) -> Problem:
    """Draw rows, split them, lose cells; classes that no row to learn from shows are lost to all, judged by none."""
    rng = np.random.default_rng(case["numpy_seed"])
    table = read_table(case)
    table = table.iloc[rng.permutation(len(table))[: case["rows"]]].reset_index(drop=True)
    lost = amputate(table, case["mechanism"], case["share"], rng)
    learn = round((1 - case["test"]) * len(table))
    given = table.mask(lost)
    for place, name in enumerate(table.columns):
        if table[name].dtype == object:
            unknown = ~table[name].isin(given[name][:learn].dropna()).to_numpy()
            given.loc[unknown, name] = np.nan
            lost[unknown, place] = False
    return Problem(given, learn, table[learn:], lost[learn:], case["imputations"], seed, case.get("epochs"))


def judged(problem: Problem, answer: Answer) -> Row:
    """What the module says of a method alone."""
    numbers, wrong = cell_errors(problem.truth, answer.points, problem.lost)
    parts = [np.sqrt(np.mean(one**2)) for one in numbers.values()] + [np.mean(one) for one in wrong.values()]
    row = {"combined": round(float(np.mean(parts)), 4)}
    return row | (_distribution(problem, answer.draws) if answer.draws else {})


def _distribution(problem: Problem, draws: Sequence[pd.DataFrame]) -> Row:
    from pandas.api.types import is_numeric_dtype

    from accel.vae.calibration import QUANTILES, crps

    scores, losses, inside = [], [], []
    for place, name in enumerate(problem.truth.columns):
        cells = problem.lost[:, place] & problem.truth[name].notna().to_numpy()
        if not cells.any():
            continue
        right = problem.truth[name][cells].to_numpy()
        drawn = np.stack([one[name][cells].to_numpy() for one in draws], 1)
        if is_numeric_dtype(problem.truth[name]):
            drawn = drawn.astype(float)
            scores.append(crps(right, drawn).mean() / problem.truth[name].std(ddof=0))
            low, high = np.quantile(drawn, [0.05, 0.95], axis=1, method=QUANTILES)
            inside.append((low <= right) & (right <= high))
        else:
            classes = problem.old[name].nunique()
            chance = ((drawn == right[:, None]).sum(1) + 0.5) / (len(draws) + 0.5 * classes)
            losses.append(-np.log(chance).mean())
    found = {"crps": np.mean(scores), "coverage_90": np.mean(np.concatenate(inside))} if scores else {}
    found |= {"log_loss": np.mean(losses)} if losses else {}
    return {key: round(float(value), 4) for key, value in found.items()}


def compare(found: list[Row]) -> None:
    """Add ranks, and ratios to the rivals that were run."""
    by_name = {row["method"]: row for row in found}
    ranked = [row["combined"] for row in found if row["method"] != DRAWS]
    for row in found:
        if row["method"] != DRAWS:
            row["rank"] = 1 + sum(other < row["combined"] for other in ranked)
        for rival, name in (("missforest", "over_missforest"), (SIMPLE, "over_simple")):
            if rival in by_name:
                row[name] = round(row["combined"] / by_name[rival]["combined"], 4)
        for rival in ("mice", "miceforest"):
            for score in _DRAWN:
                if score in row and score in by_name.get(rival, {}):
                    row[f"{score}_over_{rival}"] = round(row[score] / by_name[rival][score], 4)


def summary(saved: Sequence[Row]) -> list[Row]:
    """One row a method, over all cases in the file: mean rank, geometric means of ratios, mean coverage."""
    found = []
    for method in dict.fromkeys(row["method"] for row in saved):
        own = [row for row in saved if row["method"] == method]
        line: Row = {"method": method, "cases": len(own)}
        for key in ("rank", "coverage_90"):
            values = [row[key] for row in own if key in row]
            line |= {f"mean_{key}": round(float(np.mean(values)), 3)} if values else {}
        for key in (
            "over_missforest",
            "over_simple",
            *(f"{s}_over_{r}" for s in _DRAWN for r in ("mice", "miceforest")),
        ):
            values = [row[key] for row in own if key in row]
            line |= {key: round(float(np.exp(np.mean(np.log(values)))), 4)} if values else {}
        found.append(line)
    return found


def _methods(rivals: Sequence[str], problem: Problem) -> dict[str, Callable[[], tuple[Answer, float]]]:
    from accel.vae.imputer import Imputer

    def fit(scale: str) -> Imputer:
        return Imputer(scale=scale, epochs=problem.epochs, random_state=problem.seed).fit(problem.old)

    def fixed() -> Answer:
        return Answer([fit("fixed").transform(problem.new)])

    def learned() -> Answer:
        fitted = fit("learned")
        return Answer([fitted.transform(problem.new)], fitted.impute(problem.new, problem.imputations))

    def simple() -> Answer:
        old = problem.old
        fills = {name: old[name].mode()[0] if old[name].dtype == object else old[name].mean() for name in old}
        return Answer([problem.new.fillna(fills)])

    def rival(name: str) -> tuple[Answer, float]:
        done, seconds = run_rival(name, problem.given, problem.imputations, problem.seed, problem.learn)
        return Answer(done, done if len(done) > 1 else []), seconds

    own = {POINTS: fixed, DRAWS: learned, SIMPLE: simple}
    return {name: functools.partial(timed, answer) for name, answer in own.items()} | {
        name: functools.partial(rival, name) for name in rivals
    }

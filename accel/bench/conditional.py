"""Cases of kind `conditional`: features drawn given others, as explanations need them, beside shapiq's imputers.

A case: `toy` (one of `accel.bench.conditional_toys.TOYS`, of `features` features) or `table` (of
`accel.bench.imputation_sources`, with `target`, and `classes`, the ordered classes of its columns of text); `rows` to
learn from, `explained` rows under `coalitions` masks (a feature is hidden with probability 1/2, at least one),
`samples` of each; `rivals`; and `imputer`, options of ours. What is explained is the toy's own function, or gradient
boosting that was trained on other rows of the table.

Rows, one a method: v is the mean of the function over the samples of a row under a mask; `msev`, the mean of (f(x) -
v)^2, which needs no truth (Olsen et al. 2022, JMLR 23(213)); of toys `rmse`, of v to the exact expectation, over the
deviation of f, and `over_exact`, `msev` over that of the exact expectation; of ours `over_rival`, `rmse` over the
best rival's, or `msev` where there is no exact one; `seconds`, training and sampling.

With `lost`, a share of the cells of a toy is lost completely at random, and `over_exact` is the root mean squared error
of what `Imputer.transform` fills in over that of the exact conditional means.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from accel.bench.conditional_toys import TOYS, GaussianMixture, Toy
from accel.bench.imputation_sources import read_source
from accel.bench.runner import Row, Settings
from accel.errors import ConfigError

SHOWN = ("case", "method", "rmse", "msev", "over_exact", "over_rival", "seconds")
_JUDGES = 5000  # rows of a table that the explained function is trained on
Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Attributes: known [N, D], to learn from; x [R, D], to be explained; predict, [N, D] -> [N]; classes, of column
    numbers, how many (their values are 0, 1, ...); expectation, of a row and a mask, where it is known."""

    known: np.ndarray
    x: np.ndarray
    predict: Callable[[np.ndarray], np.ndarray]
    classes: Mapping[int, int]
    expectation: Callable[[np.ndarray, np.ndarray], float] | None


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    rng = np.random.default_rng(settings.seed)
    if "lost" in case:
        yield _lost(case, rng, settings.seed)
        return
    problem = _of_toy(case, rng) if "toy" in case else _of_table(case, rng)
    hidden = _masks(case["coalitions"], problem.x.shape[1], rng)
    truth, exact = problem.predict(problem.x)[:, None], None
    scale = float(problem.predict(problem.known).std())
    if problem.expectation is not None:
        exact = np.array([[problem.expectation(x, mask) for mask in hidden] for x in problem.x])
        yield {"method": "exact", **judge(exact, truth, exact, scale), "error": 0.0, "correct": True}
    best = None
    for name, draw in _methods(case, problem.classes, settings.seed).items():
        begin = time.monotonic()
        drawn = draw(problem.known, problem.x, hidden, case["samples"])
        seconds = time.monotonic() - begin
        values = problem.predict(drawn.reshape(-1, drawn.shape[-1])).reshape(drawn.shape[:-1]).mean(-1)
        seen = np.broadcast_to(~hidden[:, None], drawn.shape)
        same = bool((drawn == problem.x[:, None, None])[seen].all()) and bool(np.isfinite(drawn).all())
        row = {"method": name, **judge(values, truth, exact, scale), "seconds": round(seconds, 2)}
        error = row.get("rmse", row["msev"])
        if name != "ours":
            best = error if best is None else min(best, error)
        elif best is not None:
            row["over_rival"] = round(error / best, 4)
        yield {**row, "error": 0.0 if same else 1.0, "correct": same}


def judge(values: np.ndarray, truth: np.ndarray, exact: np.ndarray | None, scale: float) -> Row:
    """Errors of v [R, M], for f(x) [R, 1], exact expectations [R, M] or None, and the deviation of f."""
    msev = float(((truth - values) ** 2).mean())
    found = {"msev": round(msev, 5)}
    if exact is None:
        return found
    best = float(((truth - exact) ** 2).mean())
    found["rmse"] = round(float(np.sqrt(((values - exact) ** 2).mean()) / scale), 5)
    return {**found, "over_exact": round(msev / best, 4)}


def _masks(count: int, features: int, rng: np.random.Generator) -> np.ndarray:
    hidden = rng.random((count, features)) < 0.5
    empty = ~hidden.any(1)
    hidden[empty, rng.integers(features, size=empty.sum())] = True
    return hidden


def _of_toy(case: Mapping[str, Any], rng: np.random.Generator) -> Problem:
    toy = _toy(case, rng)
    known, x = toy.draw(case["rows"], rng), toy.draw(case["explained"], rng)
    return Problem(known, x, toy.predict, {}, toy.expectation)


def _toy(case: Mapping[str, Any], rng: np.random.Generator) -> Toy:
    if case["toy"] not in TOYS:
        raise ConfigError(f"no toy is called {case['toy']!r}: known are {', '.join(TOYS)}")
    return TOYS[case["toy"]](case["features"], rng)


def _of_table(case: Mapping[str, Any], rng: np.random.Generator) -> Problem:
    from sklearn.ensemble import HistGradientBoostingRegressor

    frame = read_source(case["table"])
    if frame is None:
        raise ConfigError(f"{case['table']} is no table of accel.bench.imputation_sources")
    names = [name for name in frame.columns if name not in (case["target"], "rownames", *case.get("without", ()))]
    order = {name: {value: code for code, value in enumerate(classes)} for name, classes in case["classes"].items()}
    columns = [frame[name].map(order[name]) if name in order else frame[name] for name in names]
    cells = np.stack([column.to_numpy(dtype=np.float64) for column in columns], 1)
    target = frame[case["target"]].to_numpy(dtype=np.float64)
    chosen = rng.permutation(len(cells))[: case["rows"] + case["explained"] + _JUDGES]
    known, explained, others = np.split(chosen, [case["rows"], case["rows"] + case["explained"]])
    model = HistGradientBoostingRegressor(random_state=0).fit(cells[others], np.log(target[others]))
    classes = {names.index(name): len(order[name]) for name in case["classes"]}
    return Problem(cells[known], cells[explained], model.predict, classes, None)


def _methods(case: Mapping[str, Any], classes: Mapping[int, int], seed: int) -> dict[str, Draw]:
    rivals = {name: _shapiq(name, classes, seed) for name in case["rivals"]}

    def ours(known: np.ndarray, x: np.ndarray, hidden: np.ndarray, samples: int) -> np.ndarray:
        from accel.vae.imputer import Imputer

        kinds = {k: {"kind": "ordinal", "classes": [float(c) for c in range(n)]} for k, n in classes.items()}
        imputer = Imputer(kinds, random_state=seed, **case.get("imputer", {})).fit(known)
        return imputer.sample_conditional(x, hidden[None], samples)

    return {**rivals, "ours": ours}


def _shapiq(name: str, classes: Mapping[int, int], seed: int) -> Draw:
    """shapiq's imputer of that name; what it draws of a class is rounded to one, and seen features are as given."""

    def draw(known: np.ndarray, x: np.ndarray, hidden: np.ndarray, samples: int) -> np.ndarray:
        try:
            from shapiq import imputer as shapiqs
        except ImportError as error:
            raise ConfigError(f"the rival is shapiq ({error}): pip install 'skimconv[bench]'") from error
        kinds = {"gaussian": shapiqs.GaussianImputer, "copula": shapiqs.GaussianCopulaImputer}
        imputer = kinds[name](lambda rows: rows[:, 0], known, sample_size=samples, random_state=seed)
        drawn = np.stack([imputer._draw_samples(one, ~hidden) for one in x])
        for column, count in classes.items():
            drawn[..., column] = drawn[..., column].round().clip(0, count - 1)
        return np.where(hidden[:, None], drawn, x[:, None, None])

    if name not in ("gaussian", "copula"):
        raise ConfigError(f"no imputer of shapiq is called {name!r} here: known are gaussian, copula")
    return draw


def _lost(case: Mapping[str, Any], rng: np.random.Generator, seed: int) -> Row:
    """What `transform` fills in of a table's own lost cells, beside the exact conditional means."""
    from accel.vae.imputer import Imputer

    toy = _toy(case, rng)
    if not isinstance(toy, GaussianMixture):
        raise ConfigError(f"exact means of lost cells are known of gaussian and mixture, not of {case['toy']!r}")
    truth = toy.draw(case["rows"], rng)
    lost = rng.random(truth.shape) < case["lost"]
    given = np.where(lost, np.nan, truth)
    begin = time.monotonic()
    filled = Imputer(random_state=seed, **case.get("imputer", {})).fit(given).transform(given)
    seconds = time.monotonic() - begin
    exact = truth.copy()
    for row, mask in zip(exact, lost):
        weights, means, _ = toy.conditional(row, mask)
        row[mask] = (weights @ means)[mask]
    ours, best = (float(np.sqrt(((found - truth)[lost] ** 2).mean())) for found in (filled, exact))
    same = bool((filled == truth)[~lost].all())
    return {
        "method": "ours, means",
        "cell_rmse": round(ours, 5),
        "exact_cell_rmse": round(best, 5),
        "over_exact": round(ours / best, 4),
        "seconds": round(seconds, 2),
        "error": 0.0 if same else 1.0,
        "correct": same,
    }

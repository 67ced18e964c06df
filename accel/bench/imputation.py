"""Cases of kind `imputation`: tables with lost cells, filled by ours and by what people use, judged against the truth.

A case: `table` (a file of the UCI repository, as distributed, with its `separator` and `header`; "breast_cancer" of
scikit-learn; or a table of `accel.bench.imputation_sources`), `columns` (but for breast cancer: which are numbers and
which classes, from the left, "n" or "c" each, "-" left out), `share` of the cells that is lost, completely at random,
by NumPy's `numpy_seed`, `imputations`, and `rivals`, which run in an environment of their own
(`accel.bench.imputation_rivals`). Classes that the file itself lacks ("?") are hidden and not judged.

Rows, one a method: `nrmse`, over the columns of numbers the mean of root mean squared errors over the columns'
deviations, of the mean of the imputations (Ivanov et al. 2019); `pfc`, over the columns of classes the mean share of
wrong ones, of the majority of the imputations; `standardised_mse`, of tables of numbers (Mattei and Frellsen 2019);
`seconds`; and `over_best`, the method's error over the least of all.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.imputation_rivals import RIVALS, run_rival
from accel.bench.imputation_sources import read_source
from accel.bench.runner import Row, Settings
from accel.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Fill = Callable[[], "tuple[list[pd.DataFrame], float]"]  # completed tables, seconds
SHOWN = ("case", "method", "nrmse", "pfc", "standardised_mse", "over_best", "seconds")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import numpy as np

    truth = read_table(case)
    lost = np.random.RandomState(case["numpy_seed"]).rand(*truth.shape) < case["share"]
    given = truth.mask(lost)
    methods = {**_ours(case, given, settings.seed), **_rivals(case, given, settings.seed)}
    found = []
    for method, fill in methods.items():
        completed, seconds = fill()
        row = {"method": method, **errors(truth, completed, lost), "seconds": seconds}
        untouched = all(alike(one, given) for one in completed)
        found.append({**row, "error": 0.0, "correct": untouched})
    for key in ("nrmse", "pfc"):
        best = min((row[key] for row in found if key in row), default=None)
        for row in found:
            if key in row:
                row["over_best"] = max(row.get("over_best", 0.0), round(row[key] / best, 4))
    yield from found


def read_table(case: Mapping[str, Any]) -> pd.DataFrame:
    """The columns of the table: numbers as float64, classes as text, missing ones NaN."""
    import pandas as pd

    if case["table"] == "breast_cancer":
        from sklearn.datasets import load_breast_cancer

        return load_breast_cancer(as_frame=True).data
    frame = read_source(str(case["table"]))
    if frame is None:
        header = 0 if case.get("header", False) else None
        frame = pd.read_csv(pathlib.Path(case["table"]), sep=case["separator"], header=header, dtype=str)
    frame = frame.mask(frame == "?")
    kinds = case["columns"]
    if len(kinds) != frame.shape[1]:
        raise ConfigError(f"columns gives {len(kinds)} kinds, and {case['table']} has {frame.shape[1]} columns")
    columns = {f"c{k}": frame.iloc[:, k] for k, kind in enumerate(kinds) if kind != "-"}
    chosen = [kind for kind in kinds if kind != "-"]
    return pd.DataFrame(
        {name: one.astype(float) if kind == "n" else _labels(one) for kind, (name, one) in zip(chosen, columns.items())}
    )


def _labels(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.isna(), column.astype(str).str.strip())


def errors(truth: pd.DataFrame, completed: list[pd.DataFrame], lost: np.ndarray) -> dict[str, float]:
    """`nrmse`, `pfc` and `standardised_mse`, as the module says, where the table has such columns."""
    import numpy as np

    numbers, wrong = cell_errors(truth, completed, lost)
    found = {"nrmse": np.mean([np.sqrt(np.mean(one**2)) for one in numbers.values()])} if numbers else {}
    found |= {"pfc": np.mean([np.mean(one) for one in wrong.values()])} if wrong else {}
    found |= {} if wrong else {"standardised_mse": np.mean(np.concatenate(list(numbers.values())) ** 2)}
    return {name: round(float(value), 4) for name, value in found.items()}


def cell_errors(
    truth: pd.DataFrame, completed: list[pd.DataFrame], lost: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(errors of the mean over the column's deviation, by column of numbers; whether the majority is wrong, by column
    of classes), of the lost cells of which the truth is known, in the columns that have any."""
    import numpy as np
    import pandas as pd

    numbers, wrong = {}, {}
    for place, name in enumerate(truth.columns):
        judged = lost[:, place] & truth[name].notna().to_numpy()
        if not judged.any():
            continue
        right = truth[name][judged]
        filled = [one[name][judged] for one in completed]
        if pd.api.types.is_numeric_dtype(truth[name]):
            mean = np.mean([one.to_numpy(float) for one in filled], 0)
            numbers[name] = (mean - right.to_numpy()) / truth[name].std(ddof=0)
        else:
            votes = pd.concat([one.astype(str) for one in filled], axis=1).mode(axis=1)[0]
            wrong[name] = (votes != right).to_numpy()
    return numbers, wrong


def alike(completed: pd.DataFrame, given: pd.DataFrame) -> bool:
    """Whether what was given came back: classes as they were, numbers to the digits of a CSV file."""
    import numpy as np
    import pandas as pd

    for name in given.columns:
        seen = given[name].notna()
        left, right = completed[name][seen], given[name][seen]
        if pd.api.types.is_numeric_dtype(given[name]):
            if not np.allclose(left.astype(float), right, rtol=1e-6, atol=0):
                return False
        elif not (left.astype(str) == right.astype(str)).all():
            return False
    return True


def _ours(case: Mapping[str, Any], given: pd.DataFrame, seed: int) -> dict[str, Fill]:
    from accel.vae.imputer import Imputer

    def fixed() -> list[pd.DataFrame]:
        return Imputer(scale="fixed", random_state=seed).fit(given).impute(given, case["imputations"])

    def learned() -> list[pd.DataFrame]:
        return [Imputer(random_state=seed).fit(given).transform(given)]

    return {"ours, fixed scale": lambda: timed(fixed), "ours, learned scale, means": lambda: timed(learned)}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what `call` gives, seconds)."""
    begin = time.monotonic()
    found = call()
    return found, round(time.monotonic() - begin, 1)


def _rivals(case: Mapping[str, Any], given: pd.DataFrame, seed: int) -> dict[str, Fill]:
    check_rivals(case["rivals"])

    def runner(name: str) -> Fill:
        return lambda: run_rival(name, given, case["imputations"], seed)

    return {name: runner(name) for name in case["rivals"]}


def check_rivals(names: Iterable[str]) -> None:
    """ConfigError for a rival that nobody knows."""
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise ConfigError(f"no rival imputer is called {unknown[0]}: known are {', '.join(RIVALS)}")

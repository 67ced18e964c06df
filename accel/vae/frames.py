"""Data frames to the matrix of numbers that `accel.vae.columns` describes, and imputed cells back into them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from accel.errors import ConfigError, DataError
from accel.vae.columns import Column, discrete_column, found_numeric_kind, numeric_column

Given = str | Mapping[str, Any]  # the kind of a column, or kind, low, high, classes


def is_frame(table: object) -> bool:
    return isinstance(table, pd.DataFrame) or hasattr(table, "__dataframe__") or _is_polars(table)


def _is_polars(table: object) -> bool:
    return type(table).__module__.split(".")[0] == "polars"


def as_pandas(table: object) -> pd.DataFrame:
    """A pandas frame of any data frame.

    Raises:
        DataError: two columns of one name, or no column.
    """
    if _is_polars(table):
        table = _from_polars(table)
    elif not isinstance(table, pd.DataFrame):
        table = pd.api.interchange.from_dataframe(table)
    if len(twice := table.columns[table.columns.duplicated()]):
        raise DataError(f"two columns are called {twice[0]!r}: rename one")
    if not len(table.columns):
        raise DataError("the table has no columns (0 feature(s)): at least one is needed")
    return table


def _from_polars(table: Any) -> pd.DataFrame:
    """Columns keep their nullable types; categories become text."""
    import polars

    try:
        return table.cast({polars.Categorical: polars.String, polars.Enum: polars.String}).to_pandas(
            use_pyarrow_extension_array=True
        )
    except ModuleNotFoundError as error:
        raise DataError(
            f"a polars frame needs {error.name}: pip install {error.name}, or give a pandas frame"
        ) from error


def like_input(frame: pd.DataFrame, table: Any) -> Any:
    """`frame` as the kind of data frame that `table` is: pandas and polars stay what they are, others become pandas."""
    if not _is_polars(table):
        return frame
    import polars

    return polars.from_pandas(frame).cast(dict(table.schema))


def find_columns(frame: pd.DataFrame, given: Mapping[Any, Given]) -> list[Column]:
    """The columns of a frame: of the kinds given, else by their dtypes and values.

    Raises:
        ConfigError: a kind is given for a column that is not there, or is no kind.
        DataError: a column that cannot be read; it is named.
    """
    if strange := [name for name in given if name not in frame.columns]:
        raise ConfigError(f"columns names {strange[0]!r}, which the table does not have: it has {list(frame.columns)}")
    return [_column(frame[name], given.get(name)) for name in frame.columns]


def _column(series: pd.Series, given: Given | None) -> Column:
    options = {"kind": given} if isinstance(given, str) else dict(given or {})
    if unknown := options.keys() - {"kind", "low", "high", "classes"}:
        raise ConfigError(f"column {series.name!r} takes kind, low, high and classes, got {sorted(unknown)}")
    name, dtype = str(series.name), series.dtype
    kind = options.get("kind") or _found_kind(series)
    column = Column(name, kind)  # refuses a kind that is none
    if column.numeric:
        return numeric_column(name, kind, _numbers(series), (options.get("low"), options.get("high")))
    if kind == "pass":
        return column
    if isinstance(dtype, pd.CategoricalDtype):
        present = set(series.dropna().unique())
        classes = [one for one in dtype.categories if one in present]
    else:
        known = series.dropna().unique()
        _one_type(name, known)
        classes = sorted(known)
    if "classes" in options:
        if absent := [one for one in classes if one not in options["classes"]]:
            raise DataError(
                f"column {name!r} holds {absent[0]!r}, which is not among its classes: name it or mark it missing"
            )
        classes = list(options["classes"])
    elif kind == "ordinal" and not types.is_numeric_dtype(dtype) and not getattr(dtype, "ordered", False):
        raise ConfigError(
            f"ordinal column {name!r} holds text: give its order, {{'kind': 'ordinal', 'classes': [...]}}"
        )
    return discrete_column(name, kind, classes)


def _found_kind(series: pd.Series) -> str:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "ordinal" if dtype.ordered else "categorical"
    if types.is_bool_dtype(dtype):
        return "boolean"
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype) or dtype.kind == "m":
        return "pass"
    if types.is_numeric_dtype(dtype):
        return found_numeric_kind(_numbers(series), types.is_integer_dtype(dtype))
    known = series.dropna()
    if len(known) and all(isinstance(one, (dt.date, dt.time, dt.timedelta)) for one in known):
        return "pass"
    kind = _one_type(str(series.name), known)
    if kind is str or not len(known):
        return "categorical"
    return "boolean" if kind is bool else found_numeric_kind(_numbers(series), kind is int)


def _one_type(name: str, known: Sequence) -> type | None:
    """str, bool, int or float: what all values are.

    Raises:
        DataError: they are of several kinds, or of another.
    """
    found = {type(one.item() if isinstance(one, np.generic) else one) for one in known}
    if found <= {int, float}:
        return (float if float in found else int) if found else None
    if len(found) == 1 and (kind := next(iter(found))) in (str, bool):
        return kind
    kinds = " and ".join(sorted(kind.__name__ for kind in found))
    raise DataError(
        f"column {name!r} mixes types, {kinds}: its values must be all text, all numbers or all truth values; convert "
        f"it, or hand it through with columns={{{name!r}: 'pass'}}"
    )


def _numbers(series: pd.Series) -> np.ndarray:
    """float64, NaN where missing."""
    dtype = series.dtype
    if not (types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype) or types.is_object_dtype(dtype)):
        raise DataError(f"column {series.name!r} is {dtype}, not numbers: give it another kind, or convert it")
    if types.is_complex_dtype(dtype):
        raise DataError(f"column {series.name!r} holds complex numbers (Complex data not supported): take real ones")
    try:
        numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {series.name!r} holds something that is no number ({error}): convert it") from error
    if np.isinf(numbers).any():
        raise DataError(f"column {series.name!r} holds an infinite value: replace it, or mark it missing")
    return numbers


def encode(frame: pd.DataFrame, columns: Sequence[Column]) -> np.ndarray:
    """float64 [rows, columns] of values and class numbers, NaN where missing.

    Raises:
        DataError: an infinite value, or a class that was not there when the columns were found.
    """
    table = np.full(frame.shape, np.nan)
    for place, column in enumerate(columns):
        series = frame.iloc[:, place]
        if column.numeric:
            table[:, place] = _numbers(series)
            continue
        missing = series.isna().to_numpy()
        if column.kind == "pass":
            continue
        codes = {one: code for code, one in enumerate(column.classes)}
        known = series[~missing]
        if unseen := [one for one in known.unique() if one not in codes]:
            raise DataError(
                f"column {column.name!r} holds {unseen[0]!r}, which no row had when it was fitted: fit again with such "
                "rows, or mark it missing"
            )
        table[~missing, place] = [codes[one] for one in known]
    return table


def fill(
    frame: pd.DataFrame, columns: Sequence[Column], imputed: np.ndarray, missing: np.ndarray | None = None
) -> pd.DataFrame:
    """A copy of the frame with missing cells filled from `imputed`, as `encode` has them; observed cells, dtypes, index
    and what is handed through stay as they are.

    Args:
        missing: bool [N, D], cells to fill; None: those without a value.

    Raises:
        DataError: a categorical dtype lacks a class that has to be filled in.
    """
    filled = frame.copy()
    for place, column in enumerate(columns):
        series = frame.iloc[:, place]
        gaps = series.isna().to_numpy() if missing is None else missing[:, place]
        if column.kind != "pass" and gaps.any():
            filled.isetitem(place, _filled(series, gaps, column, imputed[gaps, place]))
    return filled


def _filled(series: pd.Series, missing: np.ndarray, column: Column, values: np.ndarray) -> pd.Series:
    dtype = series.dtype
    if column.discrete:
        chosen = [column.classes[int(code)] for code in values]
        if isinstance(dtype, pd.CategoricalDtype) and (
            absent := [one for one in chosen if one not in dtype.categories]
        ):
            raise DataError(
                f"the categories of column {column.name!r} lack {absent[0]!r}, which it was fitted with and has to be "
                "filled in: add it with .cat.add_categories"
            )
    elif types.is_integer_dtype(dtype):
        info = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        chosen = [min(max(round(value), info.min), info.max) for value in values.tolist()]
    else:
        chosen = values
    found = series.copy()
    found.iloc[np.flatnonzero(missing)] = pd.array(list(chosen), dtype=dtype)
    return found


def hide(frame: pd.DataFrame, hidden: np.ndarray) -> pd.DataFrame:
    """A copy with cells made missing, bool [N, D]; integers and truth values become their nullable types."""
    lacking = frame.copy()
    for place in np.flatnonzero(hidden.any(0)):
        series = frame.iloc[:, place]
        if series.dtype.kind in "iub" and isinstance(series.dtype, np.dtype):
            series = series.convert_dtypes()
        lacking.isetitem(place, series.mask(hidden[:, place]))
    return lacking

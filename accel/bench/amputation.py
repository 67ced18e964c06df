"""Which cells of a complete table are lost, by the three mechanisms of Rubin (1976).

Logistic models as in Muzellec et al. 2020 (arXiv 2002.03860), appendix: under MAR cells are lost by what stands in
columns that are never lost, under MNAR by what stands in the cell itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

MECHANISMS = ("MCAR", "MAR", "MNAR")
_STRENGTH = 2.0  # logits that one deviation is worth
_DRIVERS = 0.3  # share of the columns that MAR never hides


def amputate(table: pd.DataFrame, mechanism: str, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool [N, D], True where a cell is lost: `share` of the cells of the columns that can lose any.

    Args:
        table: columns of numbers and of text; cells that it lacks itself count as average.

    Raises:
        ConfigError: an unknown mechanism, a share outside (0, 1), or MAR in a table of one column.
    """
    if mechanism not in MECHANISMS or not 0 < share < 1:
        raise ConfigError(f"cells are lost by {', '.join(MECHANISMS)} and a share in (0, 1): got {mechanism}, {share}")
    rows, width = table.shape
    if mechanism == "MCAR":
        return rng.random((rows, width)) < share
    scores = _scores(table, rng)
    if mechanism == "MNAR":
        return rng.random((rows, width)) < _chances(scores * rng.choice([-1, 1], width), share)
    if width < 2:
        raise ConfigError("MAR needs a column that decides and one that it hides: the table has one column")
    drivers = rng.permutation(width)[: max(1, round(_DRIVERS * width))]
    mixed = scores[:, drivers] @ rng.normal(size=(len(drivers), width))
    lost = rng.random((rows, width)) < _chances(_standard(mixed), share)
    lost[:, drivers] = False
    return lost


def _scores(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """[N, D], every column in its deviations; the classes of a column stand for numbers drawn for them."""
    from pandas.api.types import is_numeric_dtype

    found = []
    for name in table.columns:
        column = table[name]
        if not is_numeric_dtype(column):
            classes = sorted(column.dropna().unique())
            column = column.map(dict(zip(classes, rng.normal(size=len(classes))))).astype(float)
        found.append(column.to_numpy(float))
    return np.nan_to_num(_standard(np.stack(found, 1)))


def _standard(values: np.ndarray) -> np.ndarray:
    spread = np.nanstd(values, 0)
    return (values - np.nanmean(values, 0)) / np.where(spread > 0, spread, 1.0)


def _chances(scores: np.ndarray, share: float) -> np.ndarray:
    """sigmoid(strength x score + an intercept of the column), whose mean over the rows is `share`."""
    from scipy.optimize import brentq
    from scipy.special import expit

    logits = _STRENGTH * scores
    reach = float(np.abs(logits).max()) + 30
    shifts = [brentq(lambda b, one=one: expit(one + b).mean() - share, -reach, reach) for one in logits.T]
    return expit(logits + np.array(shifts))

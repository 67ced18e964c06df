"""How far to trust an imputer: cells that are known are hidden, imputed and compared."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone

from accel.errors import ConfigError, DataError
from accel.reports.tables import rows_as
from accel.vae import frames
from accel.vae.columns import Column
from accel.vae.mask_generators import MCAR, MaskGenerator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from accel.vae.imputer import Imputer

QUANTILES = "weibull"  # n draws hold one more about as often as they say; by NumPy's default (n - 1) / (n + 1) of it
LEVELS = (0.5, 0.8, 0.9, 0.95)
_LEAST_CHANCE = 1e-4  # of a class, in the log-loss: a certain model that errs once would otherwise lose without bound


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Errors of an imputer on cells that it did not see.

    Attributes:
        rows: one dict a column that is modelled, the worst first among its kind: column, kind, hidden (number of
            cells); of numbers nrmse (root mean squared error of the mean over the column's deviation: 1 is as good as
            its mean), crps (of the samples, over the deviation), coverage_50 to coverage_95 (share of the cells inside
            the interval of that probability); of classes pfc (share of wrong ones), pfc_mode (the same, always saying
            the most frequent class) and log_loss (nats).
        observed, imputed: per numeric column the hidden values, and as many draws for them.
        refitted: whether the model judged was fitted without the hidden cells.
    """

    rows: list[dict[str, Any]]
    observed: dict[str, np.ndarray]
    imputed: dict[str, np.ndarray]
    refitted: bool

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def __str__(self) -> str:
        return rows_as("table", self.rows).rstrip()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """A table."""
        heads = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [[_text(row.get(head, "")) for head in heads] for row in self.rows]
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
        return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{body}</table>"

    def plot(self) -> Figure:
        """Columns ranked by error; observed against nominal coverage."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 1.5 + 0.3 * max(6, len(self.rows))), layout="constrained")
        errors, covered = figure.subplots(1, 2)
        ranked = sorted(self.rows, key=_error)
        errors.barh([row["column"] for row in ranked], [_error(row) for row in ranked])
        errors.set_xlabel("NRMSE of numbers, share of wrong classes")
        covered.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for row in self.rows:
            if "nrmse" in row:
                covered.plot(
                    LEVELS, [row[f"coverage_{100 * level:.0f}"] for level in LEVELS], ".-", label=row["column"]
                )
        covered.set_xlabel("probability of the interval")
        covered.set_ylabel("share of hidden numbers inside")
        covered.set_xlim(0, 1)
        covered.set_ylim(0, 1.02)
        if 0 < len(covered.lines) <= 13:
            covered.legend(fontsize=7)
        return figure


def examine(
    imputer: Imputer,
    X: Any,
    *,
    share: float = 0.2,
    masks: MaskGenerator | None = None,
    num_samples: int = 50,
    refit: bool = True,
    random_state: int = 0,
) -> Calibration:
    """Hide known cells, impute them, and compare.

    Args:
        imputer: fitted, or with `refit` at least set up.
        X: a table.
        share: of the known cells that is hidden, in (0, 1).
        masks: which, in place of `share`.
        num_samples: draws for each cell, at least 2.
        refit: fit a copy of the imputer on X without the hidden cells; False: judge `imputer` itself, which is honest
            on rows only that it was not fitted on.
        random_state: of the cells hidden.

    Raises:
        ConfigError: share or num_samples out of range.
        DataError: no cell was hidden.
    """
    if not 0 < share < 1 or num_samples < 2:
        raise ConfigError(f"share must lie in (0, 1) and num_samples be 2 at least, got {share} and {num_samples}")
    judged = clone(imputer) if refit else imputer
    truth = judged._read(X, reset=refit)
    generator = torch.Generator().manual_seed(random_state)
    scaled = np.stack([column.scaled(truth[:, place]) for place, column in enumerate(judged.columns_)], 1)
    hidden = (masks or MCAR(share))(torch.from_numpy(scaled), generator).numpy() & ~np.isnan(truth)
    if refit:
        labels = list(frames.as_pandas(X).columns) if frames.is_frame(X) else range(truth.shape[1])
        kinds = {label: column.given() for label, column in zip(labels, judged.columns_)}
        judged.set_params(columns=kinds).fit(_without(X, hidden))
    rows = hidden.any(1)
    table = np.where(hidden, np.nan, truth)[rows]
    estimates, drawn = judged._point_estimates(table), judged._draw(table, num_samples)
    chances = judged._means(table)[1] if judged.model_ is not None else None
    found, observed, imputed = [], {}, {}
    for place, column in enumerate(judged.columns_):
        cells = hidden[rows, place]
        if column.kind == "pass" or column.constant or not cells.any():
            continue
        right, guess, draws = truth[rows, place][cells], estimates[cells, place], drawn[cells, :, place]
        row = {"column": column.name, "kind": column.kind, "hidden": int(cells.sum())}
        if column.numeric:
            found.append(row | _numeric_row(column, right, guess, draws))
            observed[column.name], imputed[column.name] = right, draws[:, 0]
        else:
            own = chances[cells, judged._discrete_place(place), : len(column.classes)]
            found.append(row | _discrete_row(right, guess, own, table[:, place]))
    if not found:
        raise DataError("no known cell of a column with two values was hidden: give more rows or a larger share")
    return Calibration(sorted(found, key=lambda row: ("pfc" in row, -_error(row))), observed, imputed, refit)


def _numeric_row(column: Column, right: np.ndarray, guess: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    row = {
        "nrmse": float(np.sqrt(np.mean((guess - right) ** 2)) / column.scale),
        "crps": float(crps(right, draws).mean() / column.scale),
    }
    for level in LEVELS:
        lower, upper = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1, method=QUANTILES)
        row[f"coverage_{100 * level:.0f}"] = float(((lower <= right) & (right <= upper)).mean())
    return row


def _discrete_row(right: np.ndarray, guess: np.ndarray, chances: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    known = seen[~np.isnan(seen)].astype(int)
    mode = np.bincount(known).argmax() if len(known) else 0
    chance = chances[np.arange(len(right)), right.astype(int)].clip(_LEAST_CHANCE)
    return {
        "pfc": float((guess != right).mean()),
        "pfc_mode": float((mode != right).mean()),
        "log_loss": float(-np.log(chance).mean()),
    }


def crps(truth: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of each number, unbiased in the number of draws: truth [N], draws [N, S]."""
    count = draws.shape[1]
    weights = 2 * np.arange(1, count + 1) - count - 1
    spread = (np.sort(draws, 1) * weights).sum(1) / (count * (count - 1))  # half the mean distance of two draws
    return np.abs(draws - truth[:, None]).mean(1) - spread


def _without(X: Any, hidden: np.ndarray) -> Any:
    """The table with cells taken out; columns whose dtype has no missing value get one that has."""
    if not frames.is_frame(X):
        return np.where(hidden, np.nan, np.asarray(X, dtype=np.float64))
    return frames.hide(frames.as_pandas(X), hidden)


def _error(row: dict[str, Any]) -> float:
    return row["nrmse"] if "nrmse" in row else row["pfc"]


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

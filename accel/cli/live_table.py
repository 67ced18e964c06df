"""What the live page makes of a table: its gaps filled by a model that was trained on it there and then."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from accel.cli.tables import Table
from accel.errors import DataError
from accel.reports.pages import render
from accel.vae.imputer import Imputer

MOST_CELLS = 100_000  # beyond, `accel impute` is the place: nobody waits that long for a page
_STEPS = 600  # of training: half a minute
_BATCH = 128
_SHOWN_ROWS, _SHOWN_COLUMNS = 12, 12


@dataclasses.dataclass(frozen=True)
class Imputed:
    """Attributes: page, HTML that shows rows with their gaps filled; file, the completed table."""

    page: str
    file: pathlib.Path


def impute_file(path: str, folder: pathlib.Path, seed: int = 0) -> Imputed:
    """A CSV, TSV, parquet or feather file with its gaps filled, in `folder` under a name of its own.

    Raises:
        DataError: no table, one without gaps, or one too large for a page. Only the file's own name is told.
    """
    given = pathlib.Path(path)
    try:
        table = Table(given)
        frame = table.frame
        _check(frame, given.name)
        imputer = Imputer(epochs=epochs_for(len(frame)), batch_size=_BATCH, random_state=seed).fit(frame)
        completed = imputer.transform(frame)
    except DataError as error:
        raise DataError(str(error).replace(str(given), given.name)) from error
    file = folder / f"completed_{given.stem}{table.ending}"
    table.write(file, completed)
    return Imputed(_page(frame, completed, imputer), file)


def _check(frame: pd.DataFrame, name: str) -> None:
    if frame.size > MOST_CELLS:
        raise DataError(
            f"{name} has {len(frame)} rows of {len(frame.columns)} columns, and this page takes {MOST_CELLS} cells: "
            "give some of its rows, or run 'accel impute'"
        )
    if not frame.isna().to_numpy().any():
        raise DataError(f"{name} has no gaps to fill: leave some cells empty")


def epochs_for(rows: int) -> int:
    """Passes over a table of so many rows that make about 600 batches."""
    return max(1, round(_STEPS * min(_BATCH, rows) / rows))


def _page(frame: pd.DataFrame, completed: pd.DataFrame, imputer: Imputer) -> str:
    gaps = frame.isna().to_numpy()
    rows = np.flatnonzero(gaps.any(1))[:_SHOWN_ROWS]
    cells = completed.to_numpy(dtype=object)
    places = range(min(_SHOWN_COLUMNS, len(frame.columns)))
    return render(
        "live_table.html",
        gaps=int(gaps.sum()),
        left=int(completed.isna().to_numpy().sum()),
        cells=gaps.size,
        rows_with_gaps=int(gaps.any(1).sum()),
        headings=[(imputer.columns_[place].name, imputer.columns_[place].kind) for place in places],
        lines=[(int(row) + 1, [(_text(cells[row, place]), gaps[row, place]) for place in places]) for row in rows],
        more_columns=len(frame.columns) - len(places),
    )


def _text(value: object) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def draw_example(folder: pathlib.Path, seed: int = 0) -> str:
    """A CSV file of drawn plots of land with a sixth of the cells missing: columns that tell of each other."""
    generator = np.random.default_rng(seed)
    soil = generator.choice(["clay", "loam", "sand"], 240)
    rain = generator.gamma(9.0, 80.0, 240)
    height = 20 + 0.08 * rain + 15 * (soil == "loam") - 8 * (soil == "sand") + generator.normal(0, 4, 240)
    crop = (2.1 * height / 50 + generator.normal(0, 0.15, 240)).clip(0)
    frame = pd.DataFrame(
        {"soil": soil, "rain_mm": rain.round(), "height_cm": height.round(1), "crop_kg": crop.round(2)}
    )
    path = folder / "plots.csv"
    frame.mask(generator.random(frame.shape) < 1 / 6).to_csv(path, index=False)
    return str(path)

"""The report of `accel impute`: one HTML file with everything inside."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import markupsafe
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accel.reports.pages import picture_source, render

if TYPE_CHECKING:
    from accel.vae.calibration import Calibration
    from accel.vae.imputer import Imputer

_MOST_PLOTS = 40  # columns with gaps that are drawn


def write_report(
    path: pathlib.Path,
    name: str,
    frame: pd.DataFrame,
    imputer: Imputer,
    completed: Sequence[pd.DataFrame],
    found: Calibration | None,
) -> None:
    """Write the page, into a folder that is still private."""
    path.write_text(page(name, frame, imputer, completed, found), encoding="utf-8")


def page(
    name: str,
    frame: pd.DataFrame,
    imputer: Imputer,
    completed: Sequence[pd.DataFrame],
    found: Calibration | None,
) -> str:
    """The report as HTML."""
    trust = None
    if found is not None:  # a table of pandas is HTML already
        trust = {"table": markupsafe.Markup(found.to_html()), "plot": _image(found.plot())}
    return render(
        "impute.html",
        title=name,
        gaps=int(frame.isna().to_numpy().sum()),
        cells=frame.size,
        completed=len(completed),
        columns=[
            (*str(column).partition(": ")[::2], f"{100 * float(frame.iloc[:, place].isna().mean()):.1f} %")
            for place, column in enumerate(imputer.columns_)
        ],
        trust=trust,
        distributions=_distributions(frame, imputer, completed),
    )


def _distributions(frame: pd.DataFrame, imputer: Imputer, completed: Sequence[pd.DataFrame]) -> str | None:
    """A picture of the columns with gaps, as a source; None where nothing was missing."""
    places = [
        place
        for place, column in enumerate(imputer.columns_)
        if column.kind != "pass" and frame.iloc[:, place].isna().any()
    ][:_MOST_PLOTS]
    if not places:
        return None
    rows = -(-len(places) // 3)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for axes, place in zip(figure.subplots(rows, 3, squeeze=False).flat, places):
        column, series = imputer.columns_[place], frame.iloc[:, place]
        gaps = series.isna().to_numpy()
        known = series[~gaps]
        filled = pd.concat([table.iloc[:, place][gaps] for table in completed])
        if column.numeric:
            both = [part.to_numpy(dtype=float) for part in (known, filled)]
            edges = np.histogram_bin_edges(np.concatenate(both), 30)
            axes.hist(both, edges, density=True, label=["observed", "filled in"])
        else:
            shares = [[float((part == one).mean()) for one in column.classes] for part in (known, filled)]
            steps = np.arange(len(column.classes))
            axes.bar(steps - 0.2, shares[0], 0.4, label="observed")
            axes.bar(steps + 0.2, shares[1], 0.4, label="filled in")
            axes.set_xticks(steps, [str(one)[:12] for one in column.classes], fontsize=7, rotation=30)
        axes.set_title(column.name, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7)
    for axes in figure.axes[len(places) :]:
        axes.set_axis_off()
    return _image(figure)


def _image(figure: Figure) -> str:
    return picture_source(functools.partial(figure.savefig, format="png", dpi=90))

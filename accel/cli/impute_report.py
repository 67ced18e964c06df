"""The report of `accel impute`: one HTML file with everything inside."""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from accel.vae.calibration import Calibration
    from accel.vae.imputer import Imputer

_MOST_PLOTS = 40  # columns with gaps that are drawn
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #282c34; background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; } p.small { font-size: .85rem; color: #59626d; }
"""


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
    gaps = int(frame.isna().to_numpy().sum())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(name)}: {gaps:,} of {frame.size:,} cells filled in, {len(completed)} times</h1>
<p class="small">Each completed table is a draw from a model of every column given any others. Analyse each by itself
and pool the results (accel.vae.pool); the table &ldquo;completed&rdquo; holds means and likeliest classes and pretends
to know them.</p>
<h2>Columns</h2>
{_columns(frame, imputer)}
{_trust(found)}
<h2>What was observed, and what was filled in</h2>
<p class="small">They need not look alike: gaps may come where values are unlike the rest.</p>
{_distributions(frame, imputer, completed)}
</body></html>
"""


def _columns(frame: pd.DataFrame, imputer: Imputer) -> str:
    lines = []
    for place, column in enumerate(imputer.columns_):
        share = float(frame.iloc[:, place].isna().mean())
        cells = (str(column).partition(": ")[0], str(column).partition(": ")[2], f"{100 * share:.1f} %")
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr><th>column</th><th>kind</th><th>missing</th></tr>{''.join(lines)}</table>"


def _trust(found: Calibration | None) -> str:
    if found is None:
        return ""
    return f"""<h2>How far to trust it</h2>
<p>A fifth of the known cells was hidden, the model fitted without them, and its answers compared. NRMSE 1 is as good as
the column's mean; of intervals of 90 % probability 90 % should hold the truth; pfc is the share of wrong classes,
pfc_mode that of always naming the most frequent one.</p>
{found.to_html()}
{_image(found.plot())}"""


def _distributions(frame: pd.DataFrame, imputer: Imputer, completed: Sequence[pd.DataFrame]) -> str:
    places = [
        place
        for place, column in enumerate(imputer.columns_)
        if column.kind != "pass" and frame.iloc[:, place].isna().any()
    ][:_MOST_PLOTS]
    if not places:
        return "<p>Nothing was missing.</p>"
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
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode("ascii")}">'

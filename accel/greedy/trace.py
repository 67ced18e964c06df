"""What a search found and how it got there: the rules, a report per layer, the steps, and a plot of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from accel.config import Perforate, Rules
from accel.files import write_figure, write_text
from accel.greedy.candidates import Space
from accel.greedy.record import Tried
from accel.greedy.table import DENSE, Table
from accel.reports.tables import Column, Report, comma_separated, percent, show_macs

RULES, STEPS, NETWORKS, PLOT = "rules.json", "trace.csv", "networks.csv", "trace.png"


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the search: `layer` went from candidate `before` to `label`.

    Attributes: cost, (loss - loss0) / (time0 - time) of the network after it, relative to the original; loss, its
    estimated loss; price, its milliseconds (or MACs) by the table; speedup, estimated, against the original; start, the
    origin of the network that these steps began from.
    """

    layer: str
    before: str
    label: str
    cost: float
    loss: float
    price: float
    speedup: float
    start: str


def _cost(value: float) -> str:
    """2.36 M, or 0.4837: MACs, or milliseconds."""
    return show_macs(value) if value >= 1e4 else f"{value:.4g}"


class Found(Report):
    """The candidate of every layer that was searched, and why."""

    columns = (
        Column("layer", "layer"),
        Column("keep", "keep", percent),
        Column("mask", "mask"),
        Column("interpolate", "filled by"),
        Column("precision", "precision"),
        Column("rank", "rank"),
        Column("dense_cost", "dense", _cost),
        Column("cost", "now", _cost),
        Column("note", "note"),
    )


class FoundRules(Rules):
    """Rules that a search found, one for every convolution by its name.

    Attributes:
        report: per layer, what it got and why; `.total` has the network's loss, drop, and measured speed-up, its origin
            (`start`) and the `minutes` that the search took.
        steps: the steps of the paper's greedy way, in order.
        tried: the networks that were measured whole, in order.
        chosen: that of them which these rules make.
        table: the costs it worked with; give it to another search to save measuring them again.
    """

    def __init__(
        self,
        rules: Mapping[str, Perforate | None],
        report: Found,
        steps: Sequence[Step],
        tried: Sequence[Tried],
        chosen: Tried,
        table: Table,
    ) -> None:
        super().__init__(rules)
        self.report, self.steps, self.tried, self.table = report, list(steps), list(tried), table
        self.chosen = chosen

    @staticmethod
    def of(
        space: Space,
        table: Table,
        best: Tried,
        steps: Sequence[Step],
        tried: Sequence[Tried],
        reasons: Mapping[str, str],
        total: Mapping[str, float | str],
    ) -> FoundRules:
        """The rules of the best network; `reasons`, layer -> note."""
        rules, rows, state = {}, [], best.state
        for name in space.layers:
            label = state.get(name, DENSE)
            config = space.candidates[name][label].config if label != DENSE else None
            rank = space.rank(name, label) if label != DENSE else None
            costs = table.costs.get(name, {})
            rules[name] = config if rank is None else dataclasses.replace(config, rank=rank)
            rows.append(
                {
                    "layer": name,
                    "keep": 1.0 if config is None else space.kept(name, label),
                    "mask": config and config.mask,
                    "interpolate": config and config.interpolate,
                    "precision": config and config.precision,
                    "rank": rank,
                    "dense_cost": costs.get(DENSE),
                    "cost": costs.get(label),
                    "note": reasons.get(name),
                }
            )
        whole = {"layer": "total", "dense_cost": table.price({}), "cost": best.price, **total}
        report = Found(f"{type(space.model).__name__}: search, costs in {table.unit}", rows, whole)
        return FoundRules(rules, report, steps, tried, best, table)


def save_found(found: FoundRules, folder: pathlib.Path) -> None:
    """Write the rules, the steps, the networks measured and their plot into the folder; DataError: it cannot be
    written."""
    write_text(folder / RULES, json.dumps(found.to_dict(), indent=2) + "\n")
    write_text(folder / STEPS, _table_of([dataclasses.asdict(step) for step in found.steps], Step))
    networks = [{**dataclasses.asdict(tried), "state": json.dumps(dict(tried.state))} for tried in found.tried]
    write_text(folder / NETWORKS, _table_of(networks, Tried))
    write_text(folder / "report.json", found.report.to_json() + "\n")
    plot_steps(found, folder / PLOT)


def _table_of(rows: Sequence[Mapping], kind: type) -> str:
    """CSV with the fields of a dataclass as columns."""
    names = [field.name for field in dataclasses.fields(kind)]
    return comma_separated(names, ([row[name] for name in names] for row in rows))


def plot_steps(found: FoundRules, path: pathlib.Path) -> None:
    """Loss against speed-up of every step and every network measured, and what each layer keeps in the end; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    curve, bars = figure.subplots(2, 1, height_ratios=(2, 3))
    curve.plot(
        [step.speedup for step in found.steps], [step.loss for step in found.steps], marker=".", lw=1, label="steps"
    )
    uniform = [tried for tried in found.tried if tried.kind == "uniform"]
    others = [tried for tried in found.tried if tried not in uniform]
    for tried, mark, label in ((uniform, "s", "uniform rules"), (others, "o", "other networks, whole")):
        curve.plot([each.speedup for each in tried], [each.loss for each in tried], mark, ms=4, label=label)
    best = found.chosen
    curve.plot([best.speedup], [best.loss], "*", ms=14, label=f"chosen: {best.origin}")
    curve.set(xlabel="speed-up", ylabel="loss", title=found.report.title)
    curve.legend(fontsize=7)
    rows = found.report.rows[::-1]
    bars.barh([row["layer"] for row in rows], [row["keep"] for row in rows], color="tab:blue")
    bars.set(xlabel="positions computed", xlim=(0, 1))
    bars.tick_params(axis="y", labelsize=7)
    write_figure(path, figure, dpi=120)

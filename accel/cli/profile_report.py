"""What `accel profile` found, as text, numbers and a page: where time goes, and what the machine could do."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from accel.profiling.flops import spread
from accel.profiling.grouping import Detailed, grouped, tree
from accel.profiling.layers import Profile
from accel.profiling.peaks import Peaks
from accel.reports.pages import picture_source, render
from accel.reports.tables import Column, Report, comma_separated, percent, show_bytes, show_macs, show_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 8  # layers that have a bar, and a name beside their dot
_COLOURS = {"fp32": "tab:blue", "int8": "tab:orange", "bf16": "tab:green", "fp16": "tab:red"}


class BatchSizes(Report):
    """A row for every batch size."""

    columns = (
        Column("batch", "batch", "{:d}".format),
        Column("baseline_ms", "baseline ms", "{:.3f}".format),
        Column("ms", "ms", "{:.3f}".format),
        Column("q10_ms", "10 %", "{:.3f}".format),
        Column("q90_ms", "90 %", "{:.3f}".format),
        Column("compiled_ms", "compiled ms", "{:.3f}".format),
        Column("ms_per_picture", "ms a picture", "{:.3f}".format),
        Column("gops", "GOP/s", show_rate),
        Column("of_peak", "of peak", percent),
        Column("speedup", "speed-up", "{:.2f}x".format),
        Column("peak_bytes", "activations", show_bytes),
    )

    def shown(self) -> list[Column]:
        return [column for column in self.columns if any(row.get(column.key) is not None for row in self.rows)]


@dataclasses.dataclass(frozen=True)
class Findings:
    """Attributes: profiles by batch size; counts, executed MACs of single pictures, [pictures] by layer; peaks of the
    machine; by and depth, how rows are grouped."""

    profiles: Mapping[int, Profile]
    counts: Mapping[str, Tensor] | None
    peaks: Peaks | None
    by: str
    depth: int | None

    @property
    def per_picture(self) -> dict[str, float] | None:
        return spread(sum(self.counts.values())) if self.counts else None

    def grouped(self, profile: Profile) -> Detailed:
        return grouped(profile, self.by, self.depth, self.counts)

    def readable(self, profile: Profile) -> Detailed:
        """As people look at it: layers as a tree."""
        return tree(profile, self.depth, self.counts) if self.by == "layer" else self.grouped(profile)

    def batch_sizes(self) -> BatchSizes:
        keys = [column.key for column in BatchSizes.columns]
        totals = ({**profile.total, "batch": size} for size, profile in self.profiles.items())
        rows = [{**row, "ms_per_picture": row["ms"] / row["batch"]} for row in totals]
        return BatchSizes("Batch sizes", [{key: row.get(key) for key in keys} for row in rows], {})

    def sentences(self) -> list[str]:
        """What holds for the whole."""
        said = [] if self.per_picture is None else [said_of(self.per_picture)]
        for size, profile in self.profiles.items():
            total = profile.total
            for side, who in (("", "the network"), ("baseline_", total["baseline"])):
                ms, compiled = total.get(f"{side}ms"), total[f"{side}compiled_ms"]
                if compiled:
                    said.append(f"{who}, compiled by torch as a whole, takes {compiled:.3f} ms instead of {ms:.3f} ms")
                    said[-1] += f" for {size}" if len(self.profiles) > 1 else ""
        return said

    def numbers(self) -> dict[str, Any]:
        """All of it as plain values: of one batch size title, rows and total, of several such a record of each."""
        records = [{"batch": size, **json.loads(self.grouped(each).to_json())} for size, each in self.profiles.items()]
        found = {"batches": records} if len(records) > 1 else records[0]
        return {**found, **({"summary": {"per_picture": self.per_picture}} if self.per_picture else {})}

    def text(self, kind: str) -> str:
        """In one of the formats of `accel.reports.tables`."""
        if kind == "json":
            return json.dumps(self.numbers(), indent=2) + "\n"
        if kind == "csv":
            keys = [column.key for column in Detailed.columns]
            rows = [(size, row) for size, each in self.profiles.items() for row in self.grouped(each).rows]
            return comma_separated(["batch", *keys], ([size, *(row.get(key) for key in keys)] for size, row in rows))
        reports: list[Report] = [self.readable(profile) for profile in self.profiles.values()]
        if len(reports) > 1:
            reports.append(self.batch_sizes())
        shown = [report.to_markdown() if kind == "md" else f"{report}\n" for report in reports]
        bullet = "- " if kind == "md" else ""
        return "\n".join(shown) + "".join(f"{bullet}{sentence}\n" for sentence in self.sentences())


def page(model: str, found: Findings, machine: Mapping[str, Any]) -> str:
    """The HTML page, everything inside; `model` as the command line calls it."""
    sizes = found.batch_sizes()
    return render(
        "profile.html",
        title=f"accel profile {model}",
        model=model,
        sentences=found.sentences(),
        sizes=sizes.cells() if len(found.profiles) > 1 else None,
        sections=[_section(found, size, profile) for size, profile in found.profiles.items()],
        machine=machine,
    )


def said_of(spread: Mapping[str, float]) -> str:
    """One sentence on the executed MACs of single pictures."""
    mean, deviation, *ends = (show_macs(spread[key]) for key in ("mean", "deviation", "5%", "50%", "95%"))
    return (
        f"executed MACs of a picture, over {spread['images']}: mean {mean}, standard deviation {deviation}, "
        f"5/50/95 %: {' / '.join(ends)}"
    )


def draw_roofline(rows: list[dict], peaks: Peaks) -> Figure:
    """Operations a second over operations a byte: the rows that say both, below the ceilings of their precision;
    those that take longest by name."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    panel = figure.subplots()
    intensities = np.geomspace(0.5, 2000, 100)
    for precision in peaks.gops:
        limits = [peaks.limit(precision, intensity) for intensity in intensities]
        label = f"{precision}, measured: {peaks.gops[precision]:.0f} GOP/s"
        panel.plot(intensities, limits, color=_COLOURS[precision], label=label)
    named = sorted(rows, key=lambda row: -(row["ms"] or 0))[:_LONGEST]
    for row in rows:
        if row.get("gops") and row.get("bytes"):
            intensity = 2 * row["executed_macs"] / row["bytes"]
            size = 20 + 400 * row["share"]
            colour = _COLOURS.get(row.get("precision"), "tab:gray")
            panel.scatter(intensity, row["gops"], s=size, alpha=0.6, color=colour, linewidths=0)
            if row in named:
                panel.annotate(row["layer"], (intensity, row["gops"]), fontsize=8)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GOP/s")
    panel.grid(alpha=0.3, which="both")
    panel.legend(loc="lower right")
    return figure


def _section(found: Findings, size: int, profile: Profile) -> dict[str, Any]:
    """What the page says of one batch size."""
    rows = [row for row in found.grouped(profile).rows if row["ms"]]
    longest = sorted(rows, key=lambda row: -row["ms"])[:_LONGEST]
    roofline = None
    if found.peaks is not None:
        figure = draw_roofline(rows, found.peaks)
        roofline = picture_source(functools.partial(figure.savefig, format="png", dpi=110))
    return {
        "size": size,
        "subtitle": profile.title,
        "headline": _headline(profile.total),
        "longest": [(row["layer"], row["ms"], 100 * row["ms"] / longest[0]["ms"]) for row in longest],
        "roofline": roofline,
        "by_layer": found.readable(profile).filled(),
    }


def _headline(total: Mapping[str, Any]) -> list[tuple[str, str]]:
    between = f"10 to 90 % of the runs: {total['q10_ms']:.1f} to {total['q90_ms']:.1f}"
    cards = [(f"{total['ms']:.1f} ms", f"a call ({between})")]
    if total["speedup"]:
        cards.append((f"{total['speedup']:.2f}x", f"as fast as {total['baseline']} ({total['baseline_ms']:.1f} ms)"))
    if total["compiled_ms"]:
        cards.append((f"{total['compiled_ms']:.1f} ms", "a call, compiled by torch"))
    cards.append(
        (show_macs(total["executed_macs"]), f"multiply-accumulates, of {show_macs(total['dense_macs'])} dense")
    )
    if total["gops"]:
        reached = total["of_peak"] and f"{percent(total['of_peak'])} of what the machine can do"
        cards.append((f"{show_rate(total['gops'])} GOP/s", reached or "achieved, over all precisions"))
    cards.append((show_bytes(total["peak_bytes"]), "of activations at the most"))
    return cards

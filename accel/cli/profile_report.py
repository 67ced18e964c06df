"""The page of `accel profile -o`: where time goes, layer by layer, and what the machine could do."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accel.reports.pages import picture_source, render
from accel.reports.tables import percent, show_macs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from accel.profiling.layers import Profile
    from accel.profiling.peaks import Peaks

_LONGEST = 8  # layers that have a bar, and a name beside their dot
_COLOURS = {"fp32": "tab:blue", "int8": "tab:orange"}


def page(
    model: str, found: Profile, peaks: Peaks, machine: Mapping[str, Any], spread: Mapping[str, float] | None
) -> str:
    """The HTML page, everything inside.

    Args:
        model: as the command line calls it.
        spread: what `accel.profiling.flops.macs_spread` found, if pictures were given.
    """
    rows = sorted((row for row in found.rows if row["ms"]), key=lambda row: -row["ms"])[:_LONGEST]
    figure = draw_roofline(found.rows, peaks)
    return render(
        "profile.html",
        title=f"accel profile {model}",
        model=model,
        subtitle=found.title,
        headline=_headline(found, peaks),
        spread=None if spread is None else said_of(spread),
        longest=[(row["layer"], row["ms"], 100 * row["ms"] / rows[0]["ms"]) for row in rows],
        roofline=picture_source(functools.partial(figure.savefig, format="png", dpi=110)),
        by_layer=found.filled(),
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
            colour = _COLOURS.get(row.get("precision") or "fp32", "tab:gray")
            panel.scatter(intensity, row["gops"], s=size, alpha=0.6, color=colour, linewidths=0)
            if row in named:
                panel.annotate(row["layer"], (intensity, row["gops"]), fontsize=8)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GOP/s")
    panel.grid(alpha=0.3, which="both")
    panel.legend(loc="lower right")
    return figure


def _headline(found: Profile, peaks: Peaks) -> list[tuple[str, str]]:
    total = found.total
    cards = [(f"{total['ms']:.1f} ms", "a call")]
    if total["speedup"]:
        cards.append((f"{total['speedup']:.2f}x", f"faster than dense ({total['baseline_ms']:.1f} ms)"))
    cards.append(
        (show_macs(total["executed_macs"]), f"multiply-accumulates, of {show_macs(total['dense_macs'])} dense")
    )
    if total["gops"]:
        reached = percent(total["gops"] / max(peaks.gops.values()))
        cards.append((f"{total['gops']:.0f} GOP/s", f"{reached} of the highest ceiling"))
    cards.append((f"{total['peak_bytes'] / 1e6:.3g} MB", "of activations at the most"))
    return cards

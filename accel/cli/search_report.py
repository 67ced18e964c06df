"""The page of `accel search`: what was asked for, what was measured, and what each layer keeps."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from accel.reports.pages import picture_source, render

if TYPE_CHECKING:
    from accel.greedy.trace import FoundRules

PAGE = "search.html"


def page(model: str, asked: str, found: FoundRules, plot: pathlib.Path) -> str:
    """The HTML page, everything inside.

    Args:
        asked: the target in words.
        plot: the PNG that the search drew.
    """
    report = found.report
    total = report.total
    return render(
        "search.html",
        title=f"accel search {model}",
        model=model,
        headline=_headline(total),
        asked=asked,
        tried=len(found.tried),
        minutes=f"{total['minutes']:.1f}",
        origin=total["start"],
        plot=picture_source(lambda file: file.write(plot.read_bytes())),
        networks=_networks(found),
        costs=found.table.unit,
        by_layer=report.filled(),
    )


def _headline(total: dict[str, Any]) -> list[tuple[str, str]]:
    cards = [(f"{total['cost'] / total['dense_cost']:.0%}", "of the original's cost, by the table of layers")]
    if "speedup" in total:
        cards.insert(0, (f"{total['speedup']:.2f}x", "as fast as the original, as a whole"))
    for key, text in (("loss", "loss, on pictures that nothing was fitted to"), ("drop", "more than the original's")):
        if key in total:
            cards.append((f"{total[key]:.4g}", text))
    return cards


def _networks(found: FoundRules) -> dict[str, Any]:
    """The networks measured, the fastest first."""
    tried = sorted(found.tried, key=lambda each: -each.speedup)
    lines = [[each.origin, f"{each.speedup:.2f}x", f"{each.loss:.4g}"] for each in tried]
    chosen = [index for index, each in enumerate(tried) if each == found.chosen]
    return {"headings": ["made from", "speed-up", "loss"], "lines": lines, "chosen": chosen}

"""The demo's report: one HTML file with everything inside, and the same pictures as PNG files beside it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from accel.reports.pages import picture_source, render

if TYPE_CHECKING:
    import PIL.Image

    from accel.reports.tables import Report

Row = Mapping[str, Any]


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("network", lambda row: row["network"]),
    ("GMACs", lambda row: f"{row['macs'] / 1e9:.2f}"),
    ("of dense", lambda row: f"{100 * row['share_of_macs']:.0f} %"),
    ("ms / picture", lambda row: f"{row['ms_per_picture']:.2f}"),
    ("speed-up", lambda row: f"{row['speedup']:.2f}x"),
    ("10-90 %", lambda row: f"{row['speedup_low']:.2f}-{row['speedup_high']:.2f}x"),
    ("by MACs", lambda row: f"{row['speedup_by_macs']:.2f}x"),
    ("accuracy", lambda row: f"{100 * row['accuracy']:.1f} %"),
    ("mask IoU", lambda row: f"{row['mask_iou']:.3f}"),
)


@dataclasses.dataclass(frozen=True)
class Findings:
    """All the demo found. Attributes: rows, one per dense form and conversion; layers, the profile of the first
    conversion; pictures by file name; machine; batch, pictures per timed call; test_pictures, for the quality."""

    rows: list[dict[str, Any]]
    layers: Report
    pictures: Mapping[str, PIL.Image.Image]
    machine: Mapping[str, Any]
    batch: int
    test_pictures: int

    def title(self) -> str:
        machine = f"{self.machine['cpu']}, {self.machine['threads']} threads"
        return f"{machine}, batch of {self.batch}; quality on {self.test_pictures} drawn pictures"


def is_ours(row: Row) -> bool:
    return not row["network"].startswith("dense")


def write_report(path: pathlib.Path, found: Findings) -> None:
    """Write the HTML file and the PNG files beside it, into a folder that is still private."""
    for name, picture in found.pictures.items():
        picture.save(path.parent / name, format="PNG")
    path.write_text(page(found), encoding="utf-8")


def page(found: Findings) -> str:
    ours = [k for k, row in enumerate(found.rows) if is_ours(row)]
    objects, kept = (_image(found.pictures[name]) for name in ("objects.png", "kept_positions.png"))
    return render(
        "demo.html",
        title="accel demo",
        subtitle=found.title(),
        headline=_headline(found),
        rows=found.rows,
        ours=ours,
        longest=max(row["ms_per_picture"] for row in found.rows),
        summary={
            "headings": [heading for heading, _ in COLUMNS],
            "lines": [[text(row) for _, text in COLUMNS] for row in found.rows],
        },
        first=found.rows[ours[0]]["network"],
        by_layer=found.layers.filled(),
        objects=objects,
        kept=kept,
        machine=found.machine,
    )


def _headline(found: Findings) -> tuple[tuple[str, str], ...]:
    dense = next(row for row in found.rows if not is_ours(row))
    ours = next(row for row in found.rows if is_ours(row))
    return (
        (f"{ours['speedup']:.2f}x", f"faster than dense, {ours['network']}"),
        (f"{100 * ours['share_of_macs']:.0f} %", "of the multiply-accumulates"),
        (f"{100 * ours['accuracy']:.1f} %", f"right classes (dense {100 * dense['accuracy']:.1f} %)"),
        (f"{ours['mask_iou']:.3f}", f"IoU of the object mask (dense {dense['mask_iou']:.3f})"),
    )


def _image(picture: PIL.Image.Image) -> str:
    return picture_source(functools.partial(picture.save, format="PNG"))

"""The demo's report: one HTML file with everything inside, and the same pictures as PNG files beside it."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #282c34; background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 1rem; margin: 1.2rem 0; }
.headline div { background: #f2f6fa; border-radius: 8px; padding: .7rem 1.2rem; }
.headline b { display: block; font-size: 1.7rem; color: #0b6bcb; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.ours td { font-weight: 600; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .8rem; align-items: center; }
.bars i { display: block; height: 1.1rem; border-radius: 3px; background: #b9c2cc; }
.bars i.ours { background: #0b6bcb; }
img { max-width: 100%; height: auto; margin-top: .4rem; } p.small, dl { font-size: .85rem; color: #59626d; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""


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
    objects, kept = (_image(found.pictures[name], name) for name in ("objects.png", "kept_positions.png"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>accel demo</title><style>{_STYLE}</style></head><body>
<h1>Convolutions that compute only where it matters</h1>
<p class="small">{html.escape(found.title())}</p>
{_headline(found)}
<h2>What it costs and what it saves</h2>
{_summary(found)}
<p class="small">Speed-ups are against the fastest dense form of the same network, round by round of an interleaved run
(median, and 10 % to 90 % quantile). MACs are those of convolutions and linear layers, per picture. &ldquo;Folded&rdquo;
has its batch norms folded into the convolutions, as conversion does.</p>
{_bars(found)}
<h2>The object each network finds</h2>
<p>A network names the shape and outlines it. The last rows computed a half, a third and a quarter of the positions of
every convolution but the first and the last, and filled in the others from the nearest computed one.</p>
{objects}
<h2>Where it looked</h2>
<p>The first picture at the resolution of the first stage; only the bright positions were computed. This mask is a
fixed lattice: it is the same for every picture.</p>
{kept}
<h2>Layer by layer, {html.escape(next(row["network"] for row in found.rows if is_ours(row)))}</h2>
{_layers(found.layers)}
<h2>The network, the pictures, the machine</h2>
<p class="small">The network was trained by this project on pictures it draws itself, with and without perforation, so
that it holds up under it; the recipe lies beside its weights. The pictures here were drawn for this run.</p>
{_machine(found)}
</body></html>
"""


def _headline(found: Findings) -> str:
    dense = next(row for row in found.rows if not is_ours(row))
    ours = next(row for row in found.rows if is_ours(row))
    cards = (
        (f"{ours['speedup']:.2f}x", f"faster than dense, {ours['network']}"),
        (f"{100 * ours['share_of_macs']:.0f} %", "of the multiply-accumulates"),
        (f"{100 * ours['accuracy']:.1f} %", f"right classes (dense {100 * dense['accuracy']:.1f} %)"),
        (f"{ours['mask_iou']:.3f}", f"IoU of the object mask (dense {dense['mask_iou']:.3f})"),
    )
    inside = "".join(f"<div><b>{value}</b>{html.escape(text)}</div>" for value, text in cards)
    return f'<div class="headline">{inside}</div>'


def _machine(found: Findings) -> str:
    lines = (f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in found.machine.items())
    return f"<dl>{''.join(lines)}</dl>"


def _summary(found: Findings) -> str:
    body = [([text(row) for _, text in COLUMNS], is_ours(row)) for row in found.rows]
    return _table([heading for heading, _ in COLUMNS], body)


def _layers(report: Report) -> str:
    body = [([column.text(row) for column in report.columns], False) for row in report.rows]
    body.append(([column.text(report.total) for column in report.columns], True))
    return _table([column.heading for column in report.columns], body)


def _table(headings: list[str], body: list[tuple[list[str], bool]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    lines = (
        f"<tr{' class=ours' if strong else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for cells, strong in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _bars(found: Findings) -> str:
    longest = max(row["ms_per_picture"] for row in found.rows)
    bars = (
        f"<span>{html.escape(row['network'])}</span>"
        f'<i{" class=ours" if is_ours(row) else ""} style="width:{100 * row["ms_per_picture"] / longest:.1f}%"></i>'
        f"<span>{row['ms_per_picture']:.2f} ms</span>"
        for row in found.rows
    )
    return f'<h2>Milliseconds per picture</h2><div class="bars">{"".join(bars)}</div>'


def _image(picture: PIL.Image.Image, name: str) -> str:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'

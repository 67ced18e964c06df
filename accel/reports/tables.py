"""Rows of plain values as text: a table of fixed width, markdown, comma-separated values, json."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("table", "json", "csv", "md")
_WIDTH = 160  # characters of a printed table


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: the key of its value in a row, its heading, and how to print the value (None prints as nothing). An
    optional one is left out of a printed table that would be too wide with it."""

    key: str
    heading: str
    show: Callable[[object], str] = str
    optional: bool = False

    def text(self, row: Mapping[str, object]) -> str:
        value = row.get(self.key)
        return "" if value is None else self.show(value)


class Report:
    """Rows of plain values with a total; `str()` gives a table of fixed width.

    Attributes:
        title: what the table shows.
        rows: one dict per layer; the keys are those of `columns`, the values numbers, strings or None.
        total: the same keys for the whole network; empty where there is no such thing.
    """

    columns: Sequence[Column] = ()

    def __init__(self, title: str, rows: list[dict], total: dict) -> None:
        self.title, self.rows, self.total = title, rows, total

    def shown(self) -> Sequence[Column]:
        """The columns to look at; files of numbers have all of them."""
        return self.columns

    def table(self, wide: bool = True) -> Table:
        """The report as a rich table; `wide`: with its optional columns."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.title, box=box.SIMPLE_HEAD, show_footer=bool(self.total), title_justify="left")
        columns = [column for column in self.shown() if wide or not column.optional]
        for column in columns:
            left = column.show is str
            table.add_column(column.heading, footer=column.text(self.total), justify="left" if left else "right")
        for row in self.rows:
            table.add_row(*(column.text(row) for column in columns))
        return table

    def __str__(self) -> str:
        from rich.console import Console
        from rich.measure import Measurement

        console = Console(file=io.StringIO(), width=_WIDTH)
        unbounded = console.options.update(max_width=10 * _WIDTH)
        wide = Measurement.get(console, unbounded, self.table()).maximum <= _WIDTH
        console.print(self.table(wide))
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """(headings, lines of text): what is shown, the total last where there is one."""
        columns = self.shown()
        lines = [[column.text(row) for column in columns] for row in [*self.rows, *filter(None, [self.total])]]
        return [column.heading for column in columns], lines

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from accel.reports.pages import render

        headings, lines = self.cells()
        total = [lines.pop()] if self.total else []
        return render("table.html", title=self.title, headings=headings, lines=lines, total=total)

    def filled(self) -> dict[str, list]:
        """What a page shows of the columns that say anything: `headings`, and `lines` of text, the total the last."""
        headings, lines = self.cells()
        places = [place for place in range(len(headings)) if any(line[place] for line in lines)]
        return {
            "headings": [headings[place] for place in places],
            "lines": [[line[place] for place in places] for line in lines],
        }

    def to_markdown(self) -> str:
        """A GitHub table, the total as its last row."""
        return markdown(*self.cells())

    def to_csv(self) -> str:
        """Comma-separated values, unrounded, without the total."""
        keys = [column.key for column in self.columns]
        return comma_separated(keys, ([row.get(key) for key in keys] for row in self.rows))

    def to_json(self) -> str:
        """An object with title, rows and total, unrounded."""
        return json.dumps({"title": self.title, "rows": self.rows, "total": self.total}, indent=2)


def rows_as(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in one of the FORMATS; their columns are the union of the keys, in order of appearance.

    Values that are dicts have no place in a table: only json shows them.
    """
    if kind == "json":
        return json.dumps(list(rows), indent=2) + "\n"
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    if kind == "csv":
        return comma_separated(columns, cells)
    return markdown(columns, cells) if kind == "md" else _fixed_width(columns, cells)


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A GitHub table."""
    cells = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in cells)


def comma_separated(headings: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([headings, *lines])
    return out.getvalue()


def _fixed_width(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *lines)]
    cells = [headings, ["-" * width for width in widths], *lines]
    return "".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() + "\n" for line in cells)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_macs(value: float) -> str:
    """12.3 M, 1.85 G: three digits and an SI prefix."""
    power = min(max(int(math.log10(value)) // 3, 0), 4) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {' kMGT'[power]}".rstrip() if power else f"{value:g}"


def show_bytes(value: float) -> str:
    """12.3 MB, 1.85 GB: as `show_macs`."""
    return f"{show_macs(value)}{'' if value >= 1000 else ' '}B"


def show_rate(value: float) -> str:
    """123, 45, 6.7, 0.089: two digits at least."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def percent(value: float) -> str:
    """12.5 %."""
    return f"{100 * value:.1f} %"

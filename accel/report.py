"""Tables of what a conversion does: the plan before it, the profile after it; printed, or as markdown, csv and json."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from accel.nn.perforated import PerforatedConv2d
from accel.nn.running import Call

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 150  # characters of a printed table


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: the key of its value in a row, its heading, and how to print the value (None prints as nothing)."""

    key: str
    heading: str
    show: Callable[[object], str] = str

    def text(self, row: Mapping[str, object]) -> str:
        value = row.get(self.key)
        return "" if value is None else self.show(value)


class Report:
    """Rows of plain values with a total; `str()` gives a table of fixed width.

    Attributes:
        title: what the table shows.
        rows: one dict per layer; the keys are those of `columns`, the values numbers, strings or None.
        total: the same keys for the whole network.
    """

    columns: Sequence[Column] = ()

    def __init__(self, title: str, rows: list[dict], total: dict) -> None:
        self.title, self.rows, self.total = title, rows, total

    def table(self) -> Table:
        """The report as a rich table."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.title, box=box.SIMPLE_HEAD, show_footer=True, title_justify="left")
        for column in self.columns:
            left = column.show is str
            table.add_column(column.heading, footer=column.text(self.total), justify="left" if left else "right")
        for row in self.rows:
            table.add_row(*(column.text(row) for column in self.columns))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_WIDTH)
        console.print(self.table())
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def to_markdown(self) -> str:
        """A GitHub table, the total as its last row."""
        lines = [[column.heading for column in self.columns], ["---"] * len(self.columns)]
        lines += [[column.text(row) for column in self.columns] for row in [*self.rows, self.total]]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

    def to_csv(self) -> str:
        """Comma-separated values, unrounded, without the total."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [column.key for column in self.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def to_json(self) -> str:
        """An object with title, rows and total, unrounded."""
        return json.dumps({"title": self.title, "rows": self.rows, "total": self.total}, indent=2)


def show_macs(value: float) -> str:
    """12.3 M, 1.85 G: three digits and an SI prefix."""
    power = min(max(int(math.log10(value)) // 3, 0), 4) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {' kMGT'[power]}".rstrip() if power else f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


class Plan(Report):
    """What a conversion does to each convolution and linear layer, for one example input."""

    columns = (
        Column("layer", "layer"),
        Column("shape", "kernel"),
        Column("output", "output"),
        Column("dense_macs", "dense MACs", show_macs),
        Column("executed_macs", "executed MACs", show_macs),
        Column("keep", "keep", _percent),
        Column("mask", "mask"),
        Column("interpolate", "filled by"),
        Column("note", "note"),
    )


def call_macs(layer: nn.Module, call: Call) -> int:
    """Dense multiply-accumulates of one call of a convolution or linear layer."""
    return math.prod(call.out_shape) * math.prod(layer.weight.shape[1:])


def plan_of(
    layers: Mapping[str, nn.Module], calls: Mapping[str, list[Call]], notes: Mapping[str, str], title: str
) -> Plan:
    """The plan of a converted model from the recorded calls of its layers; `notes` says what is special about some."""
    rows = [_plan_row(name, layer, calls[name], notes.get(name)) for name, layer in layers.items()]
    dense, executed = (sum(row[key] for row in rows) for key in ("dense_macs", "executed_macs"))
    share = executed / dense if dense else 1.0
    total = {"layer": "total", "dense_macs": dense, "executed_macs": executed, "keep": share}
    return Plan(title, rows, total)


def _plan_row(name: str, layer: nn.Module, calls: list[Call], note: str | None) -> dict:
    perforated = isinstance(layer, PerforatedConv2d)
    dense = executed = 0
    for call in calls:
        macs = call_macs(layer, call)
        dense += macs
        executed += round(macs * layer.position_set(*call.out_shape[-2:]).keep) if perforated else macs
    notes = [note, None if len(calls) == 1 else f"called {len(calls)} times" if calls else "not called"]
    return {
        "layer": name,
        "shape": _shape(layer),
        "output": "x".join(map(str, calls[0].out_shape[1:])) if calls else None,
        "dense_macs": dense,
        "executed_macs": executed,
        "keep": executed / dense if perforated and dense else None,
        "mask": layer.config.mask if perforated else None,
        "interpolate": layer.config.interpolate if perforated else None,
        "note": "; ".join(filter(None, notes)) or None,
    }


def _shape(layer: nn.Module) -> str:
    """Such as '3x3/2 64>128' or '512>10'."""
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features}>{layer.out_features}"
    kernel = "x".join(map(str, layer.kernel_size))
    stride = "" if set(layer.stride) == {1} else f"/{layer.stride[0]}"
    return f"{kernel}{stride} {layer.in_channels}>{layer.out_channels}"

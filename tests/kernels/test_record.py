"""The records that cross the border between Python and C: declared once, refused where the two sides differ."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accel.kernels.cpu._engine", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import _engine, _special, record
from accel.kernels.cpu.layout import Record


def test_the_header_is_what_the_list_yields():
    text = pathlib.Path(record.__file__).with_name("record.h").read_text()
    assert text == record.header(), "write it again: python -m accel.kernels.cpu.record"


@pytest.mark.parametrize("extension", [_engine, _special])
def test_an_extension_tells_the_records_it_was_built_from(extension):
    record.check(extension)
    assert len(extension.RECORDS) == len(record.RECORDS) >= 25
    assert extension.RECORDS["StageBuffer"] == (
        ("offset", "int64_t", 0),
        ("pixels", "int64_t", 8),
        ("channels", "int64_t", 16),
        ("itemsize", "int64_t", 24),
    )
    assert extension.RECORDS["Step"][2] == ("taps", "int32_t", 8)


def swapped(fields: dict[str, str], place: int) -> dict[str, str]:
    names = list(fields)
    names[place : place + 2] = reversed(names[place : place + 2])
    return {name: fields[name] for name in names}


@pytest.mark.parametrize("changed", record.RECORDS, ids=lambda r: r.name)
def test_two_fields_changed_over_are_refused(changed, monkeypatch):
    fields = changed.fields
    for place in range(len(fields) - 1):
        monkeypatch.setattr(changed, "fields", swapped(fields, place))
        with pytest.raises(RuntimeError, match=f"place {place} of {changed.name} is {list(fields)[place]} ") as caught:
            record.check(_engine)
        assert "\n" not in str(caught.value)


CHANGES = {
    "missing here": lambda fields: dict(list(fields.items())[:-1]),
    "missing there": lambda fields: {**fields, "new": "int64_t"},
    "another type": lambda fields: {**fields, "threads": "double"},
    "another name": lambda fields: {{"taps": "steps"}.get(name, name): kind for name, kind in fields.items()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_fields_are_refused(change, monkeypatch):
    monkeypatch.setattr(record.JOB, "fields", CHANGES[change](record.JOB.fields))
    with pytest.raises(RuntimeError, match=r"^accel.kernels.cpu._engine was built from other .*\(pip install -e \.\)$"):
        record.check(_engine)


def test_another_version_is_refused(monkeypatch):
    old = SimpleNamespace(__name__="_engine", MAX_VECTORS=4, GRAD_VECTORS=2)  # before it told its records
    with pytest.raises(RuntimeError, match="place 0 of Job is missing in it, x const void \\* 0 here"):
        record.check(old)
    monkeypatch.setattr(record, "RECORDS", record.RECORDS[:-1])
    with pytest.raises(RuntimeError, match="place 0 of Elementwise is first const void \\* 0 in it, missing here"):
        record.check(_engine)
    monkeypatch.undo()
    monkeypatch.setitem(record.CONSTANTS, "MAX_REACH", 9)
    with pytest.raises(RuntimeError, match="of constants is MAX_REACH 8 in it, MAX_REACH 9 here"):
        record.check(_engine)


def test_a_mismatch_stops_the_first_op_and_is_not_taken_for_a_missing_engine():
    source = """
from accel.kernels.cpu import record
names = list(record.JOB.fields)
record.JOB.fields = {name: record.JOB.fields[name] for name in [names[1], names[0], *names[2:]]}
import torch
from accel.ops import ponder_cost
ponder_cost(torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.int32))
"""
    root = pathlib.Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1] == (
        "RuntimeError: accel.kernels.cpu._engine was built from other sources than these: place 0 of Job is "
        "x const void * 0 in it, packed const void * 0 here; build it again (pip install -e .)"
    )


def sums_of(rows: torch.Tensor, sums: torch.Tensor) -> dict[str, int]:
    count, columns = rows.shape
    return {"rows": rows.data_ptr(), "sums": sums.data_ptr(), "count": count, "columns": columns, "threads": 1}


def test_fields_are_read_by_name_in_any_order():
    rows, sums = torch.arange(6.0).view(3, 2), torch.empty(2)
    given = sums_of(rows, sums)
    for order in (list(given), list(given)[::-1], sorted(given)):
        _engine.column_sums(**{"".join(name): given[name] for name in order})  # names made at run time among them
        assert sums.tolist() == [6, 9]
        sums.fill_(float("nan"))
    packed = record.COLUMN_SUMS.pack(**{name: given[name] for name in ("count", "sums", "threads")})
    _engine.column_sums(packed, columns=2, rows=rows.data_ptr())
    assert sums.tolist() == [6, 9]


def test_what_is_not_the_record_is_refused():
    rows, sums = torch.ones(3, 2), torch.ones(2)
    given = sums_of(rows, sums)
    packed = record.COLUMN_SUMS.pack(**given)
    fewer = {name: value for name, value in given.items() if name != "columns"}
    for call, message in (
        (lambda: _engine.column_sums(), "ColumnSums misses its field rows"),
        (lambda: _engine.column_sums(**fewer), "ColumnSums misses its field columns"),
        (lambda: _engine.column_sums(record.COLUMN_SUMS.pack(**fewer)), "ColumnSums misses its field columns"),
        (lambda: _engine.column_sums(packed, columns=2), "ColumnSums got its field 'columns' twice"),
        (lambda: _engine.column_sums(**given, rho=0), "ColumnSums has no field 'rho'"),
        (lambda: _engine.column_sums(*given.values()), "ColumnSums takes its fields by name, got 5 values"),
        (lambda: _engine.column_sums(0), "ColumnSums: expected what Record.pack made of it, got 0"),
        (lambda: _engine.column_sums(record.JOB.pack()), "ColumnSums: expected what Record.pack made of it"),
        (lambda: _engine.column_sums(**given | {"count": "3"}), "'str' object cannot be interpreted as an integer"),
        (lambda: _engine.halting_step(record.HALTING_JOB.pack(h=0), eps="0"), "must be real number, not str"),
        (lambda: _engine.replay(), "replay expects a packed record"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_a_replay_gets_as_many_addresses_as_it_reads():
    replay = record.REPLAY.pack(
        calls=0, buffers=0, call_count=0, buffer_count=0, memory_each=0, groups=1, threads=1, outside_count=2
    )
    with pytest.raises(TypeError, match="replay expects 2 addresses, at most 57, got 1"):
        _engine.replay(replay, 0, memory=0)
    _engine.replay(replay, 0, 0, memory=0)


def test_packing_names_what_is_wrong():
    made = Record("Made", "", ("int64_t", "first second"), ("double", "third"), ("int32_t", "fourth"))
    assert made.layout == (
        ("first", "int64_t", 0),
        ("second", "int64_t", 8),
        ("third", "double", 16),
        ("fourth", "int32_t", 24),
    )
    with pytest.raises(TypeError, match="Made has no field 'fifth', only first, second, third, fourth"):
        made.pack(fifth=1)
    with pytest.raises(TypeError, match="Made misses second, fourth"):
        made.row(first=1, third=2)
    columns = {name: torch.arange(3) for name in ("tap", "offset")}
    with pytest.raises(TypeError, match="Step misses taps"):
        record.STEP.table(**columns)
    table = record.STEP.table(**columns, taps=torch.tensor([4, 5, 6]))
    assert table.dtype is torch.int32 and table.tolist() == [[0, 0, 4], [1, 1, 5], [2, 2, 6]]
    packed = record.PANEL_SIZE.pack(taps=9, groups=2, kind=1)
    assert record.PANEL_SIZE.row(packed, k_group=3, c_group=4) == [2, 3, 4, 9, 1]
    assert len(packed) == 8 + 8 * 5


def test_no_call_names_so_many_fields_that_python_makes_a_dict_of_them():
    """CPython calls with at most 30 values and names on its stack; a dict costs 1.5 microseconds more."""
    named = {}
    for path in sorted(pathlib.Path(record.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_engine."):
                named[f"{path.name}:{node.lineno}"] = len(node.args) + 2 * len(node.keywords)
    assert len(named) > 20 and {where for where, count in named.items() if count > 30} == set()

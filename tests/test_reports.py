"""Rows as text in every format, and pages of HTML: nothing that is put into them is taken for markup."""

import base64
import json

import jinja2
import pytest

from accel.reports import pages
from accel.reports.tables import Column, Report, rows_as

ROWS = [{"name": "a|b", "value": 0.123456}, {"name": "c", "more": 3, "spread": {"low": 1}}]


def test_rows_in_every_format():
    assert rows_as("table", ROWS) == "name  value   more\n----  ------  ----\na|b   0.1235\nc             3\n"
    assert rows_as("csv", ROWS) == "name,value,more\na|b,0.1235,\nc,,3\n"
    assert rows_as("md", ROWS) == "| name | value | more |\n| --- | --- | --- |\n| a\\|b | 0.1235 |  |\n| c |  | 3 |\n"
    assert json.loads(rows_as("json", ROWS)) == ROWS


def test_cells_of_a_page_are_escaped():
    values = {"gaps": 1, "cells": 1234, "completed": 2, "trust": None, "distributions": None}
    page = pages.render("impute.html", title="<b>", columns=[("x & y", "<i>", "5 %")], **values)
    assert "<title>&lt;b&gt;</title>" in page and "1 of 1,234 cells" in page
    assert "<td>x &amp; y</td><td>&lt;i&gt;</td><td>5 %</td>" in page and "Nothing was missing" in page


def test_a_page_lacks_nothing_in_silence():
    with pytest.raises(jinja2.UndefinedError, match="'columns' is undefined"):
        pages.render("impute.html", title="x", gaps=1, cells=2, completed=1, trust=None, distributions=None)


def test_pictures_stand_in_the_page():
    source = pages.picture_source(lambda file: file.write(b"png"))
    assert source == "data:image/png;base64," + base64.b64encode(b"png").decode()


def test_a_notebook_shows_a_table():
    class Layers(Report):
        columns = (Column("name", "layer"), Column("ms", "ms", "{:.1f}".format))

    shown = Layers("<net>", [{"name": "a<b", "ms": 1.25}, {"name": "c"}], {"name": "total", "ms": 2.0})._repr_html_()
    assert "<caption>&lt;net&gt;</caption>" in shown and '<th scope="col">layer</th>' in shown
    assert "<tr><td>a&lt;b</td><td>1.2</td></tr>" in shown and "<tr><td>c</td><td></td></tr>" in shown
    assert "<tfoot><tr><td>total</td><td>2.0</td></tr></tfoot>" in shown

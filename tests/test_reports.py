"""Rows as text in every format, and pages of HTML: nothing that is put into them is taken for markup."""

import base64
import json

import jinja2
import pytest

from accel.reports import pages
from accel.reports.tables import rows_as

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

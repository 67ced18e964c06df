"""Rows as text in every format, and pages of HTML: nothing that is put into them is taken for markup."""

import base64
import itertools
import json
import pathlib
import re

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


def test_optional_columns_and_totals_are_left_out():
    class Wide(Report):
        columns = (Column("name", "layer"), Column("ms", "ms", "{:.1f}".format, optional=True))

    assert "ms" in str(Wide("", [{"name": "a", "ms": 1.0}], {}))
    wide = Wide("", [{"name": "a" * 155, "ms": 1.0}], {})
    assert "ms" not in str(wide) and "ms" in wide.to_csv() and wide.to_markdown().count("\n") == 3
    assert "<tfoot>" not in wide._repr_html_()


def test_a_page_shows_the_columns_that_say_something():
    class Layers(Report):
        columns = (Column("name", "layer"), Column("note", "note"), Column("ms", "ms", "{:.1f}".format))

    found = Layers(
        "net", [{"name": "a", "ms": 1.25}, {"name": "c", "note": None}], {"name": "total", "ms": 2.0}
    ).filled()
    assert found == {"headings": ["layer", "ms"], "lines": [["a", "1.2"], ["c", ""], ["total", "2.0"]]}


PAGES = pathlib.Path(pages.__file__).parent
TEMPLATES = sorted(path.name for path in PAGES.glob("*.html"))


def luminance(colour):
    """Of WCAG 2.1, of a colour such as #0b6bcb or #fff."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out():
    """A contrast of 4.5 at least, as WCAG 2.1 asks of text (AA), of every colour of text on both grounds."""
    style = (PAGES / "page.html").read_text()
    grounds = {"#fff", *re.findall(r"\.headline div \{ background: (#\w+)", style)}
    texts = set(re.findall(r"[ {;]color: (#\w+)", style))
    assert len(grounds) == 2 and len(texts) == 3
    for ground, text in itertools.product(grounds, texts):
        light, dark = sorted(map(luminance, (ground, text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_pages_can_be_heard(name):
    """Pictures have words, headings of columns say so, and a page its language and its width on a phone."""
    text = (PAGES / name).read_text()
    assert all(re.search(r'alt="[^"]+"', picture) for picture in re.findall(r"<img[^>]*>", text))
    assert "<th>" not in text
    if "<!doctype html>" in text:
        assert '<html lang="en">' in text and 'name="viewport"' in text and "<title>" in text
    else:
        assert text.startswith('{% extends "page.html" %}') or name.startswith(("table", "live_"))
    assert not re.search(r'(src|href)="http', text)

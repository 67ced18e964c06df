"""HTML pages with everything inside, from the templates beside this file; what is put into them is escaped."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Callable
from typing import Any


def render(template: str, **values: Any) -> str:
    """The page that a template such as "demo.html" makes of the values."""
    import jinja2

    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**values)


def picture_source(save: Callable[[io.BytesIO], object]) -> str:
    """What stands in an <img src=...> for the PNG that `save` writes."""
    data = io.BytesIO()
    save(data)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"

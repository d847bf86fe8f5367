"""Writes the page and, next to it, the script that draws its charts: it opens from a disk, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pageturn.measures import Measures
from pageturn.report.page import page
from pageturn.run import Run
from pipeline import durable

INDEX, SCRIPT = "index.html", "plotly.min.js"


def write_report(run: Run, measures: Measures) -> Path:
    """The page's path. Written anew as a whole, so that a reader never sees half of one."""
    run.report.mkdir(exist_ok=True)
    durable.write(run.report / SCRIPT, get_plotlyjs().encode())
    durable.write(run.report / INDEX, render(measures).encode())
    return run.report / INDEX


def render(measures: Measures) -> str:
    """All text is escaped, that in the charts' data too."""
    environment = Environment(
        loader=PackageLoader("pageturn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = page(measures)
    figures = {chart.id: _shielded(chart.figure) for section in shown.sections for chart in section.charts}
    return environment.get_template("page.html.jinja").render(page=shown, figures=_json(figures), script=SCRIPT)


def _json(value: Any) -> Markup:
    """For a script element, which ends where a tag does: nothing in it may look like one."""
    encoded = msgspec.json.encode(value).decode()
    return Markup(encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _shielded(value: Any) -> Any:
    """Plotly reads a few tags and entities in texts; names from a config are not to be read so."""
    if isinstance(value, dict):
        return {key: each if key == "hovertemplate" else _shielded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shielded(each) for each in value]
    return value.replace("&", "&amp;").replace("<", "&lt;") if isinstance(value, str) else value

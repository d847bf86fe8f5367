"""Writes the page and, next to it, the script that draws its charts: it opens from a disk, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pageturn.measures import Measures, measure
from pageturn.report.compared import compared
from pageturn.report.page import Page, page
from pageturn.run import Run, RunError
from pipeline import durable

INDEX, COMPARED, SCRIPT = "index.html", "compared.html", "plotly.min.js"


def write_report(run: Run, measures: Measures) -> Path:
    """The page's path. Written anew as a whole, so that a reader never sees half of one."""
    return _write(run.report / INDEX, page(measures))


def write_comparison(runs: Sequence[Run], folder: Path | None = None) -> Path:
    """The same of several runs, beside the report of the first if no folder is named. Raises as `measure` does."""
    shown = compared([(name, measure(run), run.config()) for name, run in zip(_names(runs), runs, strict=True)])
    return _write((folder or runs[0].report) / COMPARED, shown)


def _names(runs: Sequence[Run]) -> list[str]:
    """Of their folders, as much as tells them apart."""
    for parts in range(1, max(len(run.folder.parts) for run in runs)):
        names = ["/".join(run.folder.parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def _write(path: Path, shown: Page) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path.with_name(SCRIPT), get_plotlyjs().encode())
        durable.write(path, _rendered(shown).encode())
    except OSError as error:
        message = f"{path}: the report cannot be written: {error.strerror}"
        raise RunError(message) from error
    return path


def render(measures: Measures) -> str:
    return _rendered(page(measures))


def _rendered(shown: Page) -> str:
    """All text is escaped, that in the charts' data too."""
    environment = Environment(
        loader=PackageLoader("pageturn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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

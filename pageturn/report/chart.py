"""What all charts of the report have in common. Colours read on light and on dark ground; text and grid are the
page's business, which follows the reader's choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from msgspec import Struct

from pageturn.measuring.series import Bins

GREY, BLUE, ORANGE, GREEN, PURPLE, RED, PINK, BROWN = (
    "#8b929c", "#3f83f8", "#f0820f", "#12a37f", "#9b6cf2", "#e5484d", "#e25ca0", "#a9764a",
)  # fmt: skip
LEARNED = (BLUE, ORANGE, GREEN, PURPLE, PINK, BROWN)
_LEFT, _RIGHT = 56, 12
_BOTTOM, _BOTTOM_WITH_TITLE = 24, 40
_TOP, _TOP_WITH_LEGEND = 10, 30


class Table(Struct, frozen=True):
    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


class Chart(Struct, frozen=True):
    id: str
    title: str
    note: str
    figure: dict[str, Any]  # data and layout
    table: Table | None = None  # the same numbers, or every so many of them
    wide: bool = False


class Clock(Struct, frozen=True):
    """Times as they are shown: since the beginning of the run."""

    began_ms: int
    unit: str
    unit_ms: int

    @classmethod
    def of(cls, began_ms: int, ended_ms: int) -> Clock:
        hours = ended_ms - began_ms > 5 * 3_600_000
        return cls(began_ms, "hours", 3_600_000) if hours else cls(began_ms, "minutes", 60_000)

    def since(self, time_ms: float) -> float:
        return round((time_ms - self.began_ms) / self.unit_ms, 4)

    def middles(self, bins: Bins) -> list[float]:
        return [self.since(time_ms) for time_ms in bins.middles_ms]

    @property
    def axis(self) -> dict[str, Any]:
        return {"title": {"text": f"{self.unit} since the beginning"}, "zeroline": False}


def figure(traces: Iterable[Any], *, height: int = 300, left: int = _LEFT, **layout: Any) -> dict[str, Any]:
    """Checked by Plotly; without a template, for that is the page's."""
    drawn = list(traces)
    named = layout.setdefault("showlegend", len(drawn) > 1)
    titled = "title" in layout.get("xaxis", {})
    margin = {
        "l": left,
        "r": _RIGHT,
        "t": _TOP_WITH_LEGEND if named else _TOP,
        "b": _BOTTOM_WITH_TITLE if titled else _BOTTOM,
    }
    legend = {"traceorder": "normal", "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    whole = {"height": height, "margin": margin, "legend": legend, "hovermode": "closest"} | layout
    made = go.Figure(drawn, whole).to_plotly_json()
    made["layout"].pop("template", None)
    return {"data": made["data"], "layout": made["layout"]}


def faint(colour: str, opacity: float = 0.18) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def lines(x: Sequence[float], y: Sequence[float | None], name: str, colour: str | None, **more: Any) -> go.Scatter:
    """Without a colour: that of the text."""
    return go.Scatter(x=x, y=y, name=name, mode="lines", line={"color": colour, "width": 2}, **more)


def short(value: float | None) -> float | None:
    """For a chart: five digits, and nothing where there is no number."""
    return None if value is None or value != value else float(f"{value:.5g}")


def text(value: float | None, digits: int = 3) -> str:
    """For a table."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def every(rows: Sequence[tuple[object, ...]], at_most: int = 40) -> tuple[tuple[object, ...], ...]:
    """So many of the rows, evenly, with the last."""
    step = -(-len(rows) // at_most) or 1
    return tuple(rows[i] for i in range((len(rows) - 1) % step, len(rows), step))

"""The loop at work: who decided pages, which parts lived when, how fresh versions are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from pageturn.measuring.asked import UNANSWERED, Deciders
from pageturn.measuring.freshness import Freshness
from pageturn.measuring.parts import Life
from pageturn.report.chart import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    Chart,
    Clock,
    Table,
    every,
    figure,
    lines,
    short,
    text,
)
from pageturn.report.rewards import Colours

_FALLBACKS = (ORANGE, PINK, PURPLE, BROWN)
_WIDE = 92  # the left margin of charts that are to be compared along the time


def serving_charts(found: Deciders | None, parts: Sequence[Life], clock: Clock, ended_ms: int) -> Iterator[Chart]:
    axis = clock.axis | {"range": [0, 1.01 * clock.since(ended_ms)]}
    if found is not None:
        yield _deciders(found, parts, clock, axis)
    if parts:
        yield _parts(parts, clock, axis, ended_ms)
    if found is not None:
        yield _waits(found, clock, axis)


def _deciders(found: Deciders, parts: Sequence[Life], clock: Clock, axis: dict[str, Any]) -> Chart:
    names = sorted(found.pages, key=_rank)
    seconds = found.bins.width_ms / 1000
    x = clock.middles(found.bins)
    traces = [
        go.Bar(
            x=x, y=[short(n / seconds) for n in found.pages[name]], name=name, hovertemplate="%{y:.1f}",
            marker={"color": _colour(name, names), "line": {"width": 0}}, width=found.bins.width_ms / clock.unit_ms,
        )
        for name in names
    ]  # fmt: skip
    made = figure(
        [*traces, *_ends(parts, clock, max(map(sum, zip(*found.pages.values(), strict=True))) / seconds)],
        height=340, left=_WIDE, barmode="stack", bargap=0, xaxis=axis, hovermode="x unified",
        yaxis={"title": {"text": "pages per second"}},
    )  # fmt: skip
    rows = [(f"{t:.2f}", *(found.pages[name][i] for name in names)) for i, t in enumerate(x)]
    table = Table((clock.unit, *names), every(rows))
    return Chart("deciders", "Who decided", "Pages by who decided them. Crosses: a part ended.", made, table, True)


def _ends(parts: Sequence[Life], clock: Clock, top: float) -> Iterator[go.Scatter]:
    ended = [life for life in parts if life.ended_ms is not None and life.status != 0]
    if ended:
        yield go.Scatter(
            x=[clock.since(life.ended_ms or 0) for life in ended], y=[short(1.05 * top)] * len(ended), mode="markers",
            marker={"symbol": "x", "size": 9, "color": RED}, name="part ended", text=[_how(life) for life in ended],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip


def _how(life: Life) -> str:
    if life.status is None:
        return f"{life.part} ended"
    return f"{life.part}: signal {-life.status}" if life.status < 0 else f"{life.part}: status {life.status}"


def _rank(name: str) -> tuple[int, str]:
    first = {"policy": 0, "baseline": 1, UNANSWERED: 3}
    return first.get(name, 2), name


def _colour(name: str, names: Sequence[str]) -> str:
    known = {"policy": GREEN, "baseline": GREY, UNANSWERED: RED}
    others = [each for each in names if each not in known]
    return known.get(name) or _FALLBACKS[others.index(name) % len(_FALLBACKS)]


def _parts(parts: Sequence[Life], clock: Clock, axis: dict[str, Any], ended_ms: int) -> Chart:
    names = list(dict.fromkeys(life.part for life in parts))[::-1]
    ends = [life for life in parts if life.ended_ms is not None]
    traces = [
        go.Scatter(
            x=[t for life in parts for t in (*_span(life, clock, ended_ms), None)],
            y=[y for life in parts for y in (life.part, life.part, None)],
            mode="lines", line={"width": 9, "color": BLUE}, opacity=0.75, hoverinfo="skip", name="running",
        ),
        go.Scatter(
            x=[clock.since(life.ended_ms or 0) for life in ends], y=[life.part for life in ends], mode="markers",
            marker={"symbol": "x", "size": 9, "color": [RED if life.status else GREY for life in ends]},
            text=[_how(life) for life in ends], hovertemplate="%{text}<extra></extra>", name="ended",
        ),
    ]  # fmt: skip
    made = figure(
        traces, height=70 + 26 * len(names), left=_WIDE, showlegend=False, xaxis=axis,
        yaxis={"categoryorder": "array", "categoryarray": names, "showgrid": False, "type": "category"},
    )  # fmt: skip
    rows = tuple((life.part, f"{clock.since(life.started_ms):.2f}", *_end(life, clock)) for life in parts)
    table = Table(("part", f"started ({clock.unit})", "ended", "how"), rows)
    return Chart("parts", "Parts", "When each process ran. Red crosses: killed or failed.", made, table, True)


def _span(life: Life, clock: Clock, ended_ms: int) -> tuple[float, float]:
    return clock.since(life.started_ms), clock.since(life.ended_ms or ended_ms)


def _end(life: Life, clock: Clock) -> tuple[str, str]:
    return ("–", "running") if life.ended_ms is None else (f"{clock.since(life.ended_ms):.2f}", _how(life))


def _waits(found: Deciders, clock: Clock, axis: dict[str, Any]) -> Chart:
    x = clock.middles(found.bins)
    traces = [
        lines(x, [short(v) for v in values], name, colour, hovertemplate="%{y:.1f} ms")
        for name, colour, values in (("p50", BLUE, found.p50_ms), ("p99", ORANGE, found.p99_ms))
    ]
    made = figure(
        traces, height=240, left=_WIDE, xaxis=axis, hovermode="x unified",
        yaxis={"title": {"text": "ms"}, "rangemode": "tozero"},
    )  # fmt: skip
    rows = [(f"{t:.2f}", text(a, 1), text(b, 1)) for t, a, b in zip(x, found.p50_ms, found.p99_ms, strict=True)]
    table = Table((clock.unit, "p50 (ms)", "p99 (ms)"), every(rows))
    return Chart("waits", "Answer time", "As the caller saw it, of answered pages.", made, table, True)


def freshness_charts(found: Sequence[Freshness], colours: Colours) -> Iterator[Chart]:
    for each in found:
        edges, counts = each.pages.edges, each.pages.counts
        if not counts:
            continue
        middles = [short((a + b) / 2) for a, b in pairwise(edges)]
        bars = go.Bar(
            x=middles, y=list(counts), marker={"color": colours.get(each.policy, GREY)}, name="pages",
            hovertemplate="%{y} pages at %{x:.1f} s<extra></extra>",
        )  # fmt: skip
        made = figure(
            [bars], height=240, bargap=0.05, showlegend=False, xaxis={"title": {"text": "seconds"}},
            yaxis={"title": {"text": "pages"}},
        )  # fmt: skip
        note = "From the close of a page to the first served version with an update since (up to the 99 % quantile)."
        yield Chart(f"freshness-{each.policy}", f"Freshness, {each.policy}", note, made)


def freshness_table(found: Sequence[Freshness]) -> Table:
    head = ("seconds until served", "n", "p50", "p90", "p99", "not served yet")
    rows = [
        (f"{title}, {each.policy}", f"{q.n:,}", text(q.p50, 1), text(q.p90, 1), text(q.p99, 1), waiting)
        for each in found
        for title, q, waiting in (
            ("page closed", each.page_s, f"{each.waiting:,}"),
            ("click", each.click_s, ""),
            *((f"of that {stage}", spent, "") for stage, spent in each.stages_s.items()),
        )
    ]
    return Table(head, tuple(rows))

"""What the policies do, and how they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from pageturn.measuring.actions import ActionOverTime, Spread
from pageturn.report.chart import GREEN, GREY, Chart, Clock, Table, every, faint, figure, lines, short, text
from pageturn.report.rewards import Colours

Row = dict[str, Any]  # of the trainer's metrics
_POINTS = 300


# Actions ---------------------------------------------------------------------------------------------------------


def action_charts(found: Sequence[ActionOverTime], colours: Colours, clock: Clock) -> Iterator[Chart]:
    for each in found:
        table = _medians(each, clock)
        colour = colours.get(each.policy, GREY)
        for kind, spread, noise in (("mean", each.mean, "without"), ("executed", each.executed, "with")):
            yield Chart(
                f"action-{kind}-{each.policy}-{each.dimension}",
                f"{each.policy}: {kind} action {each.dimension}",
                f"Share of pages, {noise} the exploration noise. Line: median; dashed: baseline.",
                _heat_map(each, spread, colour, clock),
                table if kind == "mean" else None,
            )


def _heat_map(found: ActionOverTime, spread: Spread, colour: str, clock: Clock) -> dict[str, Any]:
    x = clock.middles(found.bins)
    middles = [(a + b) / 2 for a, b in pairwise(found.edges)]
    columns = [shares or (None,) * len(middles) for shares in spread.shares]
    cells = [[short(column[i]) for column in columns] for i in range(len(middles))]
    heat = go.Heatmap(
        x=x, y=[short(m) for m in middles], z=cells, showscale=False, name="share",
        colorscale=[[0, faint(colour, 0)], [0.02, faint(colour, 0.12)], [0.25, faint(colour, 0.55)], [1, colour]],
        hovertemplate="%{x}: %{z:.1%} at %{y:.2f}<extra></extra>",
    )  # fmt: skip
    median = lines(x, [short(m) for m in spread.median], "median", None, hovertemplate="median %{y:.3f}<extra></extra>")
    ends = [clock.since(found.bins.start_ms), clock.since(found.bins.start_ms + found.bins.count * found.bins.width_ms)]
    base = go.Scatter(
        x=ends, y=[found.baseline] * 2, mode="lines", line={"dash": "dash", "width": 1, "color": GREY},
        hoverinfo="skip",
    )  # fmt: skip
    axis = {"title": {"text": found.dimension}, "range": [found.edges[0], found.edges[-1]], "zeroline": False}
    return figure([heat, median, base], height=260, showlegend=False, xaxis=clock.axis, yaxis=axis)


def _medians(found: ActionOverTime, clock: Clock) -> Table:
    rows = list(zip(clock.middles(found.bins), found.mean.median, found.executed.median, strict=True))
    head = (clock.unit, "median mean action", "median executed action")
    return Table(head, every([(f"{x:.1f}", text(mean), text(executed)) for x, mean, executed in rows]))


# Learning --------------------------------------------------------------------------------------------------------


def learning_charts(rows: Sequence[Row], policies: Sequence[str], colours: Colours, clock: Clock) -> Iterator[Chart]:
    points = thinned([row for row in rows if "value_loss" in row])
    if not points:
        return
    x = [clock.since(point["time_ms"]) for point in points]
    per_policy = {policy: colours.get(policy, GREY) for policy in policies}

    def drawn(identity: str, title: str, note: str, *series: tuple[str, str, Callable[[Row], float | None]]) -> Chart:
        traces = [
            lines(x, [short(value(point)) for point in points], name, colour, hovertemplate="%{y:.4g}")
            for name, colour, value in series
        ]
        made = figure(traces, height=260, xaxis=clock.axis, hovermode="x unified")
        table = Table(
            (clock.unit, *(name for name, _, _ in series)),
            every([(f"{t:.1f}", *(text(v(p)) for _, _, v in series)) for t, p in zip(x, points, strict=True)], 20),
        )
        return Chart(identity, title, note, made, table)

    yield drawn(
        "value-loss", "Value loss", "Of V, which learns from the baseline's pages.", _of("V", GREEN, "value_loss")
    )
    yield drawn("advantage-loss", "Advantage loss", "Of A, which learns from what V leaves.",
                *(_of(p, c, f"advantage_loss/{p}") for p, c in per_policy.items()))  # fmt: skip
    yield drawn("actor-loss", "Actor loss", "Minus the mean Q of the policy's own actions.",
                *(_of(p, c, f"actor_loss/{p}") for p, c in per_policy.items()))  # fmt: skip
    yield drawn("value-mean", "Mean V and A", "Over the batches; A is what an action adds to V.",
                _of("V", GREEN, "value_mean"),
                *(_of(f"A, {p}", c, f"advantage_mean/{p}") for p, c in per_policy.items()))  # fmt: skip
    if any("value_abs" in point for point in points):  # it was not always measured
        yield drawn("ratio", "Mean |A| / mean |V|", "How much there is to decide, against what comes anyway.",
                    *((p, c, _ratio(p)) for p, c in per_policy.items()))  # fmt: skip
    yield drawn("updates", "Transitions and updates", "Learned from, and done, in all.",
                _of("transitions", GREY, "transitions"), _of("updates", GREEN, "updates"))  # fmt: skip


def policy_chart(
    identity: str, title: str, note: str, name: str, rows: Sequence[Row], policies: Sequence[str], colours: Colours,
    clock: Clock,
) -> Iterator[Chart]:  # fmt: skip
    """Of a figure that every policy has its own of; nothing where none has."""
    points = thinned([row for row in rows if any(f"{name}/{policy}" in row for policy in policies)])
    if not points:
        return
    x = [clock.since(point["time_ms"]) for point in points]
    found = [(p, [number(point.get(f"{name}/{p}")) for point in points]) for p in policies]
    traces = [
        lines(x, [short(y) for y in values], policy, colours.get(policy, GREY), hovertemplate="%{y:.4g}")
        for policy, values in found
    ]
    cells = [(f"{t:.1f}", *(text(values[i], 4) for _, values in found)) for i, t in enumerate(x)]
    made = figure(traces, height=260, xaxis=clock.axis, hovermode="x unified", showlegend=True)
    yield Chart(identity, title, note, made, Table((clock.unit, *policies), every(cells, 20)))


def _of(name: str, colour: str, key: str) -> tuple[str, str, Callable[[Row], float | None]]:
    return name, colour, lambda point: number(point.get(key))


def _ratio(policy: str) -> Callable[[Row], float | None]:
    def ratio(point: Row) -> float | None:
        a, v = number(point.get(f"advantage_abs/{policy}")), number(point.get("value_abs"))
        return a / v if a is not None and v else None

    return ratio


def number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most so many points, each the mean of the rows it stands for."""
    step = -(-len(rows) // _POINTS) or 1
    return [_mean(rows[i : i + step]) for i in range(0, len(rows), step)]


def _mean(rows: Sequence[Row]) -> Row:
    values = {key: [number(row.get(key)) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    return {
        key: sum(known) / len(known) for key, found in values.items() if (known := [v for v in found if v is not None])
    }

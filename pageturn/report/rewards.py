"""Buckets against each other: what their users brought, and got."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pageturn.measuring.asked import Asked
from pageturn.measuring.buckets import PER_VISIT, SECOND_HALF, WHOLE, BucketFigures, Comparison, Lift
from pageturn.measuring.rows import FIGURES, REWARD, UNENDED, Figure, estimate_of, percent, shown, signed, unended, who
from pageturn.report.chart import GREEN, GREY, LEARNED, Chart, Clock, Table, every, faint, figure, lines, short, text
from pipeline.simulation.outcomes import Estimate

Colours = Mapping[str, str]  # by bucket, and by policy


def colours(found: Comparison | None, policies: tuple[str, ...]) -> Colours:
    """A learned policy has the same colour everywhere; the baseline is grey."""
    by_policy = {policy: LEARNED[i % len(LEARNED)] for i, policy in enumerate(policies)}
    buckets = found.buckets if found else ()
    return by_policy | {bucket.bucket: by_policy.get(bucket.policy, GREY) for bucket in buckets}


def reward_charts(found: Comparison, colours: Colours, clock: Clock) -> Iterator[Chart]:
    yield _by_bucket(found, colours)
    yield _lifts(found, colours)
    yield _over_time(found, colours, clock)


def user_charts(found: Comparison, colours: Colours) -> Iterator[Chart]:
    for each in told(found):
        if each is not REWARD:
            traces = [_dots(found, each, colours, whole=True)]
            yield Chart(each.name, each.title, "", _on_buckets(found, traces, 210))


def told(found: Comparison) -> tuple[Figure, ...]:
    """Without what is 0 of everybody: such users do not do it."""
    return tuple(f for f in FIGURES if f is REWARD or any(estimate_of(b.whole, f).mean for b in found.buckets))


def _by_bucket(found: Comparison, colours: Colours) -> Chart:
    traces = [_dots(found, REWARD, colours, whole=whole) for whole in (True, False)]
    note = f"Mean and 95 % interval. Filled: {WHOLE}; hollow: {SECOND_HALF}, when the policies had learned more."
    return Chart(REWARD.name, f"{PER_VISIT.capitalize()}, by bucket", note, _on_buckets(found, traces, 300))


def _dots(found: Comparison, of: Figure, colours: Colours, *, whole: bool) -> go.Scatter:
    summaries = [bucket.whole if whole else bucket.second_half for bucket in found.buckets]
    estimates = [estimate_of(summary, of) for summary in summaries]
    colour = [colours[bucket.bucket] for bucket in found.buckets]
    places = [i + (-0.1 if whole else 0.1) if of is REWARD else i for i in range(len(estimates))]
    return go.Scatter(
        x=places,
        y=[short(each.mean) for each in estimates],
        error_y=_bars(estimates),
        mode="markers",
        marker={
            "color": colour,
            "size": 10,
            "symbol": "circle" if whole else "circle-open",
            "line": {"width": 0 if whole else 2, "color": colour},
        },
        text=[f"{b.bucket}: {shown(s, of)}" for b, s in zip(found.buckets, summaries, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        name=WHOLE if whole else SECOND_HALF,
    )


def _bars(estimates: list[Estimate]) -> dict[str, object]:
    return {"array": [short(each.half) for each in estimates], "color": GREY, "thickness": 1.5, "width": 5}


def _on_buckets(found: Comparison, traces: list[go.Scatter], height: int) -> dict[str, Any]:
    names = [bucket.bucket for bucket in found.buckets]
    axis = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.5, len(names) - 0.5],
        "zeroline": False,
    }
    return figure(traces, height=height, showlegend=False, xaxis=axis, yaxis={"nticks": 6, "zeroline": False})


def _lifts(found: Comparison, colours: Colours) -> Chart:
    shown_first = [lift for lift in reversed(found.lifts) if lift.measure == PER_VISIT]
    trace = go.Scatter(
        x=[short(lift.absolute.mean) for lift in shown_first],
        y=[_name(lift) for lift in shown_first],
        error_x=_bars([lift.absolute for lift in shown_first]),
        mode="markers",
        marker={"size": 10, "color": [colours.get(lift.policy or "", GREEN) for lift in shown_first]},
        text=[" ".join((signed(lift.absolute), lift.conclusion)) for lift in shown_first],
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    axis = {"zeroline": True, "zerolinewidth": 2, "title": {"text": "difference"}}
    note = "Learned minus baseline, with the 95 % interval. The conclusion rests on the topmost."
    made = figure([trace], left=140, showlegend=False, xaxis=axis)
    return Chart("lift", f"{PER_VISIT.capitalize()}, against the baseline", note, made)


def _name(lift: Lift) -> str:
    return f"{who(lift)}, {lift.period}"


def _over_time(found: Comparison, colours: Colours, clock: Clock) -> Chart:
    traces = [trace for bucket in found.buckets for trace in _band(bucket, colours[bucket.bucket], clock)]
    note = "Mean of the visits that ended in each span of time; shaded: 95 % interval."
    made = figure(traces, height=340, xaxis=clock.axis, hovermode="x unified")
    return Chart("reward-time", f"{PER_VISIT.capitalize()}, over time", note, made, _reward_table(found, clock), True)


def _band(bucket: BucketFigures, colour: str, clock: Clock) -> Iterator[go.Scatter]:
    points = [(x, e) for x, e in zip(clock.middles(bucket.over_time.bins), bucket.over_time.reward, strict=True)]
    known = [(x, e) for x, e in points if e.half == e.half]
    outline = [*known, *reversed(known)]
    edge = [e.high for _, e in known] + [e.low for _, e in reversed(known)]
    yield go.Scatter(
        x=[x for x, _ in outline], y=[short(y) for y in edge], fill="toself", fillcolor=faint(colour, 0.12),
        line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False, legendgroup=bucket.bucket,
    )  # fmt: skip
    yield lines([x for x, _ in points], [short(e.mean) for _, e in points], bucket.bucket, colour, connectgaps=True,
                legendgroup=bucket.bucket, hovertemplate="%{y:.2f}")  # fmt: skip


def _reward_table(found: Comparison, clock: Clock) -> Table:
    middles = clock.middles(found.buckets[0].over_time.bins)
    rows = [
        (f"{middle:.1f}", *(text(bucket.over_time.reward[i].mean) for bucket in found.buckets))
        for i, middle in enumerate(middles)
    ]
    return Table((clock.unit, *(bucket.bucket for bucket in found.buckets)), every(rows))


# Tables ----------------------------------------------------------------------------------------------------------


def bucket_table(found: Comparison, pages: Asked | None) -> Table:
    head = ("", *(bucket.bucket for bucket in found.buckets))
    rows: list[tuple[object, ...]] = [
        ("policy", *(bucket.policy for bucket in found.buckets)),
        ("users", *(f"{bucket.users:,}" for bucket in found.buckets)),
        ("visits", *(f"{bucket.whole.visits:,}" for bucket in found.buckets)),
        ("sessions", *(f"{bucket.whole.sessions:,}" for bucket in found.buckets)),
        *(
            [(UNENDED, *(f"{unended(bucket, pages):,}" for bucket in found.buckets))]
            if pages and pages.sessions
            else []
        ),
        *((each.title, *(shown(bucket.whole, each) for bucket in found.buckets)) for each in told(found)),
        *(
            (f"{each.title}, {SECOND_HALF}", *(shown(bucket.second_half, each) for bucket in found.buckets))
            for each in told(found)
        ),
    ]
    return Table(head, tuple(rows))


def lift_table(lifts: Sequence[Lift]) -> Table:
    head = ("", "against the baseline", "difference", "relative", "")
    return Table(
        head,
        tuple(
            (
                lift.measure,
                _name(lift),
                signed(lift.absolute),
                percent(lift.relative) if lift.relative else "–",
                lift.conclusion,
            )
            for lift in lifts
        ),
    )

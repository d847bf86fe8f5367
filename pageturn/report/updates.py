"""Policies that choose items: what was tried, what users said of it, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import plotly.graph_objects as go

from model_export.checks import Verdict
from pageturn.measuring.updates import NAMES, evidence, fate, tallies
from pageturn.report.chart import GREY, Chart, Clock, Table, figure, short, text
from pageturn.report.policies import Row, policy_chart
from pageturn.report.rewards import Colours
from pipeline.ranking.comparing import Outcome
from pipeline.ranking.updates import Update

UPDATES_SHOWN = 500
NOTE = (
    "A minor update by dbgd or es, and a major one, is decided by users' clicks on pages that are interleaved from the "
    "served ranking and the one that is tried; with too few of them nothing moves by dbgd or es, and a major update is "
    "taken unless clicks speak against it. A minor update by gradient is taken as it is. What was taken goes out as a "
    "version if the version controller's checks pass. Users: those whose clicks told the rankings apart; z: how far "
    "their credits speak for what was tried, in standard errors of equal rankings; left out: late pages of what was "
    "tried before."
)
_LOSS_NOTE = (
    "Half the squared TD error of Q at the last update. It grows with the click rate: what is often clicked is the "
    "harder to foretell."
)
_SYMBOLS = {"minor": "circle", "major": "diamond"}


def update_charts(
    decided: Sequence[Update], learning: Sequence[Row], policies: Sequence[str], colours: Colours, clock: Clock
) -> Iterator[Chart]:
    asked = [update for update in decided if update.evidence]
    if asked:
        yield _said(asked, colours, clock)
    yield from policy_chart(
        "ranking-loss", "Loss", _LOSS_NOTE,
        "loss", learning, policies, colours, clock,
    )  # fmt: skip
    yield from policy_chart(
        "ranking-q", "Mean Q", "What a shown item is held to bring, the reward of later pages included.",
        "q_mean", learning, policies, colours, clock,
    )  # fmt: skip


def _said(asked: Sequence[Update], colours: Colours, clock: Clock) -> Chart:
    groups: dict[tuple[str, str, str], list[Update]] = {}
    for update in asked:
        groups.setdefault((update.policy, update.kind, update.by), []).append(update)
    traces = [_points(group, colours.get(group[0].policy, GREY), clock) for group in groups.values()]
    note = (
        "Of every decision by clicks: above 0 they speak for what was tried. Circle: minor update; diamond: major. "
        "Filled: taken; hollow: not."
    )
    axis = {"title": {"text": "z"}, "zeroline": True, "zerolinewidth": 2}
    made = figure(traces, height=320, showlegend=True, xaxis=clock.axis, yaxis=axis)
    return Chart("said", "What users said of what was tried", note, made, None, True)


def _points(group: Sequence[Update], colour: str, clock: Clock) -> go.Scatter:
    """One per candidate."""
    said = [(update, outcome) for update in group for outcome in update.evidence]
    symbol = _SYMBOLS[group[0].kind]
    return go.Scatter(
        x=[clock.since(update.time_ms) for update, _ in said],
        y=[short(outcome.z) for _, outcome in said],
        mode="markers",
        name=f"{group[0].policy}: {NAMES[group[0].by]}",
        marker={
            "color": colour, "size": 10, "line": {"width": 2, "color": colour},
            "symbol": [symbol if update.taken else f"{symbol}-open" for update, _ in said],
        },
        text=[
            f"{'taken' if update.taken else 'not taken'}: z {o.z:+.1f} of {o.decisive} users on {o.pages} pages"
            for update, o in said
        ],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def tally_table(decided: Iterable[Update]) -> Table:
    rows = (
        (t.policy, t.kind, NAMES[t.by], f"{t.decided:,}", f"{t.taken:,}", text(t.pages, 0), text(t.decisive, 0))
        for t in tallies(decided)
    )
    head = ("policy", "update", "by", "decided", "of them taken", "pages with what was tried", "users who told apart")
    return Table(head, tuple(rows))


def update_table(decided: Sequence[Update], verdicts: Sequence[Verdict], clock: Clock) -> Table:
    """The newest first."""
    rows = tuple(
        (
            f"{clock.since(each.time_ms):.2f}",
            each.policy,
            f"{each.kind}, {NAMES[each.by]}",
            "taken" if each.taken else "not taken",
            evidence(each),
            *(_of_all(each, said) for said in _FIGURES.values()),
            fate(each, verdicts),
        )
        for each in decided[::-1][:UPDATES_SHOWN]
    )
    return Table((clock.unit, "policy", "update", "", "evidence", *_FIGURES, "its candidate"), rows)


_FIGURES: dict[str, Callable[[Outcome], str]] = {
    "z": lambda outcome: f"{outcome.z:+.1f}",
    "credit per user": lambda outcome: f"{outcome.mean:+.2f}",
    "users": lambda outcome: f"{outcome.decisive}",
    "pages": lambda outcome: f"{outcome.pages}",
    "left out": lambda outcome: f"{outcome.foreign}",
}


def _of_all(update: Update, said: Callable[[Outcome], str]) -> str:
    return ", ".join(said(outcome) for outcome in update.evidence) or "–"

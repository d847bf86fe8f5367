"""Several runs side by side: what they brought, how they learned, and in what they were told to differ. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pageturn.measures import Measures
from pageturn.measuring.differences import differences
from pageturn.measuring.rows import IN_PROGRESS, REWARD, percent, signed
from pageturn.report.chart import GREY, LEARNED, Chart, Table, figure, lines, short, text
from pageturn.report.page import Page, Section, duration
from pageturn.report.policies import Row, number, thinned
from pipeline.config.schema import FeatureConfig
from pipeline.simulation.outcomes import Estimate, difference

_NOTE = (
    "Runs are compared by their lifts, learned minus baseline within a run, and not by their rewards: users and times "
    "are others. An interval is that of one run with its users. It does not know what another seed would have learned: "
    "a setting is better than another if it is so over several seeds."
)
_X = {"title": {"text": "transitions"}, "zeroline": False}
# What is drawn of the trainer's rows: of all, of a policy, of a policy's action
_OF_ALL = {"value_loss": "Value loss", "value_mean": "Mean V", "tower_norm": "Norm of the tower's weights"}
_OF_POLICY = {
    "advantage_loss": "advantage loss",
    "actor_loss": "actor loss",
    "q_loss": "loss of Q",
    "advantage_mean": "mean A",
    "advantage_ratio": "A : V on covered states",
    "action_norm": "distance from the baseline, in half ranges",
}


class Compared(NamedTuple):
    name: str
    colour: str
    measures: Measures
    config: FeatureConfig


def compared(runs: Sequence[tuple[str, Measures, FeatureConfig]]) -> Page:
    """Of runs under names that tell them apart. The first is what the others are compared with."""
    found = [Compared(name, LEARNED[i % len(LEARNED)], *rest) for i, (name, *rest) in enumerate(runs)]
    return Page(
        title=" · ".join(each.name for each in found),
        conclusion=_conclusion(found),
        facts=(),
        tiles=(),
        sections=tuple(section for section in _sections(found) if section.charts or section.tables),
        versions=Table((), ()),
        verdicts=(),
        verdicts_in_all=0,
    )


def _conclusion(found: Sequence[Compared]) -> str:
    said = [f"{each.name}: {_lift_text(each)}." for each in found]
    return " ".join([*said, *([IN_PROGRESS] if any(each.measures.up for each in found) else [])])


def _lift_text(of: Compared) -> str:
    lift = of.measures.comparison.primary if of.measures.comparison else None
    return f"{signed(lift.absolute)} per visit against its baseline" if lift else "no lift to tell of"


def _sections(found: Sequence[Compared]) -> Iterator[Section]:
    yield Section("runs", "Runs", "", (), (("", _runs(found)),))
    head = ("setting", *(each.name for each in found))
    differing = tuple((path, *values) for path, values in differences([each.config for each in found]))
    same = (("all settings", *("the same" for _ in found)),)
    yield Section(
        "config", "Where the configs differ", "Defaults included.", (), (("", Table(head, differing or same)),)
    )
    yield Section("reward", "Reward", _NOTE, tuple(_reward_charts(found)), (("", _bucket_table(found)),))
    note = "By transitions, which is what runs of unlike traffic have in common. Means over the updates of a round."
    yield Section("learning", "Learning", note, tuple(_learning_charts(found)))


# Runs ------------------------------------------------------------------------------------------------------------


def _runs(found: Sequence[Compared]) -> Table:
    facts: tuple[tuple[str, Callable[[Compared], str]], ...] = (
        ("config", lambda each: each.measures.config),
        ("algorithm", lambda each: type(each.config.algorithm).__name__.lower()),
        ("seed", lambda each: str(each.measures.run.seed)),
        ("users", lambda each: each.measures.simulator or "not simulated"),
        ("duration", lambda each: duration((each.measures.ended_ms - each.measures.began_ms) // 1000)),
        ("transitions", lambda each: f"{_last(each, 'transitions'):,}"),
        ("updates", lambda each: f"{each.measures.updates:,}"),
        ("versions accepted", lambda each: f"{sum(v.accepted for v in each.measures.versions):,}"),
        ("versions refused", lambda each: f"{sum(sum(v.refused.values()) for v in each.measures.versions):,}"),
        ("lift per visit", lambda each: signed(lift) if (lift := _lift(each)) else "–"),
        ("the same, relative", _relative),
        (f"lift, beyond that of {found[0].name}", lambda each: _beyond(each, found[0])),
    )
    rows = tuple((name, *(fact(each) for each in found)) for name, fact in facts)
    return Table(("", *(each.name for each in found)), rows)


def _last(of: Compared, key: str) -> int:
    return int(of.measures.learning[-1].get(key, 0)) if of.measures.learning else 0


def _lift(of: Compared) -> Estimate | None:
    lift = of.measures.comparison.primary if of.measures.comparison else None
    return lift.absolute if lift else None


def _relative(of: Compared) -> str:
    lift = of.measures.comparison.primary if of.measures.comparison else None
    return percent(lift.relative) if lift and lift.relative else "–"


def _beyond(of: Compared, first: Compared) -> str:
    """Two runs have no user in common, so their lifts are independent."""
    mine, its = _lift(of), _lift(first)
    return signed(difference(mine, its)) if mine and its and of is not first else "–"


# Reward ----------------------------------------------------------------------------------------------------------


def _reward_charts(found: Sequence[Compared]) -> Iterator[Chart]:
    known = [(each, lift) for each in found if (lift := _lift(each))]
    if known:
        yield Chart(
            "lifts", "Lift per visit", "Learned minus baseline of the run, with the 95 % interval.", _lifts(known)
        )
    if buckets := _buckets(found):
        places = [i / max(len(found), 2) * 0.4 - 0.2 for i in range(len(found))]
        traces = [_dots(each, buckets, at) for each, at in zip(found, places, strict=True) if each.measures.comparison]
        axis = {
            "tickvals": list(range(len(buckets))), "ticktext": buckets, "range": [-0.5, len(buckets) - 0.5],
            "zeroline": False,
        }  # fmt: skip
        made = figure(traces, showlegend=True, xaxis=axis, yaxis={"zeroline": False})
        yield Chart("buckets", "Reward per visit, by bucket", "Mean and 95 % interval, over the whole run.", made)


def _lifts(known: Sequence[tuple[Compared, Estimate]]) -> dict[str, object]:
    trace = go.Scatter(
        x=[short(lift.mean) for _, lift in known][::-1],
        y=[each.name for each, _ in known][::-1],
        error_x=_bars([lift for _, lift in known][::-1]),
        mode="markers",
        marker={"size": 10, "color": [each.colour for each, _ in known][::-1]},
        text=[signed(lift) for _, lift in known][::-1],
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    axis = {"zeroline": True, "zerolinewidth": 2, "title": {"text": "difference"}}
    return figure([trace], left=140, showlegend=False, xaxis=axis)


def _buckets(found: Sequence[Compared]) -> list[str]:
    """Of all runs, those of the first first."""
    comparisons = [each.measures.comparison for each in found if each.measures.comparison]
    return list(dict.fromkeys(bucket.bucket for comparison in comparisons for bucket in comparison.buckets))


def _dots(of: Compared, names: Sequence[str], aside: float) -> go.Scatter:
    estimates = _rewards(of)
    known = [(names.index(name) + aside, estimate) for name, estimate in estimates.items()]
    return go.Scatter(
        x=[place for place, _ in known],
        y=[short(estimate.mean) for _, estimate in known],
        error_y=_bars([estimate for _, estimate in known]),
        mode="markers",
        marker={"size": 10, "color": of.colour},
        text=[f"{name}: {estimate}" for name, estimate in estimates.items()],
        hovertemplate="%{text}<extra></extra>",
        name=of.name,
    )


def _rewards(of: Compared) -> dict[str, Estimate]:
    buckets = of.measures.comparison.buckets if of.measures.comparison else ()
    return {bucket.bucket: bucket.whole.visit_reward for bucket in buckets}


def _bars(estimates: Sequence[Estimate]) -> dict[str, object]:
    return {"array": [short(each.half) for each in estimates], "color": GREY, "thickness": 1.5, "width": 5}


def _bucket_table(found: Sequence[Compared]) -> Table:
    def cell(of: Compared, bucket: str) -> str:
        estimate = _rewards(of).get(bucket)
        if estimate is None:
            return "–"
        mean, low, high = (text(x, REWARD.digits) for x in (estimate.mean, estimate.low, estimate.high))
        return f"{mean} [{low}, {high}]"

    rows = tuple((bucket, *(cell(each, bucket) for each in found)) for bucket in _buckets(found))
    return Table(("reward per visit", *(each.name for each in found)), rows)


# Learning --------------------------------------------------------------------------------------------------------


def _learning_charts(found: Sequence[Compared]) -> Iterator[Chart]:
    """Each quantity that any of the runs has measured."""
    points = [thinned(each.measures.learning) for each in found]
    for key, title in _quantities(found):
        if any(key in row for rows in points for row in rows):
            yield _curves(key, title, found, points)


def _quantities(found: Sequence[Compared]) -> Iterator[tuple[str, str]]:
    yield from _OF_ALL.items()
    policies = dict.fromkeys(policy for each in found for policy in each.config.learned_policies())
    dimensions = dict.fromkeys(dimension.name for each in found for dimension in each.config.action)
    for policy in policies:
        yield from ((f"{key}/{policy}", f"{policy}: {title}") for key, title in _OF_POLICY.items())
        yield from ((f"action_mean/{policy}/{name}", f"{policy}: mean action {name}") for name in dimensions)


def _curves(key: str, title: str, found: Sequence[Compared], points: Sequence[Sequence[Row]]) -> Chart:
    traces = []
    for each, rows in zip(found, points, strict=True):
        known = [(row["transitions"], value) for row in rows if (value := number(row.get(key))) is not None]
        if known:
            x, y = zip(*known, strict=True)
            traces.append(lines(x, [short(v) for v in y], each.name, each.colour, hovertemplate="%{y:.4g}"))
    made = figure(traces, height=260, showlegend=True, xaxis=_X, hovermode="x unified")
    return Chart(key.replace("/", "-"), title, "", made)

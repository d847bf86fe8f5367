"""Measures -> what the template shows: tiles, sections of charts and tables, verdicts. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from model_export.checks import Check, Verdict
from pageturn.measures import Measures
from pageturn.measuring.buckets import PER_VISIT, Comparison
from pageturn.measuring.rows import TWINS, counted, moved, oddity, percent, signed, verdict
from pageturn.measuring.versions import PolicyVersions
from pageturn.report.chart import Chart, Clock, Table, text
from pageturn.report.policies import action_charts, learning_charts
from pageturn.report.rewards import bucket_table, colours, lift_table, reward_charts, user_charts
from pageturn.report.serving import freshness_charts, freshness_table, serving_charts
from pageturn.report.updates import NOTE as UPDATES_NOTE
from pageturn.report.updates import tally_table, update_charts, update_table
from pageturn.table import event_rows

VERDICTS_SHOWN = 500
_REWARD_NOTE = (
    "A visit that does not look at the feed counts as 0 per visit, and not at all per session: whether users look at "
    "it again is the policy's doing. So the conclusion rests on the reward per visit of all learned policies together, "
    "over the whole run, and on no other comparison. Intervals take a user as one draw: the visits of one are not "
    "independent."
)


_NEWS_NOTE = "Of the simulated news a visit is a day of a user: one on which the user did not come brings nothing."


class Tile(NamedTuple):
    label: str
    value: str
    more: str = ""
    tone: str = ""  # good, bad


class Section(NamedTuple):
    id: str
    title: str
    note: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    columns: str = "two"  # how charts stand side by side: two, four


class Judged(NamedTuple):
    verdict: Verdict
    when: str
    version: str
    evidence: str
    checks: Table | None


class Page(NamedTuple):
    title: str
    conclusion: str
    facts: tuple[tuple[str, str], ...]
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    versions: Table
    verdicts: tuple[Judged, ...]  # the newest first
    verdicts_in_all: int


def page(measures: Measures) -> Page:
    clock = Clock.of(measures.began_ms, measures.ended_ms)
    sections = [section for section in _sections(measures, clock) if section.charts or section.tables]
    newest = measures.verdicts[::-1][:VERDICTS_SHOWN]
    return Page(
        title=measures.run.name,
        conclusion=verdict(measures.comparison, measures.up),
        facts=_facts(measures),
        tiles=tuple(_tiles(measures)),
        sections=tuple(sections),
        versions=version_table(measures.versions),
        verdicts=tuple(_judged(each, clock) for each in newest),
        verdicts_in_all=len(measures.verdicts),
    )


def _facts(measures: Measures) -> tuple[tuple[str, str], ...]:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(measures.began_ms / 1000))
    found = [
        ("config", measures.config),
        ("seed", str(measures.run.seed)),
        ("users", measures.simulator or "not simulated"),
        ("began", began),
        ("duration", duration((measures.ended_ms - measures.began_ms) // 1000)),
        ("store", "Redis" if measures.run.redis else "SQLite"),
        *([("state", "in progress")] if measures.up else []),
    ]
    return tuple(found)


def duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{seconds % 60} s"]
    return " ".join(part for part in parts if part)


# Tiles -----------------------------------------------------------------------------------------------------------


def _tiles(measures: Measures) -> Iterator[Tile]:
    yield from _lift_tile(measures)
    accepted = sum(each.accepted for each in measures.versions)
    insufficient = sum(each.on_insufficient_evidence for each in measures.versions)
    known = [each.moved for each in measures.versions if each.moved is not None]
    more = f"{sum(known):,} of them moved from the baseline; " if known else ""
    yield Tile("versions published", f"{accepted:,}", f"{more}{insufficient:,} on insufficient evidence")
    if measures.asked and measures.asked.policy_share is not None:
        more = f"of the learned buckets' {measures.asked.learned:,} pages"
        yield Tile("decided by policy", f"{measures.asked.policy_share:.1%}", more)
    fresh = [each for each in measures.freshness if each.page_s.p50 is not None]
    if fresh:
        worst = max(fresh, key=lambda each: each.page_s.p50 or 0)
        more = f"click: {text(worst.click_s.p50, 1)} s; medians of {worst.policy}"
        yield Tile("page closed → served", f"{text(worst.page_s.p50, 1)} s", more)
    if measures.accounting:
        found = measures.accounting
        more = f"of {found.acknowledged:,} acknowledged; {found.lost:,} pages not in the log"
        yield Tile("events missing", f"{found.missing:,}", more, "bad" if found.missing else "good")


def _lift_tile(measures: Measures) -> Iterator[Tile]:
    lifts = measures.comparison.lifts if measures.comparison else ()
    for lift in lifts:
        if lift.policy is None and lift.measure == PER_VISIT:
            tone = {"better": "good", "worse": "bad"}.get(lift.finding, "") if lift.primary else ""
            value = f"{lift.relative.mean:+.1%}" if lift.relative else f"{lift.absolute.mean:+.2f}"
            between = (percent(lift.relative) if lift.relative else signed(lift.absolute)).partition("[")[2]
            label = f"lift, {lift.measure}" if lift.primary else f"the same, {lift.period}"
            yield Tile(label, value, f"95 %: {between.rstrip(']').replace(',', ' to')}", tone)


# Sections --------------------------------------------------------------------------------------------------------


def _sections(measures: Measures, clock: Clock) -> Iterator[Section]:
    found, policies = measures.comparison, tuple(each.policy for each in measures.versions)
    by_name = colours(found, policies)
    if found:
        yield Section(
            "reward", "Reward", f"{_REWARD_NOTE} {_NEWS_NOTE if measures.decided else ''}".rstrip(),
            tuple(reward_charts(found, by_name, clock)),
            tuple(_reward_tables(measures, found)),
        )  # fmt: skip
        yield Section(
            "users", "What users got", "A policy that only prolongs sessions shows here.",
            tuple(user_charts(found, by_name)), columns="four",
        )  # fmt: skip
    yield Section(
        "actions", "What the policies do", "", tuple(action_charts(measures.actions, by_name, clock)),
    )  # fmt: skip
    yield Section(
        "learning", "Learning", "Means over the updates of a round.",
        tuple(learning_charts(measures.learning, policies, by_name, clock)),
    )  # fmt: skip
    if measures.decided:
        tables = (
            ("In all", tally_table(measures.decided)),
            ("Each", update_table(measures.decided, measures.verdicts, clock)),
        )
        charts = update_charts(measures.decided, measures.learning, policies, by_name, clock)
        yield Section("updates", "Updates of the rankings", UPDATES_NOTE, tuple(charts), tables)
    deciders = measures.asked.deciders if measures.asked else None
    yield Section(
        "serving", "Serving", "", tuple(serving_charts(deciders, measures.parts, clock, measures.ended_ms)),
        tuple(_asked_tables(measures)),
    )  # fmt: skip
    yield Section(
        "freshness", "Freshness", "", tuple(freshness_charts(measures.freshness, by_name)),
        (("Seconds until served", freshness_table(measures.freshness)),) if measures.freshness else (),
    )  # fmt: skip
    yield Section("events", "Volumes and balance of events", "", (), tuple(_event_tables(measures)))


def _reward_tables(measures: Measures, found: Comparison) -> Iterator[tuple[str, Table]]:
    yield "Buckets", bucket_table(found, measures.asked)
    yield "Against the baseline", lift_table(found.lifts)
    if measures.twins:
        warning = f" ({oddity(measures.twins)})" if oddity(measures.twins) else ""
        yield f"Against {TWINS}{warning}", lift_table(measures.twins.lifts)


def _asked_tables(measures: Measures) -> Iterator[tuple[str, Table]]:
    if found := measures.asked:
        rows = [
            ("asked for", f"{found.pages:,}"),
            *((f"decided by {name}", f"{n:,}") for name, n in sorted(found.decided_by.items())),
            *((f"fallback: {name}", f"{n:,}") for name, n in sorted(found.reasons.items())),
            ("without an answer", counted(found.unanswered, found.troubles)),
            ("answer time, p50 / p99 (ms)", f"{text(found.wait_ms.p50, 1)} / {text(found.wait_ms.p99, 1)}"),
        ]
        yield "Pages", Table(("pages", ""), tuple(rows))


def _event_tables(measures: Measures) -> Iterator[tuple[str, Table]]:
    if measures.counts:
        rows = [(name, _grouped(value)) for name, value in event_rows(measures.counts)]
        yield "Every event is in one place", Table(("events", ""), tuple(rows))
    if found := measures.accounting:
        rows = [
            ("acknowledged events", f"{found.acknowledged:,}"),
            ("missing", f"{found.missing:,}"),
            ("answered pages", f"{found.answered:,}"),
            ("not in the log", f"{found.lost:,}"),
        ]
        yield "Nothing is lost, by the ids", Table(("ids", ""), tuple(rows))


def _grouped(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def version_table(found: Iterable[PolicyVersions]) -> Table:
    head = (
        "policy", "accepted", "of them with new updates", "moved from the baseline", "on insufficient evidence",
        "refused", "kept", "superseded",
    )  # fmt: skip
    return Table(
        head,
        tuple(
            (
                each.policy,
                each.accepted,
                "–" if each.updated is None else each.updated,
                "–" if each.moved is None else moved(each),
                counted(each.on_insufficient_evidence, {k.replace("_", " "): n for k, n in each.evidence.items()}),
                counted(sum(each.refused.values()), each.refused),
                counted(sum(each.kept.values()), each.kept),
                each.superseded,
            )
            for each in found
        ),
    )


# Verdicts --------------------------------------------------------------------------------------------------------


def _judged(found: Verdict, clock: Clock) -> Judged:
    checks = Table(("check", "found", "expected", "n", ""), tuple(_checks(found.checks))) if found.checks else None
    return Judged(
        verdict=found,
        when=f"{clock.since(found.time_ms):.2f}",
        version=str(found.version or "–"),
        evidence=(found.evidence or "–").replace("_", " "),
        checks=checks,
    )


def _checks(checks: Iterable[Check]) -> Iterator[tuple[object, ...]]:
    for check in checks:
        value = "–" if check.value is None else f"{check.value:.4g}"
        mark = "passed" if check.passed else "failed"
        yield check.name, value, check.would_pass, f"{check.n:,}", f"{mark}; {check.note}" if check.note else mark

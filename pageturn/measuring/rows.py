"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pageturn.measuring.accounting import Accounting
from pageturn.measuring.asked import Asked
from pageturn.measuring.buckets import PER_SESSION, PER_VISIT, SECOND_HALF, BucketFigures, Comparison, Lift
from pageturn.measuring.freshness import Freshness
from pageturn.measuring.series import Quantiles
from pageturn.measuring.twins import Twins
from pageturn.measuring.updates import Tally, tallies
from pageturn.measuring.versions import INSUFFICIENT, PolicyVersions
from pageturn.table import event_rows
from pipeline.simulation.outcomes import Estimate, Summary

if TYPE_CHECKING:
    from pageturn.measures import Measures

Row = tuple[object, ...]
TWINS = "the same visits under the baseline (a simulator can tell): those that looked at the feed anyway"
UNENDED = "sessions without an end, not counted"
IN_PROGRESS = "A look at a run in progress: where it stops may not be chosen by what is seen."


class Figure(NamedTuple):
    title: str
    name: str  # in `Summary`
    digits: int


REWARD = Figure(PER_VISIT, "visit_reward", 2)
FIGURES = (
    REWARD,
    Figure(PER_SESSION, "reward", 2),
    Figure("exposure rate", "exposure", 3),
    Figure("click rate per user", "user_clicks", 3),
    Figure("dwell (s)", "dwell_s", 1),
    Figure("depth (pages)", "depth", 2),
)


def rows(measures: Measures) -> list[Row]:
    """For `pageturn.table.render`."""
    parts = (
        event_rows(measures.counts) if measures.counts else (),
        _accounting(measures.accounting) if measures.accounting else (),
        _asked(measures.asked) if measures.asked else (),
        [("updates", measures.updates)] if measures.learning else (),
        [row for policy in measures.versions for row in _versions(policy)],
        [row for each in tallies(measures.decided) for row in _tally(each)],
        [row for policy in measures.freshness for row in _freshness(policy)],
        _buckets(measures.comparison, measures.asked) if measures.comparison else (),
        _primary(measures.comparison.primary) if measures.comparison and measures.comparison.primary else (),
        _lifts("other looks at the same users", secondary(measures.comparison)),
        _twins(measures.twins) if measures.twins else (),
        [(IN_PROGRESS,)] if measures.up else (),
    )
    found: list[Row] = []
    for part in map(list, parts):
        if part:
            found += [(), *part] if found else part
    return found


def _accounting(found: Accounting) -> Iterator[Row]:
    yield "acknowledged events", found.acknowledged
    yield "  missing", found.missing if not found.missing else f"{found.missing}: they should be somewhere"
    yield "answered pages", found.answered
    yield "  not in the log", found.lost


def _asked(found: Asked) -> Iterator[Row]:
    yield "pages asked for", found.pages
    yield "  without an answer", counted(found.unanswered, found.troubles)
    for name in sorted(found.decided_by):
        by = counted(found.decided_by[name], found.reasons if name == "fallback" else {})
        yield f"  decided by {name}", by
    if found.policy_share is not None:
        yield "  by policy, of learned buckets", f"{found.policy_share:.1%}"
    yield "  answer, p50 / p99", f"{number(found.wait_ms.p50)} / {number(found.wait_ms.p99)} ms"


def _versions(found: PolicyVersions) -> Iterator[Row]:
    yield f"versions of {found.policy}", f"{found.accepted} accepted"
    if found.updated is not None:
        yield "  of them with new updates", found.updated
    if found.moved is not None:
        yield "  of them moved from the baseline", moved(found)
    for name in INSUFFICIENT:
        if found.evidence.get(name):
            yield f"  of them {name.replace('_', ' ')}", found.evidence[name]
    for name, reasons in (("refused", found.refused), ("kept", found.kept)):
        if reasons:
            yield f"  {name}", counted(sum(reasons.values()), reasons)
    if found.superseded:
        yield "  superseded", found.superseded


def _tally(found: Tally) -> Iterator[Row]:
    by = f", by {found.decisive} users' clicks" if found.decisive else ""
    yield f"{found.kind} updates of {found.policy} by {found.by}", f"{found.taken} of {found.decided} taken{by}"


def _freshness(found: Freshness) -> Iterator[Row]:
    yield f"page closed -> served, {found.policy}", seconds(found.page_s)
    yield f"click -> served, {found.policy}", seconds(found.click_s)
    for stage, spent in found.stages_s.items():
        yield f"  {stage}", seconds(spent)


def _buckets(found: Comparison, pages: Asked | None) -> Iterator[Row]:
    yield ("", *(bucket.bucket for bucket in found.buckets))
    yield ("policy", *(bucket.policy for bucket in found.buckets))
    yield ("sessions, of users", *(f"{bucket.whole.sessions}, {bucket.users}" for bucket in found.buckets))
    if pages and pages.sessions:
        yield (UNENDED, *(str(unended(bucket, pages)) for bucket in found.buckets))
    for figure in FIGURES:
        yield (figure.title, *(shown(bucket.whole, figure) for bucket in found.buckets))
    yield (f"{REWARD.title}, {SECOND_HALF}", *(shown(bucket.second_half, REWARD) for bucket in found.buckets))


def _primary(lift: Lift) -> Iterator[Row]:
    yield (f"{PER_VISIT} against the baseline: learned, {lift.period}", *_differences(lift), lift.conclusion)


def _lifts(title: str, lifts: Sequence[Lift]) -> Iterator[Row]:
    if lifts:
        yield (title,)
    for lift in lifts:
        yield (f"  {lift.measure}: {who(lift)}, {lift.period}", *_differences(lift))


def _twins(found: Twins) -> Iterator[Row]:
    yield from _lifts(TWINS, found.lifts)
    if warning := oddity(found):
        yield f"  {warning}", ""


def _differences(lift: Lift) -> tuple[str, str]:
    return signed(lift.absolute), percent(lift.relative) if lift.relative else ""


# Texts -----------------------------------------------------------------------------------------------------------


def estimate_of(summary: Summary, figure: Figure) -> Estimate:
    found = getattr(summary, figure.name)
    assert isinstance(found, Estimate)
    return found


def unended(bucket: BucketFigures, pages: Asked) -> int:
    """Under way, or broken off with the users' process. The longer a session, the likelier it is among them."""
    return max(0, pages.sessions.get(bucket.bucket, 0) - bucket.whole.sessions)


def shown(summary: Summary, figure: Figure) -> str:
    return interval(estimate_of(summary, figure), figure.digits)


def interval(found: Estimate, digits: int) -> str:
    """A mean without an interval stands alone; of nothing there is a dash."""
    if found.mean != found.mean:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (found.mean, found.low, found.high))
    return mean if found.half != found.half else f"{mean} [{low}, {high}]"


def secondary(found: Comparison | None) -> tuple[Lift, ...]:
    return tuple(lift for lift in found.lifts if not lift.primary) if found else ()


def moved(found: PolicyVersions) -> str:
    far = "" if found.distance is None else f" (the last by {found.distance:.1%} of the range, on average)"
    return f"{found.moved}{far if found.moved else ''}"


def oddity(found: Twins) -> str:
    """Empty where all is as it should be."""
    if not found.odd:
        return ""
    return f"warning: {found.odd} of {found.checked} visits of the baseline differ from themselves: these are off, too"


def who(lift: Lift) -> str:
    return lift.policy or "learned"


def signed(found: Estimate) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def percent(found: Estimate) -> str:
    return f"{found.mean:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def counted(total: int, parts: Mapping[str, int]) -> str:
    """The number, and what it is made of."""
    most_first = sorted(parts.items(), key=lambda part: (-part[1], part[0]))
    return f"{total} ({', '.join(f'{name} {n}' for name, n in most_first)})" if parts and total else str(total)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def seconds(found: Quantiles) -> str:
    return f"p50 {number(found.p50)} s, p90 {number(found.p90)} s (n = {found.n})" if found.n else "nothing yet"


def verdict(found: Comparison | None, up: bool = False) -> str:
    """The run in one sentence, and whether it is over."""
    lift = found.primary if found else None
    if lift is None:
        return "There is nothing to compare yet."
    more = f", which is {percent(lift.relative)}" if lift.relative else ""
    said = f"{_HEADS[lift.finding]}: {signed(lift.absolute)} {lift.measure}{more}; 95 % intervals."
    return f"{said} {IN_PROGRESS}" if up else said


_HEADS = {
    "better": "The learned buckets are ahead of the baseline",
    "worse": "The learned buckets are behind the baseline",
    "not shown": "No difference between learned buckets and baseline is shown yet, for the interval covers zero",
    "unknown": "There are too few users to tell the learned buckets from the baseline",
}

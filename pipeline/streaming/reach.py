"""How far past both ends of a range of page times the log must be read, so that the range comes out as it did live.

With L the longest attribution window, A the most an event may be ahead of its stamp: what makes a page at t is stamped
from t - clock skew - A to t + L + lateness. Beyond that

  back     to the beginning of every visit that is under way when the range begins: where an episode was cut, at
           `max_pages`, follows from its visit's first page (transitions do not depend on it). From there back by
           2 A + clock skew + L + lateness + `remember_closed`, for a page that still owned a request's id; and to the
           start of a slot of the stamps, since what a session takes in is counted from there.
  forward  to the end of every visit that is under way when the range ends, but at most for as long as an episode can
           last; from there by A + L + lateness + session gap + clock skew, when its leave is inferred.

One page is in another's visit only if it is within session gap + clock skew of it. Where visits begin and end is found
by looking at the times of impressions, a few gaps at a time; all of them count, also those that become no page, so
that the reach may be longer than it need be, and is never shorter.

A limit: a request id that is used again and again, each time with a later page time within `remember_closed`, depends
on all its uses. Ids are unique (docs/events.md), and a retry comes within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.config.schema import FeatureConfig
from pipeline.transitions.rules import Rules

_GAPS_PER_LOOK = 4

Impressions = Callable[[int, int], Iterable[tuple[str, int]]]  # (session, time) of those with a stamp in [low, high)


class Range(NamedTuple):
    from_ms: int
    to_ms: int  # not in it


class Known(NamedTuple):
    """The stamps that the input has: before the first it has none, up to `until_ms` it has all."""

    first_ms: int
    until_ms: int


def reach(config: FeatureConfig, pages: Range, impressions: Impressions, known: Known) -> Range:
    """The stamps to read for pages of these times."""
    rules, ahead_ms = Rules.of(config), config.stream.max_ahead
    late_ms = rules.longest_window_ms + rules.lateness_ms
    quiet_ms = rules.gap_ms + rules.skew_ms

    def shown(low_ms: int, high_ms: int) -> Iterable[tuple[str, int]]:
        """(session, time) of impressions of these times."""
        found = impressions(low_ms - ahead_ms, high_ms + late_ms)
        return [(session, time_ms) for session, time_ms in found if low_ms <= time_ms < high_ms]

    begin_ms = _follow(shown, pages.from_ms, -quiet_ms, known.first_ms - late_ms)
    longest_ms = pages.to_ms + rules.max_pages * quiet_ms
    end_ms = _follow(shown, pages.to_ms, quiet_ms, min(known.until_ms + ahead_ms, longest_ms))
    first_ms = begin_ms - 2 * ahead_ms - rules.skew_ms - late_ms - rules.remember_ms
    last_ms = end_ms + ahead_ms + late_ms + quiet_ms + 2
    return Range(max(first_ms // rules.intake_ms, 0) * rules.intake_ms, last_ms)


def _follow(shown: Impressions, at_ms: int, quiet_ms: int, stop_ms: int) -> int:
    """How far the visits that are under way at a time reach: backwards if `quiet_ms` is negative."""
    forward, apart_ms = quiet_ms > 0, abs(quiet_ms)
    visits = _under_way(shown, at_ms, quiet_ms)
    farthest = edge = at_ms
    while visits and (edge < stop_ms if forward else edge > stop_ms):
        seen = edge
        edge += _GAPS_PER_LOOK * quiet_ms
        times: dict[str, list[int]] = {}
        for session, time_ms in shown(min(seen, edge), max(seen, edge)):
            if session in visits:
                times.setdefault(session, []).append(time_ms)
        visits = {s: _last(last, sorted(times.get(s, ()), reverse=not forward), apart_ms) for s, last in visits.items()}
        farthest = (max if forward else min)([farthest, *visits.values()])
        visits = {s: last for s, last in visits.items() if abs(edge - last) <= apart_ms}
    return farthest


def _under_way(shown: Impressions, at_ms: int, quiet_ms: int) -> dict[str, int]:
    """Of sessions with an impression just on the near side of a time: that impression's time."""
    visits: dict[str, int] = {}
    if quiet_ms > 0:
        for session, time_ms in shown(at_ms - quiet_ms, at_ms):
            visits[session] = max(time_ms, visits.get(session, time_ms))
    else:
        for session, time_ms in shown(at_ms, at_ms - quiet_ms):
            visits[session] = min(time_ms, visits.get(session, time_ms))
    return visits


def _last(time_ms: int, times: Iterable[int], apart_ms: int) -> int:
    """The last of the times that follow each other without too long a pause."""
    for following_ms in times:
        if abs(following_ms - time_ms) > apart_ms:
            break
        time_ms = following_ms
    return time_ms

"""Simulated traffic without end, at a steady rate: one round of it, told again and again with new ids and times.

Rounds overlap: what of a round comes after its length is told while the next ones are under way. So from the second
round on, one is like another.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.events import START_MS, simulated
from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, Entry, EventLog
from pipeline.simulation.traffic import Flow

_TIME = re.compile(rb'"time_ms":(\d+)')
_ID, _KEY = b'"sim-', "sim-"  # what session, request and event ids begin with
_EVENTS_PER_VISIT = 10.5  # about
_LATE_MS = 60_000
_PAUSE_S, _MANY = 0.02, 1_000


class Told(NamedTuple):
    """An event of the round, in two pieces: its time goes between them."""

    at_ms: int  # since the beginning of the round when it is told
    earlier: int  # its own round began so many rounds before
    key: str
    head: bytes
    time_ms: int | None  # since the beginning of its own round; None: there is none in its bytes
    tail: bytes


class Round(NamedTuple):
    length_ms: int
    events: list[Told]  # by `at_ms`


def round_of(rate: float, seconds: float, seed: int = 1) -> Round:
    """A round of so many seconds, of about `rate` events per second. Users' seconds pass 25 times as fast."""
    flow = Flow(seed=seed, visits_per_s=rate / _EVENTS_PER_VISIT)
    visits = max(1, round(seconds * flow.visits_per_s))
    length_ms = math.ceil(1_000 * visits / flow.visits_per_s)
    told = [_told(entry, length_ms) for entry in simulated(visits, flow, _LATE_MS)]
    return Round(length_ms, sorted(told, key=lambda each: each.at_ms))


def _told(entry: Entry, length_ms: int) -> Told:
    earlier, at_ms = divmod((entry.appended_at_ms or 0) - START_MS, length_ms)
    found = _TIME.search(entry.payload)
    if found is None:
        return Told(at_ms, earlier, entry.key, entry.payload, None, b"")
    head, tail = entry.payload[: found.start(1)], entry.payload[found.end(1) :]
    return Told(at_ms, earlier, entry.key, head, int(found[1]) - START_MS, tail)


def endless(told: Round, start_ms: int) -> Iterator[tuple[int, Entry]]:
    """(when, entry), by time, from `start_ms` on. The entries have no stamps: the log gives them."""
    for number in itertools.count():
        began_ms = start_ms + number * told.length_ms
        for event in told.events:
            own = number - event.earlier
            if own >= 0:
                yield began_ms + event.at_ms, _entry(event, own, start_ms + own * told.length_ms)


def _entry(event: Told, number: int, began_ms: int) -> Entry:
    time_ms = b"" if event.time_ms is None else str(began_ms + event.time_ms).encode()
    payload = b"".join((event.head, time_ms, event.tail)).replace(_ID, b'"r%d-' % number)
    return Entry(event.key.replace(_KEY, f"r{number}-", 1), payload)


def produce(log: EventLog, told: Round, stop: threading.Event) -> None:
    """Append events as their times come, until `stop`."""
    waiting: list[Entry] = []
    for when_ms, entry in endless(told, wall_clock_ms()):
        if len(waiting) == _MANY or (waiting and when_ms > wall_clock_ms()):
            log.append(EVENTS, waiting)
            waiting = []
        while when_ms > wall_clock_ms():
            stop.wait(_PAUSE_S)
        if stop.is_set():
            return
        waiting.append(entry)

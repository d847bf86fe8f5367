"""A record of what simulated users did and saw, in the traffic folder of a run.

<folder>/visits.jsonl           a `Visit` each, when it has ended: what the comparison of buckets rests on
<folder>/pages.jsonl            an `AskedPage` each
<folder>/events.jsonl           the ids of events that the agent has acknowledged: none of them may be lost
<folder>/unacknowledged.jsonl   the ids of events that it had not when their driver ended: each is in the log, or not
<folder>/claims.jsonl           a `Claimed` each: a driver that is started again goes on behind the last one
<folder>/drives.jsonl           a `Drive` each, when a driver ends; a killed one leaves none
<folder>/.lock                  held by the driver: there is one at a time
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct

from pageturn.lines import lines_of
from pipeline.durable import appending
from pipeline.records import Feedback
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import Params
from pipeline.simulation.returning import Claim, Past, past_of
from pipeline.simulation.traffic import Flow

VISITS, PAGES, EVENTS = "visits.jsonl", "pages.jsonl", "events.jsonl"
UNACKNOWLEDGED, CLAIMS, DRIVES = "unacknowledged.jsonl", "claims.jsonl", "drives.jsonl"
_FLUSH_S = 1.0


class Visit(Struct, frozen=True):
    time_ms: int  # of its last page
    seed: int  # of the users: with their number and that of the visit it brings the same visit again
    outcome: Outcome


class AskedPage(Struct, frozen=True, omit_defaults=True):
    time_ms: int
    request_id: str
    wait_ms: float  # for the answer
    bucket: str | None = None  # None: no agent answered, and the feed showed its own order
    decided_by: str | None = None
    reason: str | None = None  # of a fallback
    version: int | None = None
    trouble: str | None = None  # why there was no answer
    user_id: str = ""
    late_ms: int = 0  # it was asked so long after its time: the user has waited for late_ms + wait_ms


class Claimed(Struct, frozen=True):
    time_ms: int
    seed: int
    claim: Claim


class Drive(Struct, frozen=True):
    """What a driver came to, and how well it kept up."""

    began_ms: int
    ended_ms: int
    seed: int
    visits: int  # that came
    offered_per_s: float
    came_per_s: float
    unfinished: int  # of the visits: broken off at the end
    sessions: int  # of the visits that ended: they looked at the feed
    reward: float  # of all that ended
    pages: int
    worst_late_ms: int  # of a page
    reported: int  # events, duplicates included
    undelivered: int  # events that were still on their way to the agent's client
    unacknowledged: int
    dropped: int  # events that the agent refused, or had no room for

    def __str__(self) -> str:
        per_session = f"{self.reward / self.sessions:.3f}" if self.sessions else "-"
        return (
            f"{self.visits - self.unfinished} visits, {self.sessions} sessions, reward per session {per_session}\n"
            f"{self.offered_per_s:.1f} visits per second offered, {self.came_per_s:.1f} came; pages were asked "
            f"{self.worst_late_ms / 1000:.2f} s late at worst; {self.unfinished} visits broken off, "
            f"{self.unacknowledged + self.dropped} of {self.reported} events not acknowledged"
        )


class TrafficLog:
    """Appends; on disk within about a second. One writer at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: appending(folder / name) for name in (VISITS, PAGES, EVENTS, CLAIMS)}
        self._folder = folder
        self._flushed_s = time.monotonic()
        self._turn = threading.Lock()  # pages are asked, and events reported, in threads of their own

    def __enter__(self) -> TrafficLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def visit(self, visit: Visit) -> None:
        self._write(VISITS, [visit])

    def page(self, page: AskedPage) -> None:
        self._write(PAGES, [page])

    def acknowledged(self, events: Sequence[Feedback]) -> None:
        self._write(EVENTS, [event.event_id for event in events])

    def claim(self, claimed: Claimed) -> None:
        """It outlives a kill of this process."""
        self._write(CLAIMS, [claimed])
        with self._turn:
            self._files[CLAIMS].flush()

    def end(self, drive: Drive, unacknowledged: Sequence[Feedback]) -> None:
        for name, values in ((UNACKNOWLEDGED, [event.event_id for event in unacknowledged]), (DRIVES, [drive])):
            with appending(self._folder / name) as file:
                file.writelines(msgspec.json.encode(value) + b"\n" for value in values)

    def _write(self, name: str, values: Sequence[Any]) -> None:
        with self._turn:
            self._files[name].writelines(msgspec.json.encode(value) + b"\n" for value in values)
            if time.monotonic() - self._flushed_s > _FLUSH_S:
                self._flushed_s = time.monotonic()
                for file in self._files.values():
                    file.flush()


def read_visits(folder: Path) -> Iterator[Visit]:
    return lines_of(folder / VISITS, Visit)


def read_pages(folder: Path) -> Iterator[AskedPage]:
    return lines_of(folder / PAGES, AskedPage)


def read_acknowledged(folder: Path) -> Iterator[str]:
    return lines_of(folder / EVENTS, str)


def read_unacknowledged(folder: Path) -> Iterator[str]:
    return lines_of(folder / UNACKNOWLEDGED, str)


def read_drives(folder: Path) -> Iterator[Drive]:
    return lines_of(folder / DRIVES, Drive)


def read_past(folder: Path, params: Params, flow: Flow) -> Past:
    """Of the users of this seed, from all drivers before."""
    claims = [each.claim for each in lines_of(folder / CLAIMS, Claimed) if each.seed == flow.seed]
    outcomes = (visit.outcome for visit in read_visits(folder) if visit.seed == flow.seed)
    return past_of(params, flow.users, claims[-1] if claims else None, outcomes)

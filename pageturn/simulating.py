"""Simulated users against a running agent, in real time; and a record of what they did and saw.

<folder>/visits.jsonl           a `Visit` each: what the comparison of buckets rests on
<folder>/pages.jsonl            an `AskedPage` each
<folder>/events.jsonl           the ids of events that the agent has acknowledged: none of them may be lost
<folder>/unacknowledged.jsonl   the ids of events that it had not when their driver ended: each is in the log, or not
<folder>/claims.jsonl           a `Claimed` each: a driver that is started again goes on behind the last one
<folder>/drives.jsonl           a `Drive` each, when a driver ends
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import msgspec
from msgspec import Struct

from pageturn.found_agent import FoundAgent
from pageturn.lines import appending, lines_of
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.client import Reporter
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.records import Feedback
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import Params, World
from pipeline.simulation.returning import Claim, Past, past_of
from pipeline.simulation.traffic import Flow, Traffic, WallClock

VISITS, PAGES, EVENTS = "visits.jsonl", "pages.jsonl", "events.jsonl"
UNACKNOWLEDGED, CLAIMS, DRIVES = "unacknowledged.jsonl", "claims.jsonl", "drives.jsonl"
_THREADS = 64  # pages that are asked at once: 250 a second, should none be answered
_DECIDE_S = 0.25
_READY_S = 60.0
_FINISH_S, _REPORTS_S = 4.0, 2.5  # after SIGTERM: whoever sent it waits ten seconds
_LAST_REPORTS_S = 8.0
_FLUSH_S = 1.0
_CLAIM_S = 10.0
_LOG = logging.getLogger(__name__)


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
    pages: int
    worst_late_ms: int  # of a page
    reported: int  # events, duplicates included
    undelivered: int  # events that were still on their way to the agent's client
    unacknowledged: int
    dropped: int  # events that the agent refused, or had no room for

    def __str__(self) -> str:
        return (
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


class Claims:
    """Claims the numbers of visits ahead of their use, some seconds of them at once."""

    def __init__(self, log: TrafficLog, flow: Flow) -> None:
        self._log, self._flow = log, flow
        self._upto = 0

    def arriving(self, number: int) -> None:
        if number >= self._upto:
            self._claim(number + math.ceil(_CLAIM_S * self._flow.visits_per_s))

    def end(self, following: int) -> None:
        """What was not used is free again."""
        self._claim(following)

    def _claim(self, upto: int) -> None:
        self._upto = upto
        self._log.claim(Claimed(_now_ms(), self._flow.seed, Claim(self._flow.users, upto)))


def simulate(
    config: FeatureConfig,
    find: Callable[[], str],
    folder: Path,
    flow: Flow,
    stop: threading.Event,
    *,
    visits: int | None = None,
    seconds: float | None = None,
) -> tuple[Traffic, Drive]:
    """Let users come until there were so many visits, or for so long, or until `stop` is set; then see the last events
    acknowledged. `find`: where the agent is, see `FoundAgent`.

    Raises: BusyError (the folder has a driver), SimulationError, and what `find` raises where the agent stays away.
    """
    world = World.of(config)
    with exclusive(folder), TrafficLog(folder) as log, FoundAgent(find) as agent:
        _await_agent(agent, stop)
        reporter, claims = Reporter(agent, log.acknowledged), Claims(log, flow)
        traffic = Traffic(
            world, flow, lambda page: _decide(agent, log, page, traffic.due_ms), reporter, WallClock(),
            lambda outcome, time_ms: log.visit(Visit(time_ms, flow.seed, outcome)),
            arriving=claims.arriving, past=read_past(folder, world.params, flow), threads=_THREADS,
        )  # fmt: skip
        began_ms = _now_ms()
        try:
            traffic.run(visits, stop, seconds=seconds, finish_s=_FINISH_S)
        finally:
            reporter.close(_REPORTS_S if stop.is_set() else _LAST_REPORTS_S)
            claims.end(traffic.next)
            drive = _drive(flow, traffic, reporter, began_ms)
            log.end(drive, reporter.unacknowledged)
    return traffic, drive


def _await_agent(agent: FoundAgent, stop: threading.Event) -> None:
    deadline_s = time.monotonic() + _READY_S
    while not (stop.is_set() or agent.wait_ready(0.5)):
        if time.monotonic() > deadline_s:
            _LOG.warning("no agent at %s yet; users see the feed's own order", agent.target)
            return


def _drive(flow: Flow, traffic: Traffic, reporter: Reporter, began_ms: int) -> Drive:
    return Drive(
        began_ms=began_ms,
        ended_ms=_now_ms(),
        seed=flow.seed,
        visits=traffic.begun,
        offered_per_s=flow.visits_per_s,
        came_per_s=traffic.came_per_s,
        unfinished=traffic.begun - len(traffic.outcomes),
        pages=len(traffic.rewards) + traffic.unanswered,
        worst_late_ms=traffic.worst_late_ms,
        reported=traffic.events,
        undelivered=traffic.undelivered,
        unacknowledged=reporter.pending,
        dropped=reporter.dropped,
    )


# Pages -----------------------------------------------------------------------------------------------------------


def _decide(agent: FoundAgent, log: TrafficLog, page: PageRequest, due_ms: dict[str, int]) -> Sequence[int] | None:
    assert page.time_ms is not None
    began = time.perf_counter()
    answer: pb.DecideResponse | grpc.RpcError
    try:
        answer = agent.decide(page, _DECIDE_S)
    except grpc.RpcError as error:
        answer = error
    waited_ms = 1000 * (time.perf_counter() - began)
    log.page(_asked(page, answer, waited_ms, page.time_ms - due_ms[page.request_id]))
    return None if isinstance(answer, grpc.RpcError) else answer.order


def _asked(page: PageRequest, answer: pb.DecideResponse | grpc.RpcError, wait_ms: float, late_ms: int) -> AskedPage:
    assert page.time_ms is not None
    asked = partial(
        AskedPage, page.time_ms, page.request_id, round(wait_ms, 3), user_id=page.user_id, late_ms=max(0, late_ms)
    )
    if isinstance(answer, grpc.RpcError):
        return asked(trouble=answer.code().name)
    return asked(
        bucket=answer.bucket,
        decided_by=pb.DecidedBy.Name(answer.decided_by).removeprefix("DECIDED_BY_").lower(),
        reason=answer.fallback_reason or None,
        version=answer.model_version or None,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

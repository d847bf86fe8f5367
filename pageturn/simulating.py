"""Simulated users against a running agent, in real time; and a record of what they did and saw.

<folder>/visits.jsonl   a `Visit` each: what the comparison of buckets rests on
<folder>/pages.jsonl    an `AskedPage` each
<folder>/events.jsonl   the ids of events that the agent has acknowledged: none of them may be lost
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import msgspec
from msgspec import Struct

from pipeline.agent import agent_pb2 as pb
from pipeline.agent.client import AgentClient, Reporter
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import FeatureConfig
from pipeline.records import Feedback
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import World
from pipeline.simulation.traffic import Flow, Traffic, WallClock

VISITS, PAGES, EVENTS = "visits.jsonl", "pages.jsonl", "events.jsonl"
_DECIDE_S = 0.25
_READY_S = 60.0
_REPORTS_S = 8.0  # for the last events to be acknowledged
_FLUSH_S = 1.0
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


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


class TrafficLog:
    """Appends; on disk within about a second."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (folder / name).open("ab") for name in (VISITS, PAGES, EVENTS)}
        self._flushed_s = time.monotonic()
        self._turn = threading.Lock()  # the reporter writes from a thread of its own

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

    def _write(self, name: str, values: Sequence[Any]) -> None:
        with self._turn:
            self._files[name].writelines(msgspec.json.encode(value) + b"\n" for value in values)
            if time.monotonic() - self._flushed_s > _FLUSH_S:
                self._flushed_s = time.monotonic()
                for file in self._files.values():
                    file.flush()


def read_visits(folder: Path) -> Iterator[Visit]:
    return _read(folder / VISITS, Visit)


def read_pages(folder: Path) -> Iterator[AskedPage]:
    return _read(folder / PAGES, AskedPage)


def read_acknowledged(folder: Path) -> Iterator[str]:
    return _read(folder / EVENTS, str)


def _read(path: Path, kind: type[_T]) -> Iterator[_T]:
    """Whole lines; the last one may be on its way to the disk."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decoder.decode(line)


def simulate(
    config: FeatureConfig, target: str, folder: Path, flow: Flow, stop: threading.Event, visits: int | None = None
) -> Traffic:
    """Let users come until there were so many visits, or until `stop` is set; then see the last events acknowledged."""
    with ExitStack() as stack:
        client = stack.enter_context(AgentClient(target))
        log = stack.enter_context(TrafficLog(folder))
        if not client.wait_ready(_READY_S):
            _LOG.warning("no agent at %s yet; users see the feed's own order", target)
        reporter = Reporter(client, log.acknowledged)
        traffic = Traffic(
            World.of(config), flow, lambda page: _decide(client, log, page), reporter, WallClock(stop),
            lambda outcome, time_ms: log.visit(Visit(time_ms, flow.seed, outcome)),
        )  # fmt: skip
        traffic.run(visits, stop)
        if left := reporter.close(_REPORTS_S):
            _LOG.warning("%d events were not acknowledged", left)
    return traffic


def _decide(client: AgentClient, log: TrafficLog, page: PageRequest) -> Sequence[int] | None:
    began = time.perf_counter()
    answer: pb.DecideResponse | grpc.RpcError
    try:
        answer = client.decide(page, _DECIDE_S)
    except grpc.RpcError as error:
        answer = error
    log.page(_asked(page, answer, 1000 * (time.perf_counter() - began)))
    return None if isinstance(answer, grpc.RpcError) else answer.order


def _asked(page: PageRequest, answer: pb.DecideResponse | grpc.RpcError, wait_ms: float) -> AskedPage:
    assert page.time_ms is not None
    asked = AskedPage(page.time_ms, page.request_id, round(wait_ms, 3))
    if isinstance(answer, grpc.RpcError):
        return msgspec.structs.replace(asked, trouble=answer.code().name)
    return msgspec.structs.replace(
        asked,
        bucket=answer.bucket,
        decided_by=pb.DecidedBy.Name(answer.decided_by).removeprefix("DECIDED_BY_").lower(),
        reason=answer.fallback_reason or None,
        version=answer.model_version or None,
    )

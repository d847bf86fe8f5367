"""Simulated users against a running agent, in real time; `pageturn.traffic_log` keeps what they did and saw."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import grpc

from pageturn.found_agent import FoundAgent
from pageturn.traffic_log import AskedPage, Claimed, Drive, TrafficLog, Visit, read_past
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.client import Reporter
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.simulation.params import World
from pipeline.simulation.returning import Claim
from pipeline.simulation.traffic import Flow, Traffic, WallClock

DECIDE_S = 0.25  # how long a page waits for its answer; then the feed shows its own order
LEAVE_S = 60.0  # how long the users who are there may stay once no other comes: several times the longest visit
_THREADS = 64  # pages that are asked at once: 250 a second, should none be answered
_READY_S = 60.0
_FINISH_S, _REPORTS_S = 4.0, 2.5  # after SIGTERM: whoever sent it waits ten seconds
_LAST_REPORTS_S = 8.0
_CLAIM_S = 10.0
_LOG = logging.getLogger(__name__)


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
    decide_s: float = DECIDE_S,
) -> Drive:
    """Let users come until there were so many visits, or for so long; then let those who are there leave, so that no
    visit is broken off for being long, and see the last events acknowledged. `stop` hurries them.

    `find`: where the agent is, see `FoundAgent`. `decide_s`: how long a page waits for its answer.

    Raises: BusyError (the folder has a driver), SimulationError, and what `find` raises where the agent stays away.
    """
    world = World.of(config)
    with exclusive(folder), TrafficLog(folder) as log, FoundAgent(find) as agent:
        await_agent(agent, stop)
        reporter, claims = Reporter(agent, log.acknowledged), Claims(log, flow)
        traffic = Traffic(
            world, flow, lambda page: _decide(agent, log, page, traffic.due_ms, decide_s), reporter, WallClock(),
            lambda outcome, time_ms: log.visit(Visit(time_ms, flow.seed, outcome)),
            arriving=claims.arriving, past=read_past(folder, world.params, flow), threads=_THREADS,
        )  # fmt: skip
        began_ms = _now_ms()
        try:
            traffic.run(visits, stop, seconds=seconds, leave_s=LEAVE_S, finish_s=_FINISH_S)
        finally:
            reporter.close(_REPORTS_S if stop.is_set() else _LAST_REPORTS_S)
            claims.end(traffic.next)
            drive = _drive(flow, traffic, reporter, began_ms)
            log.end(drive, reporter.unacknowledged)
    return drive


def await_agent(agent: FoundAgent, stop: threading.Event) -> None:
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
        unfinished=traffic.begun - traffic.finished,
        sessions=traffic.sessions,
        reward=traffic.reward,
        pages=traffic.answered + traffic.unanswered,
        worst_late_ms=traffic.worst_late_ms,
        reported=traffic.events,
        undelivered=traffic.undelivered,
        unacknowledged=reporter.pending,
        dropped=reporter.dropped,
    )


# Pages -----------------------------------------------------------------------------------------------------------


def _decide(
    agent: FoundAgent, log: TrafficLog, page: PageRequest, due_ms: dict[str, int], decide_s: float
) -> Sequence[int] | None:
    assert page.time_ms is not None
    began = time.perf_counter()
    answer: pb.DecideResponse | grpc.RpcError
    try:
        answer = agent.decide(page, decide_s)
    except grpc.RpcError as error:
        answer = error
    waited_ms = 1000 * (time.perf_counter() - began)
    log.page(asked_page(page, answer, waited_ms, page.time_ms - due_ms[page.request_id]))
    return None if isinstance(answer, grpc.RpcError) else answer.order


def asked_page(page: PageRequest, answer: pb.DecideResponse | grpc.RpcError, wait_ms: float, late_ms: int) -> AskedPage:
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

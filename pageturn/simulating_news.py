"""Readers of the simulated news against a running agent, in real time: their day passes in as long as
`ranking.activeness.absence` says, which a feed with real users sets to a day.

What the traffic log calls a visit is a day of a user here, and one on which the user did not come is not exposed:
whether users come back is the policy's doing, and every user has as many days as any other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

from pageturn.found_agent import FoundAgent
from pageturn.simulating import DECIDE_S, asked_page, await_agent
from pageturn.traffic_log import Drive, TrafficLog, Visit
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.client import Reporter
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.records import SCHEMA_VERSION, Feedback, FeedbackKind
from pipeline.simulation.news.asking import Known, check, users_for
from pipeline.simulation.news.feed import NewsFeed, Requests
from pipeline.simulation.news.params import Params
from pipeline.simulation.outcomes import Outcome

_DAY_MIN = 1440
_MOST_DAYS = 30  # what is published is drawn beforehand
_THREADS = 16
_LAST_REPORTS_S = 8.0
_SHOWN_MS = 5  # between the answer and the first click, and between clicks
_LOG = logging.getLogger(__name__)


class Driver:
    """Owns the state of the simulated users; one page a user at a time."""

    def __init__(
        self, config: FeatureConfig, seed: int, users: int, agent: FoundAgent, log: TrafficLog, decide_s: float
    ) -> None:
        self._params = Params()
        check(config, self._params)
        self.day_s = config.ranking.activeness.absence / 1000
        self._weight = config.reward.weights.get("click", 0.0)
        self._feed, self._known = NewsFeed(self._params, seed, users, _MOST_DAYS), Known(self._params)
        self._seed, self._users, self._prefix = seed, users, f"n{_now_ms():x}"
        self._agent, self._log, self._decide_s = agent, log, decide_s
        self._reporter = Reporter(agent, log.acknowledged)
        self._pool = ThreadPoolExecutor(_THREADS, "asking")
        self._today = np.zeros((2, users), int)  # pages and clicks of the day
        self._day = 0
        self.pages = self.clicks = self.reported = self.worst_late_ms = 0

    def run(self, stop: threading.Event, seconds: float | None) -> None:
        """Ticks come when they are due; where the agent is slow they come late, and the day is longer."""
        tick_s, began_s = self.day_s * self._params.tick_min / _DAY_MIN, time.monotonic()
        ticks = 0
        while not (stop.is_set() or self._feed.over):
            due_s = began_s + ticks * tick_s
            if seconds is not None and due_s - began_s >= seconds:
                break
            stop.wait(max(0.0, due_s - time.monotonic()))
            self.worst_late_ms = max(self.worst_late_ms, round(1000 * (time.monotonic() - due_s)))
            self._tick()
            ticks += 1

    def _tick(self) -> None:
        requests = self._feed.requests()
        answers = list(self._pool.map(lambda page: self._ask(requests, page), range(len(requests.users))))
        shown = np.full((len(answers), self._params.page_size), -1)
        for page, order in enumerate(answers):
            n = int(requests.exists[page].sum())
            places = list(range(n) if order is None else order)[: self._params.page_size]
            shown[page, : len(places)] = places
        clicked = self._feed.show(requests, shown)
        np.add.at(self._today, (0, requests.users), 1)
        np.add.at(self._today, (1, requests.users), clicked.sum(axis=1))
        for page, order in enumerate(answers):
            if order is not None:  # a page that no agent has answered is in no log
                self._report(requests, page, shown[page], clicked[page])
        self.pages, self.clicks = self.pages + len(answers), self.clicks + int(clicked.sum())
        if self._feed.now_min >= _DAY_MIN * (self._day + 1):
            self._end_of_day()

    def _ask(self, requests: Requests, page: int) -> Sequence[int] | None:
        state, asked_ms, began_s = self._known.state(requests, page), _now_ms(), time.perf_counter()
        user, number = int(requests.users[page]), int(requests.numbers[page])
        request = PageRequest(
            self._request_id(requests, page), f"u{user}", f"u{user}", number, self._known.items(requests, page),
            state.user, state.context, state.page, asked_ms,
        )  # fmt: skip
        answer: pb.DecideResponse | grpc.RpcError
        try:
            answer = self._agent.decide(request, self._decide_s)
        except grpc.RpcError as error:
            answer = error
        self._log.page(asked_page(request, answer, 1000 * (time.perf_counter() - began_s), 0))
        return None if isinstance(answer, grpc.RpcError) else answer.order

    def _report(self, requests: Requests, page: int, shown: np.ndarray, clicked: np.ndarray) -> None:
        user, request_id, now_ms = f"u{requests.users[page]}", self._request_id(requests, page), _now_ms()
        for number, place in enumerate(np.flatnonzero(clicked).tolist()):
            item = f"n{requests.items[page][shown[place]]}"
            time_ms = now_ms + _SHOWN_MS * (1 + number)
            self._reporter(
                Feedback(
                    SCHEMA_VERSION, f"{request_id}/{place}", request_id, user, user, time_ms, FeedbackKind.CLICK, item
                )
            )
            self.reported += 1

    def _request_id(self, requests: Requests, page: int) -> str:
        return f"{self._prefix}-{requests.users[page]}-{requests.numbers[page]}"

    def _end_of_day(self) -> None:
        for user, (pages, clicks) in enumerate(self._today.T.tolist()):
            reward = self._weight * clicks
            outcome = Outcome(f"u{user}", False, pages > 0, pages, clicks, reward=reward, visit=self._day)
            self._log.visit(Visit(_now_ms(), self._seed, outcome))
        self._today[:] = 0
        self._day += 1

    @property
    def days(self) -> int:
        return self._day

    def close(self) -> None:
        """A run that was shorter than a day counts as one; what came after the last midnight is left out."""
        if self._day == 0 and self.pages:
            self._end_of_day()
        self._pool.shutdown()
        self._reporter.close(_LAST_REPORTS_S)

    def drive(self, began_ms: int, offered_per_s: float) -> Drive:
        """For the record: a day of a user is a visit."""
        ended_ms, visits = _now_ms(), self._users * self._day
        return Drive(
            began_ms=began_ms, ended_ms=ended_ms, seed=self._seed, visits=visits, offered_per_s=offered_per_s,
            came_per_s=visits / max(1e-9, (ended_ms - began_ms) / 1000), unfinished=0, sessions=visits,
            reward=self._weight * self.clicks, pages=self.pages, worst_late_ms=self.worst_late_ms,
            reported=self.reported, undelivered=0, unacknowledged=self._reporter.pending,
            dropped=self._reporter.dropped,
        )  # fmt: skip

    def unacknowledged(self) -> list[Feedback]:
        return self._reporter.unacknowledged


def simulate_news(
    config: FeatureConfig,
    find: Callable[[], str],
    folder: Path,
    stop: threading.Event,
    *,
    seed: int,
    visits_per_s: float,
    seconds: float | None = None,
    decide_s: float = DECIDE_S,
) -> str:
    """Let readers come, for so long or until `stop`; returns what it came to.

    Raises: BusyError (the folder has a driver), SimulationError, and what `find` raises where the agent stays away.
    """
    check(config, Params())
    users = users_for(visits_per_s, config.ranking.activeness.absence / 1000)
    with exclusive(folder), TrafficLog(folder) as log, FoundAgent(find) as agent:
        await_agent(agent, stop)
        driver, began_ms = Driver(config, seed, users, agent, log, decide_s), _now_ms()
        try:
            driver.run(stop, seconds)
        finally:
            driver.close()
            log.end(driver.drive(began_ms, visits_per_s), driver.unacknowledged())
    rate = driver.clicks / max(driver.pages, 1)
    days = f"{users} users, {driver.days} whole days of {driver.day_s:g} s"
    return (
        f"{days}; {driver.pages} pages, {rate:.3f} clicks per page; {driver.worst_late_ms / 1000:.2f} s late at worst"
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

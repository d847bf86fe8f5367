"""The simulated users as event traffic: they ask for pages, react, and their reactions arrive late, twice, disordered.

    traffic = Traffic(World(), Flow(), decide, report, clock)
    outcomes = traffic.run(visits=1000)

`decide` answers a page with the order in which to show its candidates (an agent in this process, or a gRPC stub), or
None where it cannot: then the feed shows the ranker's own order and reports nothing of the page. `report` takes one
event. Who shows a page is who logs it: impressions are the agent's business. Times are of the injected clock, so a
test runs days in a moment. The users' draws do not depend on the clock: the same decisions bring the same reactions.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct, structs

from pipeline.agent.requests import PageRequest
from pipeline.records import Feedback
from pipeline.simulation import draws, observing
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Offer, Reaction, Sessions, advance, arrange, begin, offer, react
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import SimulationError, World
from pipeline.simulation.people import exposed, next_loyalty
from pipeline.simulation.reactions import Ids, candidates, feedback, ids_of, user_id
from pipeline.transitions.rewards import page_reward

Decide = Callable[[PageRequest], Sequence[int] | None]
Report = Callable[[Feedback], None]
Ended = Callable[[Outcome, int], None]

_TRANSPORT = 6  # what the keys of a page are used for, after those of feed and reactions


class Flow(Struct, frozen=True, forbid_unknown_fields=True):
    """Who comes when, and what happens to events on their way."""

    seed: int = 1
    users: int = 3000  # they take turns, so each has visits / users of them
    visits_per_s: float = 10.0
    pace: float = 0.04  # seconds on the clock per second of the user's
    transport_ms: int = 20  # how long any event is on its way, at least
    disordered: float = 0.1  # share of events that take longer
    disorder_ms: int = 400  # by up to this
    duplicated: float = 0.05  # share of events that arrive a second time, as late as a disordered one may
    prefix: str = "sim"  # of session and request ids: runs that share a log need different ones


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def wait_until(self, time_ms: int) -> None: ...


class VirtualClock:
    """Is at once where it is asked to be."""

    def __init__(self, start_ms: int = 0) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        return self._now_ms

    def wait_until(self, time_ms: int) -> None:
        self._now_ms = max(self._now_ms, time_ms)


class WallClock:
    """Real time; `stop` ends a wait early."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def wait_until(self, time_ms: int) -> None:
        self._stop.wait(max(0, time_ms - self.now_ms()) / 1000)


class _Visit(NamedTuple):
    sessions: Sessions  # of one
    so_far: Outcome


class Traffic:
    """One driver, one thread. What it counted is in `outcomes` (visits that ended), `rewards` and the counts.

    `ended` hears of each visit, with the time of its last page.
    """

    def __init__(
        self, world: World, flow: Flow, decide: Decide, report: Report, clock: Clock, ended: Ended | None = None
    ) -> None:
        self._world, self._flow, self._clock = world, flow, clock
        self._decide, self._report, self._ended = decide, report, ended
        self._agenda: list[tuple[int, int, Callable[[int], None]]] = []
        self._scheduled = 0
        self._loyalty: dict[int, float] = {}
        self.outcomes: list[Outcome] = []
        self.rewards: dict[str, float] = {}  # of each answered page, by request id
        self.unanswered = 0
        self.events = 0  # reported, duplicates included

    def run(self, visits: int | None = None, stop: threading.Event | None = None) -> list[Outcome]:
        """Let visits come until there were so many (None: without end) and all that follows from them has happened.

        `stop` ends it at once, with sessions open and events on their way.
        """
        start_ms = self._clock.now_ms()
        arrived = 0
        stop = stop or threading.Event()
        while not stop.is_set():
            due_ms = start_ms + round(1000 * arrived / self._flow.visits_per_s)
            if (visits is None or arrived < visits) and (not self._agenda or due_ms <= self._agenda[0][0]):
                self._at(due_ms, self._arrival(arrived))
                arrived += 1
            elif not self._agenda:
                break
            else:
                self._next(stop)
        return self.outcomes

    def _next(self, stop: threading.Event) -> None:
        due_ms, _, happen = self._agenda[0]
        self._clock.wait_until(due_ms)
        if not stop.is_set():
            heapq.heappop(self._agenda)
            happen(max(due_ms, self._clock.now_ms()))  # a driver that lags behind asks for its pages now, not then

    def _at(self, time_ms: int, happen: Callable[[int], None]) -> None:
        heapq.heappush(self._agenda, (time_ms, self._scheduled, happen))
        self._scheduled += 1

    def _arrival(self, number: int) -> Callable[[int], None]:
        visit, user = divmod(number, self._flow.users)
        return lambda time_ms: self._arrive(user, visit, time_ms)

    def _arrive(self, user: int, visit: int, time_ms: int) -> None:
        params, seed = self._world.params, self._flow.seed
        who, when = np.array([user]), np.array([visit])
        loyalty = np.array([self._loyalty.get(user, params.loyalty_start)])
        sessions = begin(params, seed, who, when)
        sees = bool(exposed(params, seed, who, when, loyalty)[0])
        outcome = Outcome(user_id(user), bool(sessions.visitors.buyer[0]), sees, visit=visit)
        if sees:
            self._page(_Visit(sessions, outcome), time_ms)
        else:
            self._end(outcome, time_ms)

    def _page(self, visit: _Visit, time_ms: int) -> None:
        world, sessions, pace = self._world, visit.sessions, self._flow.pace
        ids, page = ids_of(sessions, self._flow.prefix), offer(world.params, sessions)
        order = self._decide(_request(ids, sessions, page, time_ms))
        reaction = react(world.params, sessions, page, self._shown(page, order))
        events = feedback(world.params, ids, page, reaction, time_ms=time_ms, pace=pace)
        reward = page_reward(world.objective.reward, events, left=bool(reaction.left[0]))
        if order is None:
            self.unanswered += 1
        else:
            self.rewards[ids.request_id] = reward
            self._send(events, page.page_keys)
        so_far = _added(visit.so_far, reaction, reward)
        if reaction.left[0]:
            self._leave(int(sessions.visitors.user[0]), so_far, time_ms)
            return
        turned = _Visit(advance(world.params, sessions, reaction), so_far)
        turn_ms = time_ms + max(1, round(1000 * pace * float(reaction.dwell_s[0])))
        self._at(turn_ms, lambda now_ms: self._page(turned, now_ms))

    def _shown(self, page: Offer, order: Sequence[int] | None) -> Array:
        if order is None:
            return arrange(self._world, page, np.array([self._world.objective.baseline]))
        positions = list(order)  # a stub's answer is some sequence of protobuf's
        if sorted(positions) != list(range(len(page.items))):
            msg = f"decide: expected an order of {len(page.items)} candidates, found {positions}"
            raise SimulationError(msg)
        return np.array(positions, np.int64)[: self._world.params.page_size, None]

    def _leave(self, user: int, outcome: Outcome, time_ms: int) -> None:
        params = self._world.params
        before = np.array([self._loyalty.get(user, params.loyalty_start)])
        converted = np.array([float(outcome.clicks > 0)])
        self._loyalty[user] = float(next_loyalty(params, before, np.array([outcome.buyer]), converted)[0])
        self._end(outcome, time_ms)

    def _end(self, outcome: Outcome, time_ms: int) -> None:
        self.outcomes.append(outcome)
        if self._ended is not None:
            self._ended(outcome, time_ms)

    def _send(self, events: Sequence[Feedback], page_keys: Array) -> None:
        flow = self._flow
        keys = draws.key(draws.key(page_keys, _TRANSPORT), np.arange(len(events)))
        slow, slowness = draws.two_uniforms(keys)
        twice, lateness = draws.two_uniforms(draws.key(keys, 0))
        for number, event in enumerate(events):
            arrives_ms = event.time_ms + flow.transport_ms
            more_ms = int(slowness[number] * flow.disorder_ms) if slow[number] < flow.disordered else 0
            self._at(arrives_ms + more_ms, self._delivery(event))
            if twice[number] < flow.duplicated:
                self._at(arrives_ms + int(lateness[number] * flow.disorder_ms), self._delivery(event))

    def _delivery(self, event: Feedback) -> Callable[[int], None]:
        def deliver(_: int) -> None:
            self.events += 1
            self._report(event)

        return deliver


def _request(ids: Ids, sessions: Sessions, page: Offer, time_ms: int) -> PageRequest:
    state = observing.state(sessions)
    return PageRequest(
        request_id=ids.request_id,
        user_id=ids.user_id,
        session_id=ids.session_id,
        page_index=int(sessions.page[0]),
        items=candidates(page),
        user=state.user,
        context=state.context,
        page=state.page,
        time_ms=time_ms,
    )


def _added(outcome: Outcome, reaction: Reaction, reward: float) -> Outcome:
    return structs.replace(
        outcome,
        pages=outcome.pages + 1,
        clicks=outcome.clicks + int(reaction.clicks[0]),
        orders=outcome.orders + int(reaction.orders[0]),
        dwell_s=outcome.dwell_s + float(reaction.dwell_s[0]),
        reward=outcome.reward + reward,
    )

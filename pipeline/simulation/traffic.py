"""The simulated users as event traffic: they ask for pages, react, and their reactions arrive late, twice, disordered.

    traffic = Traffic(World(), Flow(), decide, report, clock, lambda outcome, time_ms: ...)
    traffic.run(visits=1000)

`decide` answers a page with the order in which to show its candidates (an agent in this process, or a gRPC stub), or
None where it cannot: then the feed shows the ranker's own order and reports nothing of the page. `report` takes one
event. Who shows a page is who logs it: impressions are the agent's business. Times are of the injected clock, so a
test runs days in a moment. The users' draws do not depend on the clock, nor on how many pages are asked at once: the
same decisions bring the same reactions.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from msgspec import structs

from pipeline.agent.requests import PageRequest
from pipeline.records import Feedback
from pipeline.simulation import observing
from pipeline.simulation.agenda import Agenda, Clock, VirtualClock, WallClock
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Offer, Reaction, Sessions, advance, arrange, begin, offer, react
from pipeline.simulation.flow import Flow, deliveries
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import SimulationError, World
from pipeline.simulation.people import exposed
from pipeline.simulation.reactions import Ids, candidates, feedback, ids_of, user_id
from pipeline.simulation.returning import Past, after
from pipeline.transitions.rewards import page_reward

__all__ = ["Clock", "Flow", "Traffic", "VirtualClock", "WallClock"]

Decide = Callable[[PageRequest], Sequence[int] | None]
Report = Callable[[Feedback], None]
Ended = Callable[[Outcome, int], None]

_BEHIND_MS, _WARN_EVERY_MS = 1000, 10_000
_LOG = logging.getLogger(__name__)


class _Visit(NamedTuple):
    sessions: Sessions  # of one
    so_far: Outcome


class _Shown(NamedTuple):
    asked_ms: int
    shown_ms: int  # when there was an answer, or it was clear that there would be none
    order: Sequence[int] | None


class Traffic:
    """Runs once. It keeps counts, and nothing that grows with them: it may run for weeks.

    Up to `threads` pages are asked at once (0: one, in the thread of `run`); `decide` is called in those threads, all
    else in that of `run`. A user is in one place at a time: a visit that comes before the last one has ended waits for
    that. `past`: where to go on. `ended` hears of each visit, with the time of its last page; `earned` of the reward of
    each answered page, by request id; `arriving` of the number of each visit that comes, before anything of it happens.
    """

    def __init__(
        self,
        world: World,
        flow: Flow,
        decide: Decide,
        report: Report,
        clock: Clock,
        ended: Ended = lambda outcome, time_ms: None,
        *,
        earned: Callable[[str, float], None] = lambda request_id, reward: None,
        arriving: Callable[[int], None] = lambda number: None,
        past: Past | None = None,
        threads: int = 0,
    ) -> None:
        self._world, self._flow, self._clock = world, flow, clock
        self._decide, self._report = decide, report
        self._ended, self._earned, self._arriving = ended, earned, arriving
        self._agenda = Agenda(clock, threads)
        self._past = past or Past()
        self._loyalty = dict(self._past.loyalty)
        self._waiting: dict[int, deque[int]] = {}  # of the users who are there: their visits to come
        self._stopped = False
        self._start_ms = self._last_ms = 0
        self._leave_s = self._over_ms = math.inf
        self._warned_ms: int | None = None
        self.due_ms: dict[str, int] = {}  # when the pages that are being asked were to be, by request id
        self.next = self._past.first  # the number of the next visit
        self.begun = self.finished = 0  # visits
        self.sessions = 0  # of those that have ended: they looked at the feed
        self.reward = 0.0  # of all that have ended
        self.worst_late_ms = 0  # the longest that a page was asked after its time
        self.answered = self.unanswered = 0  # pages
        self.events = 0  # reported, duplicates included
        self.undelivered = 0  # events that were still on their way at the end

    def run(
        self,
        visits: int | None = None,
        stop: threading.Event | None = None,
        *,
        seconds: float | None = None,
        leave_s: float = math.inf,
        finish_s: float = 0.0,
    ) -> None:
        """Let visits come until there were so many, or for so long (None: without end), and all follow from them.

        When the last has come, those under way have `leave_s` to end; after `stop` no other comes, and they have
        `finish_s`. What is not over then is broken off.
        """
        stop = stop or threading.Event()
        self._start_ms = self._last_ms = self._clock.now_ms()
        self._leave_s = leave_s
        last = None if visits is None else self._past.first + visits
        closes_ms = None if seconds is None else self._start_ms + round(1000 * seconds)
        self._await(last, closes_ms)
        with closing(self._agenda):
            while not (stop.is_set() or self._agenda.empty or self._clock.now_ms() >= self._over_ms):
                self._agenda.step()
            self._stopped = True
            self._over_ms = min(self._over_ms, self._clock.now_ms() + 1000 * finish_s)
            while not self._done and self._clock.now_ms() < self._over_ms:
                self._agenda.step()

    @property
    def came_per_s(self) -> float:
        """Visits, in the time in which they came: fewer than the flow's where the driver lags behind."""
        span_s = (self._last_ms - self._start_ms) / 1000 + 1 / self._flow.visits_per_s
        return (self.next - self._past.first) / span_s

    @property
    def _done(self) -> bool:
        """Nothing is left but visits to come."""
        return self.begun == self.finished and not self.undelivered

    # Visits ----------------------------------------------------------------------------------------------------------

    def _await(self, last: int | None, closes_ms: int | None) -> None:
        """The next visit, and so on with the one after it."""
        due_ms = self._start_ms + round(1000 * (self.next - self._past.first) / self._flow.visits_per_s)
        if self.next == last or (closes_ms is not None and due_ms >= closes_ms):
            self._over_ms = self._clock.now_ms() + 1000 * self._leave_s
        else:
            self._agenda.at(due_ms, lambda due_ms: self._arrival(due_ms, last, closes_ms))

    def _arrival(self, due_ms: int, last: int | None, closes_ms: int | None) -> None:
        if self._stopped:
            return
        self._arriving(self.next)
        visit, user = divmod(self.next, self._flow.users)
        self.next += 1
        self._last_ms = self._clock.now_ms()
        self._await(last, closes_ms)
        if user in self._waiting:
            self._waiting[user].append(visit)
        else:
            self._waiting[user] = deque()
            self._begin(user, visit, due_ms)

    def _begin(self, user: int, visit: int, due_ms: int) -> None:
        if self._stopped:
            return
        self.begun += 1
        params, seed = self._world.params, self._flow.seed
        who, when = np.array([user]), np.array([visit])
        loyalty = np.array([self._loyalty.get(user, params.loyalty_start)])
        sessions = begin(params, seed, who, when)
        sees = bool(exposed(params, seed, who, when, loyalty)[0])
        outcome = Outcome(user_id(user), bool(sessions.visitors.buyer[0]), sees, visit=visit)
        if sees:
            self._page(_Visit(sessions, outcome), due_ms)
        else:
            self._end(user, outcome, due_ms)

    def _end(self, user: int, outcome: Outcome, time_ms: int) -> None:
        if outcome.exposed:
            before = self._loyalty.get(user, self._world.params.loyalty_start)
            self._loyalty[user] = after(self._world.params, before, outcome)
        self.finished += 1
        self.sessions += outcome.exposed
        self.reward += outcome.reward
        self._ended(outcome, time_ms)
        if self._waiting[user]:
            visit = self._waiting[user].popleft()
            self._agenda.at(self._clock.now_ms(), lambda due_ms: self._begin(user, visit, due_ms))
        else:
            del self._waiting[user]

    # Pages -----------------------------------------------------------------------------------------------------------

    def _page(self, visit: _Visit, due_ms: int) -> None:
        ids, page = ids_of(visit.sessions, self._flow.prefix), offer(self._world.params, visit.sessions)
        self.due_ms[ids.request_id] = due_ms

        def ask() -> _Shown:
            asked_ms = self._clock.now_ms()  # a driver that lags behind asks for its pages now, not then
            order = self._decide(_request(ids, visit.sessions, page, asked_ms))
            return _Shown(asked_ms, self._clock.now_ms(), order)

        self._agenda.ask(ask, lambda shown: self._react(visit, ids, page, shown))

    def _react(self, visit: _Visit, ids: Ids, page: Offer, shown: _Shown) -> None:
        """What the user does, from when the page is there; a session ends with a leave, or is cut as `play` cuts it."""
        params, sessions, pace = self._world.params, visit.sessions, self._flow.pace
        self._note_late(shown.asked_ms - self.due_ms.pop(ids.request_id))
        reaction = react(params, sessions, page, self._arranged(page, shown.order))
        events = feedback(params, ids, page, reaction, time_ms=shown.shown_ms, pace=pace)
        left = bool(reaction.left[0])
        reward = page_reward(self._world.objective.reward, events, left=left)
        if shown.order is None:
            self.unanswered += 1
        else:
            self.answered += 1
            self._earned(ids.request_id, reward)
            for event, due_ms in deliveries(self._flow, events, page.page_keys):
                self._deliver(event, due_ms)
        so_far = _added(visit.so_far, reaction, reward)
        if left or so_far.pages == params.max_pages:
            self._end(int(sessions.visitors.user[0]), so_far, shown.asked_ms)
            return
        turned = _Visit(advance(params, sessions, reaction), so_far)
        turn_ms = shown.shown_ms + max(1, round(1000 * pace * float(reaction.dwell_s[0])))
        self._agenda.at(turn_ms, lambda due_ms: self._page(turned, due_ms))

    def _arranged(self, page: Offer, order: Sequence[int] | None) -> Array:
        if order is None:
            return arrange(self._world, page, np.array([self._world.objective.baseline]))
        positions = list(order)  # a stub's answer is some sequence of protobuf's
        if sorted(positions) != list(range(len(page.items))):
            msg = f"decide: expected an order of {len(page.items)} candidates, found {positions}"
            raise SimulationError(msg)
        return np.array(positions, np.int64)[: self._world.params.page_size, None]

    def _note_late(self, late_ms: int) -> None:
        self.worst_late_ms = max(self.worst_late_ms, late_ms)
        now_ms = self._clock.now_ms()
        if late_ms > _BEHIND_MS and (self._warned_ms is None or now_ms - self._warned_ms >= _WARN_EVERY_MS):
            self._warned_ms = now_ms
            under_way = self.begun - self.finished
            _LOG.warning(
                "the traffic is %.1f s behind, with %d visits under way: pages are asked late, and sessions seem longer"
                " than they are; let fewer visits come per second",
                late_ms / 1000, under_way,
            )  # fmt: skip

    # Events ----------------------------------------------------------------------------------------------------------

    def _deliver(self, event: Feedback, due_ms: int) -> None:
        def arrive(_: int) -> None:
            self.undelivered -= 1
            self.events += 1
            self._report(event)

        self.undelivered += 1
        self._agenda.at(due_ms, arrive)


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

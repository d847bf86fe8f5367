"""Traffic in virtual time: what the stream finds in the log is what the simulator counted."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from pipeline.agent.fusion import fuse
from pipeline.agent.requests import PageRequest, admit, admit_feedback
from pipeline.config.reading import load_config
from pipeline.records import (
    SCHEMA_VERSION,
    Action,
    DecidedBy,
    Decision,
    Ending,
    Event,
    Fate,
    Feedback,
    FeedbackKind,
    Impression,
    Page,
    SetAside,
    Stamp,
    Transition,
)
from pipeline.simulation.outcomes import Outcome, summarise
from pipeline.simulation.params import SimulationError, World
from pipeline.simulation.people import exposed, next_loyalty
from pipeline.simulation.rollout import constant, play
from pipeline.simulation.traffic import Flow, Traffic, VirtualClock, WallClock
from pipeline.transitions.session import Rules, SessionState, Stamped, on_events, on_watermark

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml")
WORLD = World()
START_MS = 1_000_000


class Feed:
    """An agent with a constant action and the log it writes to, stamped by the clock."""

    def __init__(self, action: float = 1.2, answers: bool = True) -> None:
        self.clock = VirtualClock(START_MS)
        self.action, self.answers = action, answers
        self.log: list[Stamped] = []
        self.outcomes: list[Outcome] = []  # of visits that have ended
        self.rewards: dict[str, float] = {}  # of answered pages, by request id

    def decide(self, request: PageRequest) -> tuple[int, ...] | None:
        if not self.answers:
            return None
        page = admit(request)
        order = fuse(CONFIG.fusion, (self.action,), page.items)
        decision = Decision(DecidedBy.POLICY, "rl_a", "rl_a", (Action("a", self.action),))
        assert page.time_ms == self.clock.now_ms()
        self._append(
            Impression(
                SCHEMA_VERSION, page.request_id, page.user_id, page.session_id, page.time_ms, page.page_index,
                tuple(page.items[i] for i in order), page.state, decision,
            )
        )  # fmt: skip
        return order

    def report(self, feedback: Feedback) -> None:
        self._append(admit_feedback(feedback))

    def _append(self, event: Event) -> None:
        self.log.append(Stamped(Stamp(self.clock.now_ms(), 0, len(self.log)), event))

    def ended(self, outcome: Outcome, time_ms: int) -> None:
        self.outcomes.append(outcome)

    def traffic(self, world: World = WORLD, **flow: object) -> Traffic:
        return Traffic(
            world, Flow(**flow), self.decide, self.report, self.clock, self.ended,  # type: ignore[arg-type]
            earned=self.rewards.__setitem__,
        )  # fmt: skip

    def lived(self, visits: int, world: World = WORLD, **flow: object) -> list[Outcome]:
        self.traffic(world, **flow).run(visits)
        return self.outcomes


def stream(log: list[Stamped]) -> list[object]:
    """The pure core of the stream over a log, session by session, to the end of time."""
    rules = Rules.of(CONFIG)
    sessions: dict[str, list[Stamped]] = {}
    for record in log:
        sessions.setdefault(record.event.session_id, []).append(record)
    outputs: list[object] = []
    for records in sessions.values():
        state: SessionState | None = None
        for record in records:
            if state is not None:
                turn = on_watermark(rules, state, record.stamp.appended_at_ms - rules.lateness_ms)
                outputs += turn.outputs
                state = turn.state
            turn = on_events(rules, state, [record])
            outputs += turn.outputs
            state = turn.state
        while state is not None:
            turn = on_watermark(rules, state, 10**12)
            outputs += turn.outputs
            state = turn.state
    return outputs


def test_the_stream_finds_exactly_the_rewards_that_the_simulator_counted():
    feed = Feed()
    traffic = feed.traffic(users=40, disordered=0.5, disorder_ms=800, duplicated=0.3)
    traffic.run(visits=80)
    outcomes, outputs = feed.outcomes, stream(feed.log)
    transitions = [o for o in outputs if isinstance(o, Transition)]
    assert {t.request_id: t.reward for t in transitions} == feed.rewards
    assert len(transitions) == len(feed.rewards) == traffic.answered == sum(o.pages for o in outcomes)
    ended = [t for t in transitions if t.ending is not None]
    assert len(ended) == traffic.sessions == sum(o.exposed for o in outcomes)
    assert (traffic.begun, traffic.finished) == (80, len(outcomes))
    assert traffic.reward == pytest.approx(sum(feed.rewards.values())) == pytest.approx(sum(o.reward for o in outcomes))
    assert {t.ending for t in ended} == {Ending.LEAVE}
    aside = Counter(o.fate for o in outputs if isinstance(o, SetAside))
    pages = [o for o in outputs if isinstance(o, Page)]
    assert set(aside) == {Fate.DUPLICATE}
    assert sum(len(p.feedback) for p in pages) + aside[Fate.DUPLICATE] == traffic.events


def test_events_are_disordered_and_doubled_as_configured():
    feed = Feed()
    feed.lived(120, users=120, disordered=0.5, disorder_ms=800, duplicated=0.3)
    events = [r.event for r in feed.log if isinstance(r.event, Feedback)]
    distinct = {e.event_id for e in events}
    assert 1.2 < len(events) / len(distinct) < 1.4
    delays = [r.stamp.appended_at_ms - r.event.time_ms for r in feed.log if isinstance(r.event, Feedback)]
    assert min(delays) == 20
    assert 700 < max(delays) <= 820
    times = [e.time_ms for e in events]
    assert times != sorted(times)


def test_reactions_are_delayed_some_beyond_the_next_page():
    feed = Feed(0.0)
    feed.lived(120, users=120, disordered=0.0, duplicated=0.0)
    shown = {r.event.request_id: r.event for r in feed.log if isinstance(r.event, Impression)}
    after = []
    for record in feed.log:
        if isinstance(record.event, Feedback) and record.event.kind is FeedbackKind.ORDER:
            head, _, page = record.event.request_id.rpartition("-")
            following = shown.get(f"{head}-{int(page) + 1}")
            after.append(following is not None and following.time_ms < record.event.time_ms)
    assert 0.02 < np.mean(after) < 0.9


def test_sessions_in_traffic_are_those_of_the_batch():
    outcomes = {o.user_id: o for o in Feed(1.2).lived(80, users=80, seed=9)}
    played = play(WORLD, constant(1.2), 9, np.arange(80))
    for user in range(80):
        outcome = outcomes[f"user-{user}"]
        if outcome.exposed and outcome.pages < WORLD.params.max_pages:
            assert (outcome.pages, outcome.clicks) == (played.pages[user], played.clicks[user])
            assert outcome.reward == pytest.approx(played.reward[user], abs=1e-9)


@pytest.mark.parametrize("flow", [{"pace": 0.5}, {"visits_per_s": 200.0}, {"duplicated": 0.9}])
def test_what_users_do_does_not_depend_on_the_clock(flow: dict[str, float]):
    expected, found = Feed().lived(50, users=50), Feed().lived(50, users=50, **flow)
    assert sorted(found, key=lambda o: o.user_id) == sorted(expected, key=lambda o: o.user_id)


def test_a_driver_that_lags_behind_dates_its_pages_when_it_asks_for_them():
    feed = Feed()

    def slow(request: PageRequest) -> tuple[int, ...] | None:
        order = feed.decide(request)  # asserts that the page's time is the clock's
        feed.clock.wait_until(feed.clock.now_ms() + 300)
        return order

    traffic = Traffic(WORLD, Flow(users=30), slow, feed.report, feed.clock, feed.ended)
    traffic.run(visits=30)
    assert sum(o.pages for o in feed.outcomes) == traffic.answered > 30


def test_an_agent_that_does_not_answer_is_counted_and_nothing_is_reported():
    feed = Feed(answers=False)
    traffic = feed.traffic(users=20)
    traffic.run(visits=20)
    played = play(WORLD, constant(1.0), 1, np.arange(20))
    seen = sum(o.pages for o in feed.outcomes)
    assert traffic.unanswered == seen > 0
    assert not feed.log
    assert (feed.rewards, traffic.answered) == ({}, 0)
    assert seen == sum(played.pages[int(o.user_id.removeprefix("user-"))] for o in feed.outcomes if o.exposed)


def test_an_answer_that_is_no_order_of_the_candidates_is_refused():
    clock = VirtualClock()
    traffic = Traffic(WORLD, Flow(), lambda request: (0, 0, 1), lambda event: None, clock)
    with pytest.raises(SimulationError, match="expected an order of 40 candidates"):
        traffic.run(visits=5)


def test_visits_in_vain_cost_exposure():
    """Each visit looks at the feed or not by what the same user's earlier visits brought."""
    by_user: dict[str, list[Outcome]] = {}
    for outcome in Feed(2.0).lived(100, users=10, visits_per_s=0.05):
        by_user.setdefault(outcome.user_id, []).append(outcome)
    loyalties = set()
    for name, outcomes in by_user.items():
        user, loyalty = np.array([int(name.removeprefix("user-"))]), np.array([WORLD.params.loyalty_start])
        for visit, outcome in enumerate(outcomes):
            assert outcome.exposed == exposed(WORLD.params, 1, user, np.array([visit]), loyalty)[0]
            if outcome.exposed:
                converted = np.array([float(outcome.clicks > 0)])
                loyalty = next_loyalty(WORLD.params, loyalty, np.array([outcome.buyer]), converted)
            loyalties.add(float(loyalty[0]))
    assert min(loyalties) < 0.3 < 0.9 < max(loyalties)


def test_stopping_ends_at_once():
    stop = threading.Event()
    feed = Feed()

    def decide(request: PageRequest) -> tuple[int, ...] | None:
        if len(feed.log) > 10:
            stop.set()
        return feed.decide(request)

    traffic = Traffic(WORLD, Flow(), decide, feed.report, feed.clock)
    traffic.run(stop=stop)
    assert len(feed.log) == 12
    assert traffic.finished < 12


def test_the_wall_clock_looks_up_now_and_then():
    clock = WallClock()
    clock.wait_until(clock.now_ms() + 10**9)


def test_after_a_stop_visits_under_way_are_finished_and_none_begins():
    stop, feed = threading.Event(), Feed()

    def decide(request: PageRequest) -> tuple[int, ...] | None:
        if len(feed.log) > 30:
            stop.set()
        return feed.decide(request)

    arrived: list[bool] = []
    traffic = Traffic(
        WORLD, Flow(users=3, visits_per_s=30.0), decide, feed.report, feed.clock, feed.ended,
        earned=feed.rewards.__setitem__, arriving=lambda number: arrived.append(stop.is_set()),
    )  # fmt: skip
    traffic.run(stop=stop, finish_s=10**6)
    begun = {(r.event.user_id, r.event.session_id) for r in feed.log if isinstance(r.event, Impression)}
    assert len(begun) == sum(o.exposed for o in feed.outcomes) > 2
    assert traffic.begun == traffic.finished < traffic.next == len(arrived)  # some have waited for their user, in vain
    assert not any(arrived)
    assert traffic.undelivered == 0
    assert sum(o.reward for o in feed.outcomes) == pytest.approx(sum(feed.rewards.values()))


def test_after_a_stop_no_more_time_is_taken_than_there_is():
    stop, feed = threading.Event(), Feed()
    traffic = Traffic(WORLD, Flow(visits_per_s=100.0), feed.decide, lambda event: stop.set(), feed.clock)
    traffic.run(stop=stop, finish_s=0.05)
    assert traffic.begun > traffic.finished
    assert traffic.undelivered > 0
    assert traffic.due_ms == {}


def test_users_come_for_so_long_and_stay_to_the_end_of_their_visits():
    feed = Feed()
    traffic = feed.traffic(users=50, visits_per_s=20.0)
    traffic.run(seconds=1.5)
    assert traffic.finished == traffic.next == 30
    assert traffic.came_per_s == pytest.approx(20)
    assert feed.clock.now_ms() - START_MS > 2_500


@pytest.mark.parametrize("limit", [{"seconds": 1.5}, {"visits": 30}])
def test_but_no_longer_than_they_may(limit: dict[str, float]):
    feed = Feed()
    traffic = feed.traffic(users=50, visits_per_s=20.0)
    traffic.run(**limit, leave_s=0.5, finish_s=10**6)  # type: ignore[arg-type]
    assert traffic.begun == 30 > traffic.finished > 0
    last_asked_ms = max(r.event.time_ms for r in feed.log if isinstance(r.event, Impression))
    assert last_asked_ms - START_MS < 1_450 + 500  # the last comes then


def test_a_user_is_in_one_place_at_a_time():
    feed = Feed()
    feed.lived(30, users=2, visits_per_s=50.0)
    there: dict[str, str] = {}
    left: set[str] = set()
    for event in (r.event for r in feed.log if isinstance(r.event, Impression)):
        if there.get(event.user_id) != event.session_id:
            assert event.session_id not in left
            left.add(there.get(event.user_id, ""))
            there[event.user_id] = event.session_id
    assert len(left) > 10


def test_pages_are_asked_while_others_wait_for_their_answers():
    together = threading.Barrier(4)
    met = threading.Event()

    def decide(request: PageRequest) -> tuple[int, ...]:
        if not met.is_set():
            together.wait(250)  # four users have asked, and none has been answered
            met.set()
        return tuple(range(len(request.items)))

    flow = Flow(users=60, visits_per_s=1000.0, pace=0.0001, transport_ms=0, disorder_ms=1)
    traffic = Traffic(WORLD, flow, decide, lambda event: None, WallClock(), threads=4)
    traffic.run(visits=30)
    assert traffic.finished == 30


def test_what_deciding_raises_ends_the_traffic():
    def decide(request: PageRequest) -> tuple[int, ...]:
        raise OSError("broken")

    traffic = Traffic(WORLD, Flow(), decide, lambda event: None, WallClock(), threads=2)
    with pytest.raises(OSError, match="broken"):
        traffic.run(visits=20)


def test_falling_behind_is_measured_and_said(caplog: pytest.LogCaptureFixture):
    feed = Feed()
    dues: list[int] = []

    def slow(request: PageRequest) -> tuple[int, ...] | None:
        dues.append(request.time_ms - traffic.due_ms[request.request_id])
        feed.clock.wait_until(feed.clock.now_ms() + 300)
        return tuple(range(len(request.items)))

    traffic = Traffic(WORLD, Flow(users=60, visits_per_s=10.0), slow, feed.report, feed.clock)
    traffic.run(visits=60)
    assert traffic.worst_late_ms == max(dues) > 10_000
    assert traffic.came_per_s < 8
    warnings = [r.message for r in caplog.records if "behind, with" in r.message]
    assert 1 <= len(warnings) <= 1 + (feed.clock.now_ms() - START_MS) / 10_000


def test_a_driver_that_keeps_up_says_nothing(caplog: pytest.LogCaptureFixture):
    traffic = Feed().traffic(users=60)
    traffic.run(visits=60)
    assert traffic.worst_late_ms == 0
    assert traffic.came_per_s == pytest.approx(10)
    assert not caplog.records


def test_a_session_is_cut_where_play_cuts_it():
    """It earns the same; the user just stops, without a leave."""
    world = World(structs.replace(WORLD.params, max_pages=3))
    feed = Feed(1.0)
    outcomes = [o for o in feed.lived(60, world, users=60, duplicated=0) if o.exposed]
    played = play(world, constant(1.0), 1, np.arange(60))
    leavers = {
        r.event.user_id for r in feed.log if isinstance(r.event, Feedback) and r.event.kind is FeedbackKind.LEAVE
    }
    for outcome in outcomes:
        user = int(outcome.user_id.removeprefix("user-"))
        assert (outcome.pages, outcome.clicks) == (played.pages[user], played.clicks[user])
        assert outcome.reward == pytest.approx(played.reward[user], abs=1e-9)
    cut = [o for o in outcomes if o.user_id not in leavers]
    assert 5 < len(cut) < len(outcomes)
    assert {o.pages for o in cut} == {3}


def test_a_summary_counts_users_who_click_and_visits_that_look():
    outcomes = [
        Outcome("user-1", True, True, 2, 3, 1, 10.0, 5.0),
        Outcome("user-2", False, True, 4, 0, 0, 30.0, -3.0),
        Outcome("user-3", False, False),
    ]
    found = summarise(outcomes)
    assert (found.visits, found.sessions) == (3, 2)
    assert (found.reward.mean, found.depth.mean, found.user_clicks.mean) == (1.0, 3.0, 0.5)
    assert found.exposure.mean == pytest.approx(2 / 3)
    assert found.reward.low < found.reward.mean < found.reward.high
    assert np.isnan(summarise([]).reward.mean)

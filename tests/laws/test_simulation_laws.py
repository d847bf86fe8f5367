"""What holds for every seed, user and action of the simulated feed."""

from __future__ import annotations

import time
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.agent.requests import PageRequest
from pipeline.simulation import draws, observing
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react, select
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import World
from pipeline.simulation.reactions import user_id, user_number
from pipeline.simulation.returning import Claim, past_of
from pipeline.simulation.rollout import Policy, play
from pipeline.simulation.traffic import Clock, Flow, Traffic, VirtualClock, WallClock

WORLD = World()
seeds = st.integers(0, 2**64 - 1)
actions = st.floats(0, 2)
people = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**4)), min_size=1, max_size=12, unique=True)


def walk(sessions: Sessions, a: float, pages: int) -> list[tuple[np.ndarray, ...]]:
    """What is seen and done on so many pages, whether or not anyone stays."""
    found = []
    for _ in range(pages):
        page = offer(WORLD.params, sessions)
        reaction = react(WORLD.params, sessions, page, arrange(WORLD, page, np.full(sessions.size, a)))
        found.append((observing.vector(WORLD.params, sessions).T, *page, *reaction))
        sessions = advance(WORLD.params, sessions, reaction)
    return found


def started(seed: int, who: list[tuple[int, int]]) -> Sessions:
    users, visits = np.array(who).T
    return begin(WORLD.params, seed, users, visits)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seeds, people, actions)
def test_a_session_does_not_depend_on_the_company_it_is_simulated_in(seed, who, a):
    together = walk(started(seed, who), a, 4)
    for i, each in enumerate(who):
        for alone, batch in zip(walk(started(seed, [each]), a, 4), together, strict=True):
            assert all(np.array_equal(x[..., 0], y[..., i]) for x, y in zip(alone, batch, strict=True))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seeds, people, actions, st.data())
def test_nor_on_the_order_of_the_batch_or_on_who_was_dropped(seed, who, a, data):
    chosen = np.array(data.draw(st.permutations(range(len(who))))[: max(1, len(who) // 2)])
    whole = started(seed, who)
    part = select(whole, chosen)
    for x, y in zip(walk(whole, a, 3), walk(part, a, 3), strict=True):
        assert all(np.array_equal(u[..., chosen], v) for u, v in zip(x, y, strict=True))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seeds, people, actions)
def test_moods_stay_in_the_unit_interval_and_states_are_finite(seed, who, a):
    sessions = started(seed, who)
    for _ in range(12):
        page = offer(WORLD.params, sessions)
        reaction = react(WORLD.params, sessions, page, arrange(WORLD, page, np.full(sessions.size, a)))
        sessions = advance(WORLD.params, sessions, reaction)
        for mood in (sessions.trust, sessions.goodwill, sessions.saturation):
            assert ((mood >= 0) & (mood <= 1)).all()
        assert (np.abs(sessions.shown_lean) < 1).all()
        assert (reaction.dwell_s > 0).all()
        assert np.isfinite(observing.vector(WORLD.params, sessions)).all()


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seeds, st.floats(-5, 5), st.integers(1, 40))
def test_actions_are_clipped_and_totals_are_sums_of_pages(seed, a, count):
    steps: list = []
    policy: Policy = lambda sessions: np.full(sessions.size, a)  # noqa: E731
    total = play(WORLD, policy, seed, np.arange(count), watch=steps)
    summed, pages = np.zeros(count), np.zeros(count)
    for step in steps:
        assert (step.action == min(max(a, 0.0), 2.0)).all()
        summed[step.at] += step.reward
        pages[step.at] += 1
    assert np.array_equal(total.reward, summed)
    assert np.array_equal(total.pages, pages)
    assert (pages >= 1).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_squash_is_increasing_and_symmetric(xs):
    x = np.sort(np.array(xs))
    p = draws.squash(x)
    assert (np.diff(p) >= 0).all()
    assert ((p >= 0) & (p <= 1)).all()
    assert np.allclose(p + draws.squash(-x), 1)


@settings(derandomize=True)
@given(seeds, st.integers(0, 2**40), st.integers(0, 2**40))
def test_children_of_a_key_have_keys_of_their_own(seed, one, other):
    root = draws.root(seed)
    assert (draws.key(root, one)[0] == draws.key(root, other)[0]) == (one == other)
    assert draws.key(draws.key(root, one), other)[0] != draws.key(root, one)[0]


# Traffic ---------------------------------------------------------------------------------------------------------


def decided(page: PageRequest) -> list[int]:
    """By a rule that differs from page to page."""
    a = 2 * (crc32(page.request_id.encode()) % 100) / 100
    scores = [item.click_score * (item.pay_score + a * 0.07) for item in page.items]  # type: ignore[operator]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


class Heard:
    """What traffic says of itself."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.rewards: dict[str, float] = {}

    def run(self, visits: int, flow: Flow, decide: Any, clock: Clock, **more: Any) -> None:
        Traffic(
            WORLD, flow, decide, lambda event: None, clock, lambda outcome, _: self.outcomes.append(outcome),
            earned=self.rewards.__setitem__, **more,
        ).run(visits)  # fmt: skip


def sorted_outcomes(outcomes: list[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda o: (o.user_id, o.visit))


@settings(deadline=None, max_examples=5, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 30), st.integers(1, 9))
def test_what_users_do_does_not_depend_on_how_many_pages_are_asked_at_once(seed, users, visits, threads):
    def slowly(page: PageRequest) -> list[int]:
        time.sleep(0.0005 * (crc32(page.request_id.encode()) % 5))
        return decided(page)

    flow = Flow(seed=seed, users=users, visits_per_s=2000.0, pace=0.0002, transport_ms=0, disorder_ms=1)
    one, many = Heard(), Heard()
    one.run(visits, flow, decided, VirtualClock())
    many.run(visits, flow, slowly, WallClock(), threads=threads)
    assert sorted_outcomes(many.outcomes) == sorted_outcomes(one.outcomes)
    assert many.rewards == one.rewards


@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(1, 15), min_size=2, max_size=4))
def test_drivers_one_after_the_other_bring_the_visits_of_one(seed, users, parts):
    flow = Flow(seed=seed, users=users)
    whole, done = Heard(), Heard()
    whole.run(sum(parts), flow, decided, VirtualClock())
    for visits in parts:
        past = past_of(WORLD.params, users, None, reversed(done.outcomes))
        done.run(visits, flow, decided, VirtualClock(), past=past)
    assert sorted_outcomes(done.outcomes) == sorted_outcomes(whole.outcomes)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 200))
def test_a_claimed_visit_does_not_come_again_whoever_takes_turns(before, now, upto):
    claimed = {divmod(number, before) for number in range(upto)}
    first = past_of(WORLD.params, now, Claim(before, upto), []).first
    assert not claimed & {divmod(number, now) for number in range(first, first + 400)}


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), unique=True))
def test_nor_does_one_that_is_recorded(users, ended):
    outcomes = [Outcome(user_id(user), True, False, visit=visit) for user, visit in ended]
    first = past_of(WORLD.params, users, None, outcomes).first
    coming = {divmod(number, users) for number in range(first, first + 400)}
    assert not coming & {(o.visit, user_number(o.user_id)) for o in outcomes}

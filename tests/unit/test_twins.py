"""Visits against themselves under the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from pageturn.measuring.buckets import PER_SESSION, WHOLE, Lift
from pageturn.measuring.rows import oddity
from pageturn.measuring.twins import Twins, against_twins
from pageturn.traffic_log import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.requests import PageRequest
from pipeline.config.reading import load_config
from pipeline.simulation.params import World
from pipeline.simulation.rollout import constant, play
from pipeline.simulation.traffic import Flow, Traffic, VirtualClock

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml")
WORLD = World.of(CONFIG)
PHI = 0.07
USERS, T = 17, 2.119905  # of rl_a; Student's t of one degree of freedom less


def policy_of(user_id: str) -> str:
    return bucket_table(CONFIG.buckets)[slot_of(CONFIG.buckets, user_id)].policy


def order(page: PageRequest, a: float) -> list[int]:
    scores = [item.click_score * (item.pay_score + a * PHI) for item in page.items]  # type: ignore[operator]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def lived(flow: Flow, visits: int, action: Callable[[str], float]) -> list[Visit]:
    """Visits of users who get an action by the policy of their bucket."""
    found: list[Visit] = []
    Traffic(
        WORLD, flow, lambda page: order(page, action(policy_of(page.user_id))), lambda _: None, VirtualClock(),
        lambda outcome, time_ms: found.append(Visit(time_ms, flow.seed, outcome)),
    ).run(visits=visits)  # fmt: skip
    return found


@pytest.fixture(scope="module")
def visits() -> list[Visit]:
    """Users of rl_a get a = 0, the others the baseline."""
    flows = [Flow(seed=seed, users=60, duplicated=0, prefix=f"s{seed}") for seed in (4, 5)]
    return [visit for flow in flows for visit in lived(flow, 180, lambda name: 0.0 if name == "rl_a" else 1.0)]


def by_name(twins: Twins | None) -> dict[str | None, Lift]:
    assert twins is not None
    return {lift.policy: lift for lift in twins.lifts if lift.period == WHOLE}


def test_a_visit_under_the_baseline_is_its_own_twin(visits: list[Visit]) -> None:
    twins = against_twins(CONFIG, visits)
    assert by_name(twins)["rl_b"].absolute.mean == pytest.approx(0, abs=1e-12)
    assert "base" not in by_name(twins)
    assert twins is not None
    assert (twins.checked > 50, twins.odd) == (True, 0)


def test_so_is_one_that_the_feed_cuts() -> None:
    """Visit 78 of user 1, whose bucket is the baseline's, would not end by itself."""
    visits = lived(Flow(seed=7, users=2, duplicated=0), 158, lambda _: 1.0)
    longest = [visit.outcome for visit in visits if visit.outcome.pages == WORLD.params.max_pages]
    assert [(outcome.user_id, outcome.visit) for outcome in longest] == [("user-1", 78)]
    twins = against_twins(CONFIG, visits)
    assert twins is not None
    assert (twins.checked > 20, twins.odd) == (True, 0)


def test_a_baseline_that_is_not_its_own_twin_is_told(visits: list[Visit]) -> None:
    changed = [
        replace(visit, outcome=replace(visit.outcome, reward=visit.outcome.reward + more))
        for visit, more in zip(visits, [1e-9, 0.5] * len(visits), strict=False)
    ]
    theirs = [visit for visit in changed[1::2] if visit.outcome.exposed and policy_of(visit.outcome.user_id) == "base"]
    twins = against_twins(CONFIG, changed)
    assert twins is not None
    assert twins.odd == len(theirs) > 10
    assert f"{twins.odd} of {twins.checked} visits of the baseline" in oddity(twins)


def test_under_another_policy_it_is_what_the_two_policies_bring_on_the_same_visits(visits: list[Visit]) -> None:
    """Each of these visits played under either, without the traffic that the comparison rests on."""
    ours, base, users = [], [], []
    for seed in (4, 5):
        seen = [v.outcome for v in visits if v.seed == seed and v.outcome.exposed]
        seen = [outcome for outcome in seen if policy_of(outcome.user_id) == "rl_a"]
        who = np.array([int(outcome.user_id.removeprefix("user-")) for outcome in seen])
        when = np.array([outcome.visit for outcome in seen])
        ours += play(WORLD, constant(0.0), seed, who, when).reward.tolist()
        base += play(WORLD, constant(1.0), seed, who, when).reward.tolist()
        users += who.tolist()
    lift, more = by_name(against_twins(CONFIG, visits))["rl_a"], np.array(ours) - base
    half = half_of(more, np.array(users))
    assert lift.measure == PER_SESSION
    assert lift.users == len(set(users)) == USERS
    assert (lift.absolute.mean, lift.absolute.half) == pytest.approx((more.mean(), half), rel=1e-5)
    assert abs(lift.absolute.mean) > 0.01
    assert lift.relative is not None
    assert lift.relative.mean == pytest.approx(np.mean(ours) / np.mean(base) - 1)
    for r in (1 + lift.relative.low, 1 + lift.relative.high):  # the ratios from which the pairs do not differ
        against = np.array(ours) - r * np.array(base)
        assert abs(against.mean()) == pytest.approx(half_of(against, np.array(users)), rel=1e-5)


def half_of(values: np.ndarray, users: np.ndarray) -> float:
    """Of the 95 % interval of the mean, user by user."""
    names = sorted(set(users.tolist()))
    errors = [(values[users == name] - values.mean()).sum() for name in names]
    return T * float(np.sqrt(USERS / (USERS - 1) * np.square(errors).sum())) / len(values)


def test_all_learned_policies_together_are_their_visits(visits: list[Visit]) -> None:
    lifts = by_name(against_twins(CONFIG, visits))
    sessions = Counter(policy_of(visit.outcome.user_id) for visit in visits if visit.outcome.exposed)
    mean = sum(lifts[name].absolute.mean * sessions[name] for name in ("rl_a", "rl_b"))
    assert lifts[None].absolute.mean == pytest.approx(mean / (sessions["rl_a"] + sessions["rl_b"]))


def test_without_visits_there_is_nothing_to_compare() -> None:
    assert against_twins(CONFIG, []) is None

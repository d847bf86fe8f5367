"""Visits against themselves under the baseline."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageturn.measuring.buckets import WHOLE
from pageturn.measuring.twins import against_twins
from pageturn.simulating import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.requests import PageRequest
from pipeline.config.reading import load_config
from pipeline.simulation.params import World
from pipeline.simulation.traffic import Flow, Traffic, VirtualClock

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml")
WORLD = World.of(CONFIG)
PHI = 0.07


def policy_of(user_id: str) -> str:
    return bucket_table(CONFIG.buckets)[slot_of(CONFIG.buckets, user_id)].policy


def order(page: PageRequest, a: float) -> list[int]:
    scores = [item.click_score * (item.pay_score + a * PHI) for item in page.items]  # type: ignore[operator]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


@pytest.fixture(scope="module")
def visits() -> list[Visit]:
    """Users of rl_a get a = 0, the others the baseline."""
    found: list[Visit] = []
    for seed in (4, 5):
        flow = Flow(seed=seed, users=60, duplicated=0, prefix=f"s{seed}")
        Traffic(
            WORLD, flow, lambda page: order(page, 0.0 if policy_of(page.user_id) == "rl_a" else 1.0),
            lambda _: None, VirtualClock(),
            lambda outcome, time_ms, seed=seed: found.append(Visit(time_ms, seed, outcome)),  # type: ignore[misc]
        ).run(visits=180)  # fmt: skip
    return found


def test_a_visit_under_the_baseline_is_its_own_twin(visits: list[Visit]) -> None:
    lifts = {(lift.policy, lift.period): lift for lift in against_twins(CONFIG, visits)}
    assert lifts["base", WHOLE].absolute.mean == pytest.approx(0, abs=1e-12)
    assert lifts["rl_b", WHOLE].absolute.mean == pytest.approx(0, abs=1e-12)


def test_under_another_policy_it_is_the_difference(visits: list[Visit]) -> None:
    lifts = {(lift.policy, lift.period): lift for lift in against_twins(CONFIG, visits)}
    moved, all_learned = lifts["rl_a", WHOLE], lifts[None, WHOLE]
    assert abs(moved.absolute.mean) > 0.01
    ours = [v.outcome for v in visits if v.outcome.exposed and policy_of(v.outcome.user_id) == "rl_a"]
    both = [v.outcome for v in visits if v.outcome.exposed and policy_of(v.outcome.user_id) != "base"]
    assert all_learned.absolute.mean == pytest.approx(moved.absolute.mean * len(ours) / len(both))
    earned = sum(outcome.reward for outcome in ours) / len(ours)
    assert moved.relative is not None
    assert moved.relative.mean == pytest.approx(earned / (earned - moved.absolute.mean) - 1)


def test_without_visits_there_is_nothing_to_compare() -> None:
    assert against_twins(CONFIG, []) == ()

"""The yardsticks on a small budget: what has to hold of the frozen world, with a margin for the small budget."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.simulation import fitted, penalties, yardstick
from pipeline.simulation.intent import Everything, Seen, fit_intent
from pipeline.simulation.outcomes import estimate, ratio
from pipeline.simulation.params import VERSION, World
from pipeline.simulation.rollout import Step, constant, digest, play
from pipeline.simulation.search import Schedule, baseline, returns_to_go, search
from pipeline.simulation.yardstick import Budget, Yardstick, choose, measure, myopic, table

WORLD = World()
SMALL = Budget(intent=1200, fitted=1000, searched=500, iterations=8, chosen=2000, measured=8_000)


@pytest.fixture(scope="module")
def small() -> Yardstick:
    return measure(WORLD, seed=1, budget=SMALL)


def test_the_best_policy_earns_at_least_a_tenth_more_than_the_baseline(small: Yardstick):
    best = small.row("best")
    assert best.discounted_ratio.low > 1.10
    assert best.undiscounted_ratio.low > 1.10


def test_neither_a_constant_nor_a_myopic_policy_is_the_best(small: Yardstick):
    best = small.row("best")
    for name in ("best constant", "best myopic"):
        other = small.row(name)
        assert other.discounted_ratio.high < best.discounted_ratio.mean
        assert other.undiscounted_ratio.high < best.undiscounted_ratio.low


def test_rows_say_on_what_they_were_measured(small: Yardstick):
    assert (small.version, small.sha256, small.gamma, small.seed) == (VERSION, WORLD.sha256, 0.95, 1)
    assert small.dynamics == digest(WORLD)
    assert [row.name for row in small.rows] == ["baseline", "best constant", "best myopic", "best", "all-knowing"]
    assert small.rows[0].discounted_ratio.mean == small.rows[0].undiscounted_ratio.mean == 1.0
    text = table(small)
    assert WORLD.sha256 in text
    assert all(row.found_by in text for row in (*small.rows, *small.others))
    assert msgspec.json.decode(msgspec.json.encode(small), type=Yardstick) == small


def test_both_roads_are_reproducible():
    view = Seen(WORLD.params, fit_intent(WORLD, 4, 200))
    roads = [
        (
            fitted.fit(WORLD, view, 4, sessions=100).weights,
            search(baseline(WORLD, view), 4, Schedule(100, 2)).weights,
        )
        for _ in range(2)
    ]
    assert all(np.array_equal(first, again) for first, again in zip(*roads, strict=True))


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "y.json"
    config = Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml"
    yardstick.main(["--scale", "0.01", "--seed", "2", "--json", str(path), "--config", str(config)])
    written = msgspec.json.decode(path.read_bytes(), type=Yardstick)
    assert table(written) == capsys.readouterr().out.rstrip("\n")


def test_the_failure_happens_without_penalties_and_not_with_them():
    """Depth and dwell rise, exposure and the share of strong-intent users who click fall; penalties turn it around."""
    found = penalties.experiment(WORLD, users=2500, visits=5)
    base, off, on = found.baseline, found.without_penalties, found.with_penalties
    assert off.depth.low > base.depth.high
    assert off.dwell_s.low > base.dwell_s.high
    assert off.buyers_clicking.high < base.buyers_clicking.low
    assert off.exposure.mean < base.exposure.mean
    assert off.buyers_exposure.mean < base.buyers_exposure.mean
    assert on.buyers_clicking.low > base.buyers_clicking.high
    assert on.exposure.low > off.exposure.high
    assert on.depth.high < off.depth.low
    assert found.world in penalties.table(found)


def test_the_probability_of_a_buyer_is_calibrated_and_sharpens_with_the_session():
    intent = fit_intent(WORLD, 1, 3000)
    steps: list[Step] = []
    play(WORLD, constant(1.0), 2, np.arange(6000), watch=steps)
    view = Seen(WORLD.params, intent)
    p = np.sqrt(view(steps[0].before)[:, -1])  # the last column is its square
    buyer = steps[0].before.visitors.buyer
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        chosen = (p >= low) & (p < high)
        assert abs(p[chosen].mean() - buyer[chosen].mean()) < 0.07
    assert p[buyer].mean() > p[~buyer].mean() + 0.3


def test_views_are_as_wide_as_they_say():
    steps: list[Step] = []
    play(WORLD, constant(1.0), 2, np.arange(20), watch=steps)
    for view in (Seen(WORLD.params, fit_intent(WORLD, 1, 50)), Everything(WORLD.params)):
        assert view(steps[1].before).shape == (len(steps[1].at), view.width)


def test_returns_to_go_are_discounted_sums_to_the_end_of_each_session():
    steps: list[Step] = []
    play(WORLD, constant(1.0), 2, np.arange(30), watch=steps)
    found = returns_to_go(0.95, steps)
    whole = play(WORLD, constant(1.0), 2, np.arange(30))
    assert np.allclose(found[0], whole.discounted)
    assert np.allclose(found[-1], steps[-1].reward)


def test_a_search_that_moves_nowhere_is_the_baseline():
    view = Seen(WORLD.params, fit_intent(WORLD, 1, 50))
    start = baseline(WORLD, view)
    played = play(WORLD, start, 3, np.arange(50))
    assert np.array_equal(played.reward, play(WORLD, constant(1.0), 3, np.arange(50)).reward)
    still = search(start, 1, Schedule(50, 2, first_step=1e-12, last_step=1e-12))
    assert np.abs(still.weights).max() < 1e-9


def test_a_search_climbs():
    view = Seen(WORLD.params, fit_intent(WORLD, 1, 1500))
    found = search(baseline(WORLD, view), 1, Schedule(1000, 12))
    users = np.arange(8000)
    earned, base = (play(WORLD, policy, 9, users).discounted for policy in (found, constant(1.0)))
    assert ratio(earned, base).low > 1.03


def test_fitted_q_without_a_future_is_one_regression_on_rewards():
    """With gamma 0 a value is the mean reward of pages on which that action was taken."""
    world = myopic(WORLD)
    greedy = fitted.fit(world, Seen(world.params, fit_intent(world, 1, 300)), 1, sessions=2000)
    steps: list[Step] = []
    play(world, constant(0.5), 9, np.arange(8000), watch=steps)
    columns = greedy.view(steps[0].before)
    predicted = greedy.values(columns, np.full(8000, 0.5))
    assert predicted.mean() == pytest.approx(steps[0].reward.mean(), abs=0.08)


def test_the_greedy_action_is_the_best_of_a_fine_grid():
    random = np.random.default_rng(1)
    greedy = fitted.Greedy(WORLD, Everything(WORLD.params), random.standard_normal((3, 5)))
    columns = random.standard_normal((300, 5))
    action, value = greedy.best(columns)
    grid = np.stack([greedy.values(columns, np.full(300, a)) for a in np.linspace(0, 2, 201)])
    assert np.allclose(greedy.values(columns, action), value)
    assert (value >= grid.max(axis=0) - 1e-9).all()
    assert np.allclose(value, grid.max(axis=0), atol=0.01)
    assert {"low" if a == 0 else "high" if a == 2 else "inside" for a in action} == {"low", "inside", "high"}


def test_the_choice_falls_on_what_earns_more():
    assert choose(WORLD, {"a": constant(2.0), "b": constant(0.0)}, 5, 3000) == "b"


def test_estimates_and_paired_ratios():
    found = estimate([1.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 1.96 / 2**0.5, 2 + 1.96 / 2**0.5))
    base = np.array([1.0, 2.0, 3.0])
    twice = ratio(2 * base, base)
    assert (twice.mean, twice.low, twice.high) == (2.0, 2.0, 2.0)

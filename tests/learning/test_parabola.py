"""The actor that is its critic's top: by hand, what it starts from, and that nothing but A has to be learned for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.checkpoint import Checkpoints, restore
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.learner import Batch
from pipeline.learning.learners import actor_of
from pipeline.learning.parabola import top

ALL = np.array([True, True])
ARGMAX: dict[str, Any] = {"actor": "argmax", "learning_rate": 0.01}


def tops(slope: list[float], curvature: list[float], low: float = -1, high: float = 1) -> list[float]:
    parts = (tf.constant(x, tf.float32)[None, None, :, None] for x in (slope, curvature))
    return top(*parts, tf.constant([low], tf.float32), tf.constant([high], tf.float32)).numpy()[0, 0, :, 0].tolist()


def test_the_top_of_a_parabola_by_hand() -> None:
    """Falling away: -slope / curvature, inside the range. Straight or opening upwards: the better bound."""
    assert tops([1, -1, 1, -1], [-2, -2, -0.5, -0.5]) == [0.5, -0.5, 1, -1]
    assert tops([1, -1, 0.1, -0.1], [0, 0, 2, 2]) == [1, -1, 1, -1]
    assert tops([-0.1, -0.6], [2, 0.2], low=-0.5) == [1, -0.5]  # 0.9 against 0.3, -0.5 against 0.325


def test_where_nothing_is_better_than_the_baseline_it_is_the_top() -> None:
    assert tops([0, 0], [0, -1]) == [0, 0]
    assert tops([-0.6], [1], low=0) == [0]  # -0.1 at the upper bound
    assert tops([-1], [-2], low=0) == [0]


def test_no_action_is_better_than_the_top() -> None:
    random = np.random.default_rng(1)
    slope, curvature = random.normal(size=(2, 500)).astype("f4")
    grid = np.linspace(-0.5, 1, 301)[:, None]
    found = np.array(tops(slope.tolist(), curvature.tolist(), low=-0.5))

    def gain(u: np.ndarray) -> np.ndarray:
        return u * (slope + 0.5 * curvature * u)

    assert (gain(found) >= gain(grid).max(axis=0) - 1e-6).all()
    assert ((found >= -0.5) & (found <= 1)).all()


def exploring(make_batch, seed: int = 0, n: int = 64) -> Batch:
    """One-page sessions, reward -(a - 1.3)^2; half of the pages are the baseline's."""
    by_baseline = (np.arange(n) % 2).astype("f4")
    action = np.where(by_baseline == 1, 1.0, np.random.default_rng(seed).uniform(0, 2, n)).astype("f4")
    reward = -((action - 1.3) ** 2)
    return make_batch(n, seed=seed, action=action[:, None], reward=reward, by_baseline=by_baseline)


def actions(learner: Ddpg, batch: Batch) -> np.ndarray:
    return learner.evaluate({"dense": batch.state["dense"][0]}).action.numpy()[0, :, :, 0]


def test_it_starts_at_the_baseline_and_leaves_it_when_it_may(make_config, make_batch) -> None:
    learner, batch = Ddpg(make_config(**ARGMAX)), exploring(make_batch)
    np.testing.assert_array_equal(actions(learner, batch), np.ones((2, 64), "f4"))
    for _ in range(50):
        learner.step(batch, np.array([True, False]))
    found = actions(learner, batch)
    assert (found[0] > 1.05).all()
    np.testing.assert_array_equal(found[1], np.ones(64, "f4"))


def test_only_the_critic_learns(make_config, make_batch) -> None:
    learner, batch = Ddpg(make_config(**ARGMAX)), exploring(make_batch)
    assert learner.actor_variables == ()
    learner.step(batch, ALL)
    with tf.GradientTape() as tape:
        losses = learner.losses(batch)
    np.testing.assert_array_equal(losses.actor_loss, [[0, 0]])
    assert all(g is None for g in tape.gradient(losses.actor_loss, learner.trainable_variables))


def test_what_is_looked_ahead_with_is_the_targets_own_top(make_config, make_batch) -> None:
    learner, batch = Ddpg(make_config(**ARGMAX, target="periodic", target_period=1_000)), exploring(make_batch)
    for _ in range(20):
        learner.step(batch, ALL)
    ahead, online = (n.ahead(batch.next_state).units.numpy() for n in (learner.target.networks, learner.online))
    np.testing.assert_array_equal(ahead, np.zeros_like(ahead))  # no copy was due yet
    assert np.abs(online).max() > 0.05
    assert learner.target.networks.actor.heads.gate.numpy().all()


# The prior -----------------------------------------------------------------------------------------------------------


def test_a_prior_weighs_less_with_every_update(make_config, make_batch) -> None:
    """0.1 for half a range, worth 1,000 pages; an update stands for 1 / 0.25 = 4 pages: 25, 12.5, 8.3."""
    prior = {"prior_cost": 0.1, "prior_transitions": 1_000, "updates_per_transition": 0.25}
    learner, batch = Ddpg(make_config(**ARGMAX, **prior, target="polyak")), exploring(make_batch)
    for expected in (25, 12.5, 25 / 3):
        learner.step(batch, ALL)
        for networks in (learner.online, learner.target.networks):
            np.testing.assert_allclose(networks.actor.heads.cost, [[expected] * 2], rtol=1e-6)


def test_a_prior_holds_the_policy_near_the_baseline(make_config, make_batch) -> None:
    """slope u + (curvature / 2 - cost) u^2, by what the heads hold."""
    learner, batch = Ddpg(make_config(**ARGMAX, prior_cost=0.5, prior_transitions=400)), exploring(make_batch)
    free = Ddpg(make_config(**ARGMAX))
    for _ in range(50):
        learner.step(batch, ALL)
        free.step(batch, ALL)
    found, heads = actions(learner, batch) - 1, learner.actor.heads
    _, slope, curvature = heads.advantages.coefficients(heads.advantages.of_state(learner.tower(batch.state)))
    cost = 0.5 * 400 * 0.25 / 50
    np.testing.assert_allclose(found, (-slope / (curvature - 2 * cost)).numpy()[0, :, :, 0], rtol=1e-4)
    assert (found > 0).all()
    assert (found < actions(free, batch) - 1).all()


@pytest.mark.parametrize("more", [{}, {"prior_cost": 0.1}, {"target": "polyak", "target_tau": 0.05}], ids=str)
def test_it_finds_the_optimum(make_config, make_batch, more: dict[str, Any]) -> None:
    learner = Ddpg(make_config(head=(32,), actor="argmax", learning_rate=0.005, **more))
    for i in range(800):
        learner.step(exploring(make_batch, i), ALL)
    found = learner.evaluate({"dense": make_batch(200, seed=99).state["dense"][0]})
    atol = 0.08 if "prior_cost" in more else 0.03  # of which 3,200 pages are not rid yet
    np.testing.assert_allclose(found.action.numpy()[0].mean(axis=1), 1.3, atol=atol)
    np.testing.assert_allclose(found.advantage.numpy()[0].mean(axis=1), 0.09, atol=0.04)


# Handed out, and restored --------------------------------------------------------------------------------------------


def test_what_is_served_does_what_the_learner_does(make_config, make_batch) -> None:
    """Of one seed and one policy, with the gate and the prior that it has by now."""
    config = make_config(**ARGMAX, prior_cost=0.2)
    learner, batch = Ddpg(config), exploring(make_batch)
    for _ in range(20):
        learner.step(batch, np.array([False, True]))
    served = actor_of(config, [7], 1)
    for policy in (0, 1):
        served.copy_from(learner.actor, 0, policy)
        np.testing.assert_array_equal(served(batch.state)[0, 0, :, 0], actions(learner, batch)[policy])


def test_a_restored_learner_goes_on_as_if_it_had_not_been_interrupted(make_config, make_batch, tmp_path: Path) -> None:
    settings = {**ARGMAX, "prior_cost": 0.2, "target": "polyak", "weight_decay": 1e-3}
    learner, batch = Ddpg(make_config(**settings)), exploring(make_batch)
    other = Ddpg(make_config(**settings, seed=9))
    for _ in range(3):
        learner.step(batch, ALL)
    Checkpoints(tmp_path).write(1, learner, b"")
    restore(other, Checkpoints(tmp_path).newest())
    for _ in range(3):
        learner.step(batch, ALL)
        other.step(batch, ALL)
    for mine, its in zip(other.variables, learner.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())

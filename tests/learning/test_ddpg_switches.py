"""What each switch of `ddpg` puts in the place of this system's way, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.checkpoint import Checkpoints, restore
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.learner import Batch

ALL = np.array([True, True])
TEXTBOOK = {"critic": "plain", "advantage": "network", "towers": "separate", "saturation": "penalty"}


def gradients(learner: Ddpg, batch: Batch, loss: str) -> dict[str, list[tf.Tensor | None]]:
    parts = {
        "tower": learner.tower,
        "value": learner.value_head,
        "advantage": learner.advantage_heads,
        "actor": learner.actor_heads,
    }
    if learner.actor.tower is not learner.tower:
        parts["actor tower"] = learner.actor.tower
    if learner.target.networks is not learner.online:
        parts["target"] = learner.target.networks
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(getattr(learner.losses(batch), loss))
    return tape.gradient(total, {name: part.trainable_variables for name, part in parts.items()})


def trained(learner: Ddpg, batch: Batch, loss: str) -> set[str]:
    found = {name: gs for name, gs in gradients(learner, batch, loss).items() if gs}
    for name, gs in found.items():
        assert all(g is None for g in gs) or all(g is not None for g in gs), name
    return {name for name, gs in found.items() if gs[0] is not None}


@pytest.fixture
def warm(make_config, make_batch) -> Callable[..., tuple[Ddpg, Batch]]:
    """A learner after some updates, so that nothing is zero only because a head still is."""

    def warm(updates: int = 20, **algorithm: Any) -> tuple[Ddpg, Batch]:
        learner = Ddpg(make_config(learning_rate=0.01, actor_learning_rate=0.01, **algorithm))
        batch = make_batch(
            64,
            action=np.random.default_rng(1).uniform(0, 2, (64, 1)).astype("f4"),
            reward=np.random.default_rng(2).normal(size=64).astype("f4"),
            discount=np.ones(64, "f4"),
            by_baseline=(np.arange(64) % 2).astype("f4"),
        )
        for _ in range(updates):
            learner.step(batch, ALL)
        return learner, batch

    return warm


# critic: plain ---------------------------------------------------------------------------------------------------


def test_a_plain_critic_regresses_q_on_reward_plus_its_own_next_q(warm) -> None:
    learner, batch = warm(critic="plain", advantage="network")
    heads, net = learner.advantage_heads, learner.online

    def q(state: dict[str, np.ndarray], units: tf.Tensor) -> np.ndarray:
        return heads(heads.of_state(net.tower(state)), units).numpy()

    ahead = np.clip(learner.actor_heads(net.tower(batch.next_state)), -1, 1)
    q_tm1, q_t = q(batch.state, learner.space.units(batch.action)), q(batch.next_state, ahead)
    assert np.abs(q_t).min() > 1e-6
    losses = learner.losses(batch)
    np.testing.assert_allclose(
        losses.advantage_loss, (0.5 * (batch.reward[:, None] + 0.5 * q_t - q_tm1) ** 2).mean(axis=2), rtol=1e-5
    )
    np.testing.assert_array_equal([losses.value_loss, losses.value_mean], [[0], [0]])


def test_a_plain_critic_trains_the_tower_by_q_and_has_no_v(warm) -> None:
    learner, batch = warm(critic="plain", advantage="network")
    assert learner.value_head.variables == ()
    assert trained(learner, batch, "value_loss") == set()
    assert trained(learner, batch, "advantage_loss") == {"tower", "advantage"}
    assert trained(learner, batch, "actor_loss") == {"actor"}


def test_a_plain_critics_advantage_is_over_the_baselines_action(warm) -> None:
    learner, batch = warm(critic="plain", advantage="network")
    value, advantage, action = (x.numpy() for x in learner.evaluate({"dense": batch.state["dense"][0]}))
    part = learner.advantage_heads.of_state(learner.tower(batch.state))
    of = (tf.zeros([1, 64, 1]), learner.space.units(action))
    baseline, policy = (learner.advantage_heads(part, units).numpy() for units in of)
    np.testing.assert_allclose(value, baseline, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(advantage, policy - baseline, rtol=1e-4, atol=1e-6)
    assert np.abs(advantage).max() > 1e-3


# v_data: all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("v_data", "loss"), [("baseline", 0.5), ("all", 2.5)])
def test_whose_pages_v_learns_from(make_config, make_batch, v_data: str, loss: float) -> None:
    """Half of the pages are the baseline's, reward 1; the others' is 3. V is 0: (0.5 * 1 + 0.5 * 9) / 2."""
    learner, baseline = Ddpg(make_config(v_data=v_data)), (np.arange(16) % 2).astype("f4")
    batch = make_batch(reward=np.where(baseline == 1, 1.0, 3.0).astype("f4"), by_baseline=baseline)
    assert float(learner.losses(batch).value_loss[0]) == pytest.approx(loss)


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_v_may_have_a_pace_of_its_own(warm, rate: float | None) -> None:
    """Adam's first step is the learning rate, whatever the gradient: 0.01 for all that has none of its own."""
    learner, batch = warm(updates=0, value_learning_rate=rate)
    before = [part.last.bias.numpy() for part in (learner.value_head, learner.advantage_heads.terms)]
    learner.step(batch, ALL)
    after = [part.last.bias.numpy() for part in (learner.value_head, learner.advantage_heads.terms)]
    moved = [np.abs(new - old).max() for new, old in zip(after, before, strict=True)]
    np.testing.assert_allclose(moved, [rate or 0.01, 0.01], rtol=1e-3)


# towers: separate ------------------------------------------------------------------------------------------------


def test_separate_towers_are_each_trained_by_their_own(warm) -> None:
    learner, batch = warm(towers="separate")
    assert trained(learner, batch, "value_loss") == {"tower", "value"}
    assert trained(learner, batch, "advantage_loss") == {"tower", "advantage"}
    assert trained(learner, batch, "actor_loss") == {"actor", "actor tower"}
    start, _ = warm(updates=0, towers="separate")
    for mine, before in zip(learner.actor.tower.variables, start.actor.tower.variables, strict=True):
        assert (mine.numpy() != before.numpy()).any()  # and the optimiser moves it
    kernels = (start.tower.layers[0].kernel.numpy(), start.actor.tower.layers[0].kernel.numpy())
    assert (kernels[0] != kernels[1]).all()


def test_a_waiting_actor_with_a_tower_of_its_own_stays_at_the_baseline(warm) -> None:
    learner, batch = warm(updates=0, towers="separate")
    for _ in range(5):
        learner.step(batch, np.array([True, False]))
    action = learner.evaluate({"dense": batch.state["dense"][0]}).action.numpy()[0]
    assert (action[0] != 1).any()
    np.testing.assert_array_equal(action[1], np.ones((64, 1), "f4"))


# target ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["polyak", "periodic"])
def test_a_target_is_looked_ahead_with_and_trained_by_nothing(warm, target: str) -> None:
    learner, batch = warm(updates=1, target=target)
    learner.target.networks.value_head.last.kernel.assign(tf.zeros([1, 8, 1]))
    learner.target.networks.value_head.last.bias.assign([[[7.0]]])
    v_tm1 = learner.value(learner.tower(batch.state)).numpy()
    expected = (0.5 * (batch.reward + 0.5 * 7 - v_tm1) ** 2)[batch.by_baseline == 1].mean()
    assert float(learner.losses(batch).value_loss[0]) == pytest.approx(expected, rel=1e-5)
    for loss in ("value_loss", "advantage_loss", "actor_loss"):
        assert all(g is None for g in gradients(learner, batch, loss)["target"])
    assert learner.evaluate({"dense": batch.state["dense"][0]}).value.numpy().max() < 5  # of what learns


def test_a_is_what_is_left_of_q_by_the_targets_v(warm) -> None:
    """Were it the V of what learns, A would have to follow its every step."""
    learner, batch = warm(updates=5, target="polyak")
    online, target = learner.online, learner.target.networks
    a_tm1 = learner.advantage_heads(learner.advantage_heads.of_state(online.tower(batch.state)), batch.action - 1)
    ahead = target.ahead(batch.next_state)
    left = batch.reward + 0.5 * ahead.value - target.value(target.tower(batch.state))
    expected = 0.5 * (left[:, None] + 0.5 * ahead.advantage - a_tm1) ** 2
    np.testing.assert_allclose(learner.losses(batch).advantage_loss, tf.reduce_mean(expected, axis=2), rtol=1e-5)
    assert np.abs(online.value(online.tower(batch.state)) - target.value(target.tower(batch.state))).max() > 1e-3


def numbers(module: tf.Module) -> list[np.ndarray]:
    return [v.numpy() for v in module.variables]


def test_a_polyak_target_goes_a_part_of_the_way(warm) -> None:
    learner, batch = warm(updates=0, target="polyak", target_tau=0.25)
    start = numbers(learner.online)
    learner.step(batch, ALL)
    for old, new, target in zip(start, numbers(learner.online), numbers(learner.target.networks), strict=True):
        np.testing.assert_allclose(target, old + 0.25 * (new - old), rtol=1e-5, atol=1e-7)


def test_a_periodic_target_is_copied_when_it_is_due(warm) -> None:
    learner, batch = warm(updates=0, target="periodic", target_period=2)
    seen = [numbers(learner.online)]
    for expected in (0, 2, 2, 4):
        learner.step(batch, ALL)
        seen.append(numbers(learner.online))
        for mine, wanted in zip(numbers(learner.target.networks), seen[expected], strict=True):
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("switches", [{"target": "polyak"}, {"target": "periodic", "target_period": 2}, TEXTBOOK])
def test_a_restored_learner_goes_on_as_if_it_had_not_been_interrupted(warm, tmp_path: Path, switches) -> None:
    """A target that is left out of the checkpoint, or never refreshed after it, would be another one by then."""
    learner, batch = warm(updates=3, **switches)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, learner, b"")
    other, _ = warm(updates=0, **{**switches, "seed": 9})
    restore(other, checkpoints.newest())
    for _ in range(3):
        learner.step(batch, ALL)
        other.step(batch, ALL)
    for mine, its in zip(numbers(other), numbers(learner), strict=True):
        np.testing.assert_array_equal(mine, its)


# saturation: penalty ---------------------------------------------------------------------------------------------


def test_a_penalty_calls_an_actor_back_that_left_its_range(warm) -> None:
    """Even where Q rises towards the bound it passed."""
    learner, batch = warm(saturation="penalty", penalty_weight=0.1)
    for _ in range(30):
        learner.step(batch._replace(reward=batch.action[..., 0], discount=np.zeros((1, 64), "f4")), ~ALL)
    learner.actor_heads.last.bias.assign(tf.fill([1, 2, 1, 1], 3.0))
    assert all((g > 0).numpy().all() for g in gradients(learner, batch, "actor_loss")["actor"][-2:-1])
    before = learner.actor_heads(learner.tower(batch.state)).numpy().mean()
    for _ in range(30):
        learner.step(batch, ALL)
    assert learner.actor_heads(learner.tower(batch.state)).numpy().mean() < before


# All together ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches",
    [
        {**TEXTBOOK, "target": "polyak", "target_tau": 0.05},
        {"critic": "plain"},
        {"v_data": "all"},
        {"towers": "separate"},
        {"target": "periodic", "target_period": 10},
    ],
    ids=lambda switches: "_".join(switches),
)
def test_every_position_finds_the_optimum(make_config, make_batch, switches: dict[str, Any]) -> None:
    """One-page sessions, reward -(a - 1.3)^2; a third of the pages are the baseline's, the others explore."""
    learner = Ddpg(make_config(head=(32,), learning_rate=0.005, actor_learning_rate=0.005, **switches))
    rng = np.random.default_rng(0)
    for i in range(800):
        by_baseline = (np.arange(48) % 3 == 0).astype("f4")
        action = np.where(by_baseline == 1, 1.0, np.clip(rng.normal(1.0, 0.5, 48), 0, 2)).astype("f4")
        reward = -((action - 1.3) ** 2)
        learner.step(make_batch(48, seed=i, action=action[:, None], reward=reward, by_baseline=by_baseline), ALL)
    found = learner.evaluate({"dense": make_batch(200, seed=99).state["dense"][0]})
    np.testing.assert_allclose(found.action.numpy()[0].mean(axis=1), 1.3, atol=0.08)
    if switches.get("v_data") != "all":
        np.testing.assert_allclose(found.advantage.numpy()[0].mean(axis=1), 0.09, atol=0.04)

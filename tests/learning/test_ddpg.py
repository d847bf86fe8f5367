"""The learner: who trains what, what it converges to, and that nothing is left to chance."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import ActionDimension
from pipeline.learning.actions import ActionSpace
from pipeline.learning.ddpg import Ddpg, Losses
from pipeline.learning.learner import Batch, Evaluation

ALL = np.array([True, True])


def evaluated(learner: Ddpg, state: dict[str, np.ndarray]) -> Evaluation:
    """By the only seed: value and advantage [K, B], action [K, B, N]."""
    found = learner.evaluate({name: x[0] for name, x in state.items()})
    return Evaluation(*(x.numpy()[0] for x in found))


def gradients(learner: Ddpg, batch: Batch, loss: str) -> dict[str, list[float | None]]:
    """By part of the learner the largest |gradient| of each of its variables, None where there is no path."""
    parts = {
        "tower": learner.tower,
        "value": learner.value_head,
        "advantage": learner.advantage_heads,
        "actor": learner.actor_heads,
    }
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(getattr(learner.losses(batch), loss))
    found = tape.gradient(total, {name: part.trainable_variables for name, part in parts.items()})
    return {name: [None if g is None else float(tf.reduce_max(tf.abs(g))) for g in gs] for name, gs in found.items()}


def trained(learner: Ddpg, batch: Batch, loss: str) -> set[str]:
    found = gradients(learner, batch, loss)
    for name, sizes in found.items():
        assert all(s is None for s in sizes) or all(s is not None for s in sizes), name
    return {name for name, sizes in found.items() if sizes[0] is not None}


@pytest.fixture(params=["quadratic", "network"])
def advantage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def warm(make_config, make_batch, advantage: str) -> tuple[Ddpg, Batch]:
    """A learner after some updates, so that no gradient is zero only because a head still is."""
    learner = Ddpg(make_config(tower_trained_by=("value", "advantage"), learning_rate=0.01, advantage=advantage))
    batch = make_batch(
        64,
        action=np.random.default_rng(1).uniform(0, 2, (64, 1)).astype("f4"),
        reward=np.random.default_rng(2).normal(size=64).astype("f4"),
        discount=np.ones(64, "f4"),
    )
    for _ in range(20):
        learner.step(batch, ALL)
    return learner, batch


def test_each_loss_trains_its_own_part_and_the_tower_where_the_config_says_so(warm) -> None:
    learner, batch = warm
    assert trained(learner, batch, "value_loss") == {"tower", "value"}
    assert trained(learner, batch, "advantage_loss") == {"tower", "advantage"}
    assert trained(learner, batch, "actor_loss") == {"actor"}


@pytest.mark.parametrize("by", [("value",), ("advantage",), ()])
def test_the_tower_is_trained_by_named_losses_only(make_config, make_batch, by: tuple[str, ...]) -> None:
    learner = Ddpg(make_config(tower_trained_by=by))
    for loss in ("value", "advantage"):
        assert ("tower" in trained(learner, make_batch(), f"{loss}_loss")) == (loss in by)


def test_one_policys_losses_leave_the_other_policys_heads_alone(warm) -> None:
    learner, batch = warm
    heads = [*learner.advantage_heads.trainable_variables, *learner.actor_heads.trainable_variables]
    with tf.GradientTape() as tape:
        losses = learner.losses(batch)
        first = losses.advantage_loss[0, 0] + losses.actor_loss[0, 0]
    for gradient in tape.gradient(first, heads):
        assert np.abs(gradient[0, 0]).max() > 0
        np.testing.assert_array_equal(gradient[0, 1], np.zeros_like(gradient[0, 1]))


def test_pages_of_policies_do_not_touch_v(make_config, make_batch) -> None:
    learner = Ddpg(make_config(tower_trained_by=("value",)))
    batch = make_batch(reward=np.full(16, 5.0, "f4"), by_baseline=np.zeros(16, "f4"))
    before = [v.numpy() for v in (*learner.tower.variables, *learner.value_head.variables)]
    losses = learner.step(batch, ALL)
    assert float(losses["value_loss"][0]) == 0
    assert all(size == 0 for size in gradients(learner, batch, "value_loss")["value"])
    for old, new in zip(before, (*learner.tower.variables, *learner.value_head.variables), strict=True):
        np.testing.assert_array_equal(old, new)


def test_v_ignores_policy_pages_that_share_a_batch_with_baseline_pages(make_config, make_batch) -> None:
    """Same baseline rows, other rows wildly different: V's loss is the mean over the baseline's rows."""
    learner = Ddpg(make_config())
    baseline = (np.arange(16) < 8).astype("f4")
    reward = np.where(baseline == 1, 1.0, 1e6).astype("f4")
    assert float(learner.losses(make_batch(reward=reward, by_baseline=baseline)).value_loss[0]) == pytest.approx(0.5)


def test_v_looks_ahead_with_v_and_a_with_what_its_own_policy_would_execute(warm) -> None:
    """The actors point out of the range on either side, so what they would execute are its bounds, 0 and 2."""
    learner, batch = warm
    learner.actor_heads.last.bias.assign([[[[-50.0]], [[50.0]]]])
    hidden, ahead = learner.tower(batch.state), learner.tower(batch.next_state)
    v_tm1, v_t = learner.value(hidden).numpy(), learner.value(ahead).numpy()
    heads, bounds = learner.advantage_heads, np.array([[[[-1.0]] * 64, [[1.0]] * 64]], "f4")  # in units
    a_tm1 = heads(heads.of_state(hidden), learner.space.units(batch.action)).numpy()
    a_t = heads(heads.of_state(ahead), bounds).numpy()
    assert np.abs(a_t).min() > 1e-4
    losses = learner.losses(batch)
    value = 0.5 * (batch.reward + 0.5 * v_t - v_tm1) ** 2
    advantage = 0.5 * ((batch.reward + 0.5 * v_t - v_tm1)[:, None] + 0.5 * a_t - a_tm1) ** 2
    np.testing.assert_allclose(losses.value_loss, [value.mean()], rtol=1e-5)
    np.testing.assert_allclose(losses.advantage_loss, advantage.mean(axis=2), rtol=1e-5)


def test_sizes_are_means_of_what_has_a_sign(warm) -> None:
    """V and A of either sign: the mean of |V| is not the size of the mean of V."""
    learner, batch = warm
    losses, found = learner.losses(batch), evaluated(learner, batch.state)
    np.testing.assert_allclose(losses.value_abs, [np.abs(found.value).mean()], rtol=1e-5)
    np.testing.assert_allclose(losses.advantage_abs, [np.abs(found.advantage).mean(axis=1)], rtol=1e-5)
    assert abs(float(losses.value_mean[0])) < 0.99 * float(losses.value_abs[0])


# A fresh policy is the baseline ----------------------------------------------------------------------------------


ODD = {"action": (ActionDimension("a", 1.1, (0.3, 1.7)), ActionDimension("b", 0.1, (0.1, 0.9)))}


def test_a_fresh_policy_is_the_baseline_to_the_last_bit(make_config, make_batch) -> None:
    config = make_config(ODD)
    action = evaluated(Ddpg(config), make_batch(1000, seed=5).state).action
    np.testing.assert_array_equal(action, np.broadcast_to(np.array([1.1, 0.1], "f4"), (2, 1000, 2)))


def test_a_waiting_actor_stays_at_the_baseline_to_the_last_bit(make_config, make_batch) -> None:
    learner = Ddpg(make_config(ODD, learning_rate=0.05, actor_learning_rate=0.05))
    batch = make_batch(
        dimensions=2, action=np.random.default_rng(1).uniform(0.3, 0.9, (16, 2)).astype("f4"), reward=np.ones(16, "f4")
    )
    for _ in range(20):
        learner.step(batch, np.array([True, False]))
    moved, waiting = evaluated(learner, batch.state).action
    assert (moved[:, 0] != np.float32(1.1)).all()
    np.testing.assert_array_equal(waiting, np.broadcast_to(np.array([1.1, 0.1], "f4"), (16, 2)))


def test_an_actor_that_waited_starts_with_the_step_of_a_fresh_one(make_config, make_batch) -> None:
    """While none may move, the optimiser's bias correction does not age: the first steps would be too long."""
    learner = Ddpg(make_config())
    for _ in range(3):
        learner.step(make_batch(), ~ALL)
    adam = learner.actor_adam
    np.testing.assert_array_equal([adam.beta1_power, adam.beta2_power], np.array([[0.9] * 2, [0.999] * 2], "f4"))


def test_exported_actions_stay_in_range(make_config) -> None:
    space = ActionSpace(make_config(ODD))
    np.testing.assert_array_equal(
        space.action(tf.constant([[9.0, 9.0], [-9.0, -9.0]])), np.array([[1.7, 0.9], [0.3, 0.1]], "f4")
    )
    np.testing.assert_allclose(space.units(np.array([[1.8, 0.5]], "f4")), [[1.0, 1.0]], rtol=1e-6)


# What it converges to --------------------------------------------------------------------------------------------


def value_after(make_config, make_batch, discount: float) -> float:
    """V of the only state after reward 1 forever, with gamma .8."""
    learner = Ddpg(make_config(gamma=0.8, learning_rate=0.02))
    state = {"dense": np.ones((16, 1), "f4")}
    batch = make_batch(state=state, next_state=state, reward=np.ones(16, "f4"), discount=np.full(16, discount, "f4"))
    for _ in range(600):
        learner.step(batch, ~ALL)
    return float(evaluated(learner, batch.state).value[0, 0])


def test_reward_one_forever_is_worth_one_over_one_minus_gamma(make_config, make_batch) -> None:
    assert value_after(make_config, make_batch, discount=1.0) == pytest.approx(5.0, rel=0.02)


def test_gamma_applied_twice_would_be_noticed(make_config, make_batch) -> None:
    wrong = value_after(make_config, make_batch, discount=0.8)
    assert wrong == pytest.approx(1 / (1 - 0.64), rel=0.02)
    assert wrong != pytest.approx(5.0, rel=0.02)


def bandit(make_config, make_batch, optimum: float, advantage: str) -> Ddpg:
    """One-page sessions, reward -(a - optimum)^2; a third of the pages are the baseline's, the others explore."""
    rates = {"learning_rate": 0.005, "actor_learning_rate": 0.005}
    learner = Ddpg(make_config(head=(32,), advantage=advantage, **rates))
    rng = np.random.default_rng(0)
    for i in range(800):
        by_baseline = (np.arange(48) % 3 == 0).astype("f4")
        action = np.where(by_baseline == 1, 1.0, np.clip(rng.normal(1.0, 0.5, 48), 0, 2)).astype("f4")
        batch = make_batch(
            48, seed=i, action=action[:, None], reward=-((action - optimum) ** 2), by_baseline=by_baseline
        )
        learner.step(batch, np.array([True, True]))
    return learner


def advantages(learner: Ddpg, state: dict[str, np.ndarray], grid: np.ndarray) -> np.ndarray:
    """A_k of each action of a grid, averaged over states: [K, grid]."""
    part = learner.advantage_heads.of_state(learner.tower(state))
    shape = (*state["dense"].shape[:2], 1)
    columns = [learner.advantage_heads(part, learner.space.units(np.full(shape, a, "f4"))) for a in grid]
    return np.stack([np.mean(c, axis=2)[0] for c in columns], axis=1)


def test_the_actor_finds_an_optimum_away_from_the_baseline(make_config, make_batch, advantage: str) -> None:
    learner = bandit(make_config, make_batch, optimum=1.3, advantage=advantage)
    found = evaluated(learner, make_batch(200, seed=99).state)
    np.testing.assert_allclose(np.mean(found.action, axis=1), 1.3, atol=0.06)
    np.testing.assert_allclose(found.action, 1.3, atol=0.2)
    np.testing.assert_allclose(found.value, -0.09, atol=0.03)  # the baseline's value, not the policies'
    np.testing.assert_allclose(np.mean(found.advantage, axis=1), 0.09, atol=0.03)  # better, by what it is better


def test_an_actor_that_left_its_range_is_called_back(warm) -> None:
    """Even where A rises towards the bound it passed: otherwise it would sit there clipped, without a gradient."""
    learner, batch = warm
    for _ in range(50):
        learner.step(
            batch._replace(reward=batch.action[..., 0], discount=np.zeros((1, 64), "f4")), np.array([False, False])
        )
    learner.actor_heads.last.bias.assign(tf.fill([1, 2, 1, 1], 3.0))
    assert (evaluated(learner, batch.state).action == 2.0).all()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(learner.losses(batch).actor_loss)
    gradient = tape.gradient(loss, learner.actor_heads.last.bias)
    assert (gradient > 0).numpy().all()  # descending it lowers mu


def test_a_level_of_a_does_not_tilt_a_parabola(make_config, make_batch) -> None:
    """Reward 1 whatever is done, before V knows of it: that is no reason to move."""
    learner = Ddpg(make_config(tower_trained_by=(), learning_rate=0.01))
    action = np.where(np.arange(64) % 2, 0.5, 1.5).astype("f4")[:, None]
    state = {"dense": np.ones((64, 1), "f4")}
    batch = make_batch(64, state=state, action=action, reward=np.ones(64, "f4"), by_baseline=np.zeros(64, "f4"))
    for _ in range(50):
        learner.step(batch, ~ALL)
    level, slope, _ = np.moveaxis(learner.advantage_heads.of_state(learner.tower(batch.state)).numpy(), -1, 0)
    assert (level > 0.1).all()
    np.testing.assert_allclose(slope, 0.0, atol=0.01)


def test_where_the_baseline_is_best_a_says_so(make_config, make_batch, advantage: str) -> None:
    learner = bandit(make_config, make_batch, optimum=1.0, advantage=advantage)
    state = make_batch(200, seed=99).state
    grid = np.linspace(0, 2, 41).astype("f4")
    best = grid[advantages(learner, state, grid).argmax(axis=1)]
    np.testing.assert_allclose(best, 1.0, atol=0.1001)
    np.testing.assert_allclose(np.mean(evaluated(learner, state).action, axis=1), 1.0, atol=0.06)


# Nothing left to chance ------------------------------------------------------------------------------------------


def weights_after(make_config, make_batch, seed: int) -> list[np.ndarray]:
    learner = Ddpg(make_config(seed=seed))
    for i in range(5):
        learner.step(make_batch(seed=i, reward=np.full(16, 1.0, "f4")), ALL)
    return [v.numpy() for v in learner.variables]


def test_same_seed_same_weights_to_the_last_bit(make_config, make_batch) -> None:
    one, same, other = (weights_after(make_config, make_batch, seed) for seed in (3, 3, 4))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_seeds_side_by_side_are_seeds_alone(make_config, make_batch, advantage: str) -> None:
    """Each with batches of its own: a slice of the stack is the learner of that seed."""
    alone = [Ddpg(make_config(seed=seed, advantage=advantage)) for seed in (3, 4)]
    together = Ddpg(make_config(seed=3, seeds=2, advantage=advantage))
    for i in range(5):
        batches = [make_batch(seed=10 * i + s, reward=np.full(16, float(s), "f4")) for s in range(2)]
        for learner, batch in zip(alone, batches, strict=True):
            learner.step(batch, ALL)
        together.step(tf.nest.map_structure(lambda *x: np.concatenate(x), *batches), ALL)
    parts = ("tower", "value_head", "advantage_heads", "actor_heads")
    for part in parts:
        stacked = getattr(together, part).variables
        for i, learner in enumerate(alone):
            for mine, its in zip(stacked, getattr(learner, part).variables, strict=True):
                np.testing.assert_allclose(mine[i], its[0], rtol=1e-4, atol=1e-6, err_msg=mine.name)


def test_a_config_of_baselines_only_still_learns_v(make_config, make_batch) -> None:
    learner = Ddpg(make_config(policies=0))
    losses = learner.step(make_batch(reward=np.ones(16, "f4")), np.zeros(0, bool))
    assert Losses(**losses).advantage_loss.shape == (1, 0)
    assert float(losses["value_loss"][0]) == pytest.approx(0.5)
    assert np.isfinite(learner.value(learner.tower(make_batch().state))).all()


@pytest.mark.parametrize("head", [(), (8,), (8, 8)])
def test_heads_of_any_depth(make_config, make_batch, advantage: str, head: tuple[int, ...]) -> None:
    learner = Ddpg(make_config(head=head, advantage=advantage))
    for _ in range(3):
        losses = learner.step(make_batch(reward=np.ones(16, "f4")), ALL)
    assert all(np.isfinite(x).all() for x in losses.values())

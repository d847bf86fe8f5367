"""The deep learners over a grid: who trains what, who looks ahead with what, and the gate."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import ActionDimension
from pipeline.learning.dqn import Dqn
from pipeline.learning.learner import Batch

ALL = np.array([True, True])
KINDS = [schema.Dqn, schema.DoubleDqn, schema.DuelingDqn]
ODD = {"action": (ActionDimension("a", 1.1, (0.3, 1.7)), ActionDimension("b", 0.1, (0.1, 0.9)))}


def random_batch(make_batch, n: int = 32, seed: int = 0) -> Batch:
    """Actions all over the range, rewards of either sign; half of the pages are the last ones."""
    rng = np.random.default_rng(seed)
    action, reward = rng.uniform(0, 2, (n, 1)).astype("f4"), rng.normal(size=n).astype("f4")
    return make_batch(n, seed=seed, action=action, reward=reward, discount=(np.arange(n) % 2).astype("f4"))


def shaken(learner: Dqn) -> Dqn:
    """Online and target network with weights of their own, so that it matters which of them is asked."""
    for i, variable in enumerate([*learner.online.trainable_variables, *learner.target.networks.trainable_variables]):
        noise = np.random.default_rng(i).normal(size=variable.shape).astype("f4")
        variable.assign_add(0.3 * noise)
    return learner


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


def by_hand(learner: Dqn, batch: Batch, chooser: np.ndarray) -> np.ndarray:
    """The loss [S, K] with the next actions taken where `chooser` [S, K, B, M] is largest."""
    q_tm1, q_t = learner.online(batch.state).numpy(), learner.target.networks(batch.next_state).numpy()
    atom = learner.heads.grid.nearest(learner.space.units(batch.action)).numpy()
    chosen = np.take_along_axis(q_tm1, np.broadcast_to(atom[:, None, :, None], (*q_tm1.shape[:3], 1)), 3)[..., 0]
    ahead = np.take_along_axis(q_t, chooser.argmax(3)[..., None], 3)[..., 0]
    target = batch.reward[:, None] + 0.5 * batch.discount[:, None] * ahead
    return (0.5 * (target - chosen) ** 2).mean(axis=2)


def test_the_target_network_values_what_it_chose_or_with_double_what_the_online_network_chose(
    make_config, make_batch, kind: type
) -> None:
    learner, batch = shaken(Dqn(make_config(kind=kind))), random_batch(make_batch)
    online, target = learner.online(batch.next_state).numpy(), learner.target.networks(batch.next_state).numpy()
    assert (online.argmax(3) != target.argmax(3)).any()
    right, wrong = (target, online) if kind is schema.Dqn else (online, target)
    loss = learner.losses(batch).q_loss
    np.testing.assert_allclose(loss, by_hand(learner, batch, right), rtol=1e-5)
    assert (np.abs(loss - by_hand(learner, batch, wrong)) > 1e-3).all()


def test_q_of_a_dueling_network_is_v_and_a_less_its_mean(make_config, make_batch) -> None:
    learner, state = shaken(Dqn(make_config(kind=schema.DuelingDqn))), random_batch(make_batch).state
    hidden = learner.actor.tower(state)
    v, a = learner.online.value(hidden).numpy()[:, None], learner.heads.q(hidden).numpy()
    np.testing.assert_allclose(learner.online(state), v + a - a.mean(axis=3, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(learner.online(state).numpy().mean(axis=3), v[..., 0].repeat(2, axis=1), atol=1e-5)


def test_the_loss_trains_all_of_the_online_network_and_nothing_else(make_config, make_batch, kind: type) -> None:
    learner, batch = shaken(Dqn(make_config(kind=kind))), random_batch(make_batch)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(learner.losses(batch).q_loss)
    online, target = learner.online.trainable_variables, learner.target.networks.trainable_variables
    found = tape.gradient(loss, [*online, *target])
    assert all(np.abs(g).max() > 0 for g in found[: len(online)])
    assert found[len(online) :] == [None] * len(target)
    assert learner.heads.gate.trainable is False


def test_one_policys_loss_leaves_the_other_policys_head_alone(make_config, make_batch) -> None:
    learner, batch = shaken(Dqn(make_config(kind=schema.DuelingDqn))), random_batch(make_batch)
    with tf.GradientTape() as tape:
        first = learner.losses(batch).q_loss[0, 0]
    for gradient in tape.gradient(first, learner.heads.trainable_variables):
        assert np.abs(gradient[0, 0]).max() > 0
        np.testing.assert_array_equal(gradient[0, 1], np.zeros_like(gradient[0, 1]))


def test_huber_is_what_the_config_calls_huber(make_config, make_batch) -> None:
    batch = random_batch(make_batch)._replace(reward=np.full((1, 32), 3.0, "f4"), discount=np.zeros((1, 32), "f4"))
    losses = [Dqn(make_config(kind=schema.Dqn, loss=loss)).losses(batch).q_loss for loss in ("squared", "huber")]
    np.testing.assert_allclose(losses, [[[4.5, 4.5]], [[2.5, 2.5]]])


def test_the_target_is_refreshed_after_every_period_and_not_between(make_config, make_batch) -> None:
    learner, batch = Dqn(make_config(kind=schema.Dqn, target_period=3, learning_rate=0.01)), random_batch(make_batch)
    same = []
    for _ in range(7):
        learner.step(batch, ALL)
        mine = learner.online.variables
        pairs = zip(mine, learner.target.networks.variables, strict=True)
        same.append(all((a.numpy() == b.numpy()).all() for a, b in pairs))
    assert same == [False, False, True, False, False, True, False]


def test_without_a_target_network_there_is_no_copy(make_config, make_batch) -> None:
    one, two = (Dqn(make_config(kind=schema.Dqn, target=target)) for target in ("none", "periodic"))
    assert len(two.variables) > len(one.variables)
    assert np.isfinite(one.losses(random_batch(make_batch)).q_loss).all()


# The gate --------------------------------------------------------------------------------------------------------


def test_a_fresh_policy_is_the_baseline_to_the_last_bit_even_with_its_gate_open(make_config, make_batch, kind) -> None:
    learner = Dqn(make_config(ODD, kind=kind))
    state = {name: x[0] for name, x in make_batch(1000, seed=5).state.items()}
    expected = np.broadcast_to(np.array([1.1, 0.1], "f4"), (1, 2, 1000, 2))
    np.testing.assert_array_equal(learner.evaluate(state).action, expected)
    learner.heads.open(tf.constant(ALL))
    found = learner.evaluate(state)
    np.testing.assert_array_equal(found.action, expected)
    np.testing.assert_array_equal(found.advantage, np.zeros((1, 2, 1000), "f4"))


def test_a_shut_gate_keeps_a_policy_at_the_baseline_while_its_q_learns(make_config, make_batch) -> None:
    learner = Dqn(make_config(ODD, kind=schema.Dqn, learning_rate=0.05))
    rng = np.random.default_rng(1)
    action = rng.uniform([0.3, 0.1], [1.7, 0.9], (64, 2)).astype("f4")
    batch = make_batch(64, dimensions=2, action=action, reward=action[:, 0])
    for _ in range(30):
        learner.step(batch, np.array([True, False]))
    state = {name: x[0] for name, x in batch.state.items()}
    found = learner.evaluate(state)
    moved, waiting = found.action.numpy()[0]
    assert (moved[:, 0] != np.float32(1.1)).all()
    np.testing.assert_array_equal(waiting, np.broadcast_to(np.array([1.1, 0.1], "f4"), (64, 2)))
    assert (found.advantage[0, 0] > 0).numpy().all()
    np.testing.assert_array_equal(found.advantage[0, 1], np.zeros(64, "f4"))
    q = learner.online(batch.state)
    assert (tf.reduce_max(q[0, 1], axis=-1) > q[0, 1, :, 0]).numpy().all()  # it would go, too
    np.testing.assert_array_equal(found.value, q[..., 0])
    learner.step(batch, ALL)
    assert (learner.evaluate(state).action[0, 1, :, 0] != np.float32(1.1)).numpy().all()

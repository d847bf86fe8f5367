"""Losses over a grid of actions against numbers worked out by hand, and what they must not train."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.greedy import best
from pipeline.learning.losses import Regression
from pipeline.learning.q_losses import at, dueling, huber, q_learning


def of_one(*values: float) -> tf.Tensor:
    """[S, K, B, M] of one seed, policy and page."""
    return tf.constant([[[values]]])


def fit(target_t: tf.Tensor, chooser: tf.Tensor, discount: float = 0.4, q: float = 0.0) -> Regression:
    """Of one page with reward 1, on which atom 1 was executed."""
    q_tm1, reward = of_one(9.0, q), tf.constant([[1.0]])
    return q_learning(q_tm1, tf.constant([[1]]), reward, tf.constant([[discount]]), target_t, best(chooser))


ONLINE, TARGET = of_one(1.0, 2.0), of_one(3.0, 0.5)


def test_dqn_values_the_best_action_of_the_target_network() -> None:
    found = fit(TARGET, chooser=TARGET)
    np.testing.assert_allclose(found.target, [[[2.2]]])  # 1 + .4 * 3
    np.testing.assert_allclose(found.loss, [[[2.42]]])


def test_double_dqn_values_the_action_that_the_online_network_chooses() -> None:
    np.testing.assert_allclose(fit(TARGET, chooser=ONLINE).target, [[[1.2]]])  # 1 + .4 * .5


def test_after_a_leave_there_is_nothing_to_come() -> None:
    np.testing.assert_allclose(fit(TARGET, TARGET, discount=0.0, q=3.0).target, [[[1.0]]])


def test_the_executed_action_learns_for_every_policy_by_its_own_q() -> None:
    q_tm1 = tf.constant([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]])  # one seed, two policies, two pages
    found = q_learning(
        q_tm1,
        tf.constant([[0, 1]]),
        tf.constant([[1.0, -1.0]]),
        tf.constant([[0.5, 0.0]]),
        10 * q_tm1,
        tf.constant([[[1, 1], [0, 0]]]),
    )
    np.testing.assert_allclose(found.target, [[[11.0, -1.0], [26.0, -1.0]]])  # 1 + .5 * 20; 1 + .5 * 50
    np.testing.assert_allclose(found.error, [[[10.0, -5.0], [21.0, -9.0]]])


def test_huber_is_a_parabola_that_goes_on_as_lines() -> None:
    error = tf.constant([[[0.5, -1.0, 3.0, -3.0]]])
    found = huber(Regression(0.5 * error**2, error, error))
    np.testing.assert_allclose(found.loss, [[[0.125, 0.5, 2.5, 2.5]]])


def test_dueling_takes_off_the_mean_of_a() -> None:
    q = dueling(tf.constant([[1.0]]), of_one(1.0, 2.0, 3.0))
    np.testing.assert_allclose(q, [[[[0.0, 1.0, 2.0]]]])
    np.testing.assert_allclose(dueling(tf.constant([[1.0]]), of_one(11.0, 12.0, 13.0)), q)  # a level of A is nothing


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_gradients_reach_the_executed_action_and_nothing_else(loss: str) -> None:
    q_tm1, q_t, online_t, reward = of_one(1.0, 2.0), TARGET, ONLINE, tf.constant([[1.0]])
    with tf.GradientTape() as tape:
        tape.watch([q_tm1, q_t, online_t, reward])
        found = q_learning(q_tm1, tf.constant([[1]]), reward, tf.constant([[0.4]]), q_t, best(online_t))
        found = huber(found) if loss == "huber" else found
    to_q, *others = tape.gradient(found.loss, [q_tm1, q_t, online_t, reward])
    np.testing.assert_allclose(to_q, [[[[0.0, 2.0 - 1.2]]]])
    assert others == [None, None, None]


def test_a_column_among_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="rank"):
        at(tf.ones([1, 2, 4, 3]), tf.ones([1, 2, 4, 1], tf.int32))
    with pytest.raises(ValueError, match="rank"):
        dueling(tf.ones([1, 4, 1]), tf.ones([1, 2, 4, 3]))

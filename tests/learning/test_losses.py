"""Losses against numbers worked out by hand, and what they must not train."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.losses import (
    baseline_value,
    invert_gradient,
    masked_mean,
    penalise_excess,
    policy_ascent,
    residual_advantage,
)


def floats(*values: float) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def column(*values: float) -> tf.Tensor:
    """[S, B] of one seed."""
    return floats(*values)[None]


def test_value_regresses_on_reward_plus_discounted_next_value() -> None:
    result = baseline_value(column(1, 2), r_t=column(1, -1), discount_t=column(0.5, 0), v_t=column(4, 100))
    np.testing.assert_allclose(result.target, [[3, -1]])  # 1 + .5 * 4; after a leave the next value is nothing
    np.testing.assert_allclose(result.error, [[2, -3]])
    np.testing.assert_allclose(result.loss, [[2, 4.5]])


def test_advantage_regresses_on_what_the_baselines_value_leaves_unexplained() -> None:
    result = residual_advantage(
        a_tm1=tf.constant([[[0.5], [0.0]]]),  # one seed, two policies, one transition
        v_tm1=column(2),
        r_t=column(1),
        discount_t=column(0.5),
        v_t=column(4),
        a_t=tf.constant([[[1.0], [-2.0]]]),
    )
    np.testing.assert_allclose(result.target, [[[1.5], [0.0]]])  # 1 + .5 * (4 + 1) - 2; 1 + .5 * (4 - 2) - 2
    np.testing.assert_allclose(result.loss, [[[0.5], [0.0]]])


def test_gradients_reach_predictions_and_nothing_else() -> None:
    v, v_t, a, a_t, r = column(1), column(2), tf.constant([[[3.0]]]), tf.constant([[[4.0]]]), column(0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([v, v_t, a, a_t, r])
        value = baseline_value(v, r, column(0.9), v_t).loss
        advantage = residual_advantage(a, v, r, column(0.9), v_t, a_t).loss
    assert tape.gradient(value, v) is not None
    assert tape.gradient(value, [v_t, r]) == [None, None]
    assert tape.gradient(advantage, a) is not None
    assert tape.gradient(advantage, [v, v_t, a_t, r]) == [None, None, None, None]


@pytest.mark.parametrize(
    ("gradient", "action", "expected"),
    [
        (1.0, 0.0, 0.5),  # half the range is left above
        (1.0, 0.5, 0.25),
        (-1.0, 0.5, -0.75),  # three quarters below
        (1.0, 1.0, 0.0),  # at the bound, pointing out
        (-1.0, 1.0, -1.0),  # at the bound, pointing in
        (1.0, 1.5, -0.25),  # beyond: turned round
    ],
)
def test_inverting_gradients(gradient: float, action: float, expected: float) -> None:
    inverted = invert_gradient(tf.fill([1, 1, 1, 1], gradient), tf.fill([1, 1, 1, 1], action), floats(-1), floats(1))
    np.testing.assert_allclose(inverted, [[[[expected]]]])


@pytest.mark.parametrize(
    ("gradient", "action", "expected"),
    [
        (3.0, 0.5, 3.0),  # inside nothing is changed
        (3.0, 1.0, 3.0),
        (3.0, 1.5, -2.0),  # 2 * 2 * 0.5 back, whatever Q says of the bound
        (-3.0, 1.5, -2.0),
        (-3.0, -1.25, 1.0),
    ],
)
def test_a_penalty_beyond_the_range(gradient: float, action: float, expected: float) -> None:
    of = (tf.fill([1, 1, 1, 1], gradient), tf.fill([1, 1, 1, 1], action), floats(-1), floats(1))
    np.testing.assert_allclose(penalise_excess(*of, weight=2.0), [[[[expected]]]])


def test_descending_the_actor_loss_ascends_q() -> None:
    action, dq_da = tf.constant([[[[0.5, 1.0]]]]), tf.constant([[[[2.0, -3.0]]]])
    with tf.GradientTape() as tape:
        tape.watch([action, dq_da])
        loss = policy_ascent(action, dq_da)
    assert float(loss[0, 0, 0]) == pytest.approx(2.0)  # -(1 - 3)
    for_action, for_critic = tape.gradient(loss, [action, dq_da])
    np.testing.assert_allclose(for_action, -dq_da)
    assert for_critic is None


def test_masked_mean() -> None:
    assert float(masked_mean(column(1, 10, 3), column(1, 0, 1))[0]) == 2
    assert float(masked_mean(column(1, 10, 3), column(0, 0, 0))[0]) == 0
    of_policies = tf.constant([[[1.0, 10.0, 3.0], [2.0, 20.0, 6.0]]])
    np.testing.assert_allclose(masked_mean(of_policies, column(1, 0, 1)), [[2, 4]])
    with pytest.raises(ValueError, match="rank"):
        masked_mean(column(1, 2)[..., None, None], column(1, 2))


def test_a_column_among_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="rank"):
        baseline_value(tf.ones([1, 4, 1]), tf.ones([1, 4]), tf.ones([1, 4]), tf.ones([1, 4]))

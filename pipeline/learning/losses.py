"""Losses of `ddpg` as pure functions of tensors. B: batch, K: policies, N: action dimensions.

Time indices as in rlax: `tm1` is the state that was acted in, `t` the next one. `discount_t` is gamma times the
transition's discount. Every target is a constant: gradients flow only through the regressed prediction.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Regression(NamedTuple):
    loss: tf.Tensor  # half the squared error, one per example
    target: tf.Tensor
    error: tf.Tensor  # target - prediction


def baseline_value(v_tm1: tf.Tensor, r_t: tf.Tensor, discount_t: tf.Tensor, v_t: tf.Tensor) -> Regression:
    """V(s) towards r + discount V(s'): the value of the baseline where the baseline acted in s."""
    _ranks((v_tm1, 1), (r_t, 1), (discount_t, 1), (v_t, 1))
    return _regression(v_tm1, r_t + discount_t * v_t)  # [B]


def residual_advantage(
    a_tm1: tf.Tensor, v_tm1: tf.Tensor, r_t: tf.Tensor, discount_t: tf.Tensor, v_t: tf.Tensor, a_t: tf.Tensor
) -> Regression:
    """A_k(s, a) towards r + discount (V(s') + A_k(s', mu_k(s'))) - V(s): what is left of Q_k once V is known.

    Holds for any logged action, whoever chose it (one step, off-policy).
    """
    _ranks((a_tm1, 2), (v_tm1, 1), (r_t, 1), (discount_t, 1), (v_t, 1), (a_t, 2))
    return _regression(a_tm1, r_t + discount_t * (v_t + a_t) - v_tm1)  # [K, B]


def invert_gradient(dq_da: tf.Tensor, action: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Shrinks an ascent direction as the action nears the bound it points to, and turns it round beyond.

    Keeps mu inside its range without a squashing function whose gradient dies at the bounds.
    Source: Hausknecht & Stone 2016, "Deep reinforcement learning in parameterized action space", section 3.
    """
    _ranks((dq_da, 3), (action, 3), (low, 1), (high, 1))
    room = tf.where(dq_da > 0, high - action, action - low) / (high - low)
    return dq_da * room  # [K, B, N]


def policy_ascent(action: tf.Tensor, dq_da: tf.Tensor) -> tf.Tensor:
    """A loss whose gradient with respect to the action is -dq_da: descending it ascends Q, which stays fixed."""
    _ranks((action, 3), (dq_da, 3))
    return -tf.reduce_sum(action * tf.stop_gradient(dq_da), axis=2)  # [K, B]


def masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of x where the mask is 1; 0 where it is 1 nowhere."""
    _ranks((x, 1), (mask, 1))
    return tf.reduce_sum(x * mask) / tf.maximum(tf.reduce_sum(mask), 1.0)


def _regression(prediction: tf.Tensor, target: tf.Tensor) -> Regression:
    target = tf.stop_gradient(target)
    error = target - prediction
    return Regression(0.5 * tf.square(error), target, error)


def _ranks(*expected: tuple[tf.Tensor, int]) -> None:
    """A [B, 1] among [B] would broadcast to [B, B] without a word."""
    for tensor, rank in expected:
        tf.debugging.assert_rank(tensor, rank)

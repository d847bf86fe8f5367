"""Losses of `ddpg` as pure functions of tensors. S: seeds, K: policies, B: batch, N: action dimensions.

Time indices as in rlax: `tm1` is the state that was acted in, `t` the next one. `discount_t` is gamma times the
transition's discount. Every target is a constant: gradients flow only through the regressed prediction.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.learning.reducing import mean_count


class Regression(NamedTuple):
    loss: tf.Tensor  # half the squared error, one per example
    target: tf.Tensor
    error: tf.Tensor  # target - prediction


def baseline_value(v_tm1: tf.Tensor, r_t: tf.Tensor, discount_t: tf.Tensor, v_t: tf.Tensor) -> Regression:
    """V(s) towards r + discount V(s'): the value of the baseline where the baseline acted in s."""
    ranks((v_tm1, 2), (r_t, 2), (discount_t, 2), (v_t, 2))
    return regression(v_tm1, r_t + discount_t * v_t)  # [S, B]


def residual_advantage(
    a_tm1: tf.Tensor, v_tm1: tf.Tensor, r_t: tf.Tensor, discount_t: tf.Tensor, v_t: tf.Tensor, a_t: tf.Tensor
) -> Regression:
    """A_k(s, a) towards r + discount (V(s') + A_k(s', mu_k(s'))) - V(s): what is left of Q_k once V is known.

    Holds for any logged action, whoever chose it (one step, off-policy).
    """
    ranks((a_tm1, 3), (v_tm1, 2), (r_t, 2), (discount_t, 2), (v_t, 2), (a_t, 3))
    r_t, discount_t, v_t, v_tm1 = (x[:, None] for x in (r_t, discount_t, v_t, v_tm1))
    return regression(a_tm1, r_t + discount_t * (v_t + a_t) - v_tm1)  # [S, K, B]


def invert_gradient(dq_da: tf.Tensor, action: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Shrinks an ascent direction as the action nears the bound it points to, and turns it round beyond.

    Keeps mu inside its range without a squashing function whose gradient dies at the bounds.
    Source: Hausknecht & Stone 2016, "Deep reinforcement learning in parameterized action space", section 3.
    """
    ranks((dq_da, 4), (action, 4), (low, 1), (high, 1))
    room = tf.where(dq_da > 0, high - action, action - low) / (high - low)
    return dq_da * room  # [S, K, B, N]


def penalise_excess(dq_da: tf.Tensor, action: tf.Tensor, low: tf.Tensor, high: tf.Tensor, weight: float) -> tf.Tensor:
    """Ascends Q(s, clip(a)) - weight |a - clip(a)|^2: beyond the range only the penalty is left, and it calls back.

    `dq_da` is taken at clip(a).
    """
    ranks((dq_da, 4), (action, 4), (low, 1), (high, 1))
    excess = action - tf.clip_by_value(action, low, high)
    return tf.where(excess == 0, dq_da, 0.0) - 2 * weight * excess  # [S, K, B, N]


def policy_ascent(action: tf.Tensor, dq_da: tf.Tensor) -> tf.Tensor:
    """A loss whose gradient with respect to the action is -dq_da: descending it ascends Q, which stays fixed."""
    ranks((action, 4), (dq_da, 4))
    return -tf.reduce_sum(action * tf.stop_gradient(dq_da), axis=3)  # [S, K, B]


def masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean over the batch of x, [S, B] or [S, K, B], where the mask [S, B] is 1; 0 where it is 1 nowhere."""
    ranks((mask, 2))
    mask = mask[:, None] if len(x.shape) == 3 else mask
    ranks((x, len(mask.shape)))
    return tf.reduce_sum(x * mask, axis=-1) / mean_count(mask)


def regression(prediction: tf.Tensor, target: tf.Tensor) -> Regression:
    target = tf.stop_gradient(target)
    error = target - prediction
    return Regression(0.5 * tf.square(error), target, error)


def ranks(*expected: tuple[tf.Tensor, int]) -> None:
    """A [S, B, 1] among [S, B] would broadcast to [S, B, B] without a word."""
    for tensor, rank in expected:
        tf.debugging.assert_rank(tensor, rank)

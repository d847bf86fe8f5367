"""Losses over a grid of actions, as pure functions of tensors. S: seeds, K: policies, B: batch, M: atoms.

Time indices as in `losses.py`: `tm1` is the state that was acted in, `t` the next one.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.learning.losses import Regression, ranks, regression

HUBER_DELTA = 1.0


def q_learning(
    q_tm1: tf.Tensor, a_tm1: tf.Tensor, r_t: tf.Tensor, discount_t: tf.Tensor, q_t: tf.Tensor, choice_t: tf.Tensor
) -> Regression:
    """Q(s, a) towards r + discount Q(s', choice).

    With the best atom by `q_t` itself as choice: Watkins & Dayan 1992; with `q_t` of the target network: Mnih et al.
    2015, Algorithm 1. With the best atom by the online network, and `q_t` of the target network: double DQN, van
    Hasselt et al. 2016.
    """
    ranks((q_tm1, 4), (a_tm1, 2), (r_t, 2), (discount_t, 2), (q_t, 4), (choice_t, 3))
    chosen = at(q_tm1, tf.broadcast_to(a_tm1[:, None], tf.shape(choice_t)))  # [S, K, B]
    return regression(chosen, r_t[:, None] + discount_t[:, None] * at(q_t, choice_t))


def at(q: tf.Tensor, atom: tf.Tensor) -> tf.Tensor:
    """Q of one atom each: [S, K, B, M], [S, K, B] -> [S, K, B]."""
    ranks((q, 4), (atom, 3))
    return tf.reduce_sum(tf.where(atom[..., None] == tf.range(tf.shape(q)[-1]), q, 0.0), axis=-1)


def huber(fit: Regression) -> Regression:
    """The loss grows linearly where the error exceeds 1, as in Mnih et al. 2015, Methods.

    What minimises it is not the mean of the targets: of rewards that are mostly small and rarely large the large ones
    count for less than they are worth.
    """
    size = tf.abs(fit.error)
    loss = tf.where(size <= HUBER_DELTA, fit.loss, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
    return fit._replace(loss=loss)


def dueling(value: tf.Tensor, advantage: tf.Tensor) -> tf.Tensor:
    """Q = V + A - mean of A over the atoms: [S, B], [S, K, B, M] -> [S, K, B, M].

    Source: Wang et al. 2016, "Dueling network architectures for deep reinforcement learning", equation 9.
    """
    ranks((value, 2), (advantage, 4))
    return value[:, None, :, None] + advantage - tf.reduce_mean(advantage, axis=-1, keepdims=True)

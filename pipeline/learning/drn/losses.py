"""The loss of DRN as pure functions of tensors. S: seeds, B: pages, K: shown items, N: candidates of the next request.

`tm1` is the request that was answered, `t` the next one of the same user; `discount_t` is gamma times the discount.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.learning.losses import Regression, ranks, regression


def double_q(
    q_tm1: tf.Tensor,
    r_t: tf.Tensor,
    discount_t: tf.Tensor,
    chooser_t: tf.Tensor,
    q_t: tf.Tensor,
    exists_t: tf.Tensor,
) -> Regression:
    """Q(s, i) of each shown item towards r_i + discount Q(s', j), j the candidate that `chooser_t` puts first.

    q_tm1 and r_t [S, B, K], discount_t [S, B], chooser_t and q_t [S, B, N], exists_t [S, B, N] False for padding. A
    request without candidates is worth 0. Double DQN: the online network chooses, the target network values; with the
    target network as its own chooser it is DQN.
    Sources: Zheng et al. 2018, equation 2; van Hasselt et al. 2016.
    """
    ranks((q_tm1, 3), (r_t, 3), (discount_t, 2), (chooser_t, 3), (q_t, 3), (exists_t, 3))
    ahead = at_best(chooser_t, q_t, exists_t)  # [S, B]
    return regression(q_tm1, r_t + (discount_t * ahead)[..., None])


def at_best(chooser: tf.Tensor, q: tf.Tensor, exists: tf.Tensor) -> tf.Tensor:
    """q where the chooser is largest among what exists: [S, B, N] -> [S, B]; 0 where nothing exists."""
    masked = tf.where(exists, chooser, -float("inf"))
    best = tf.argmax(masked, axis=-1, output_type=tf.int32)
    return tf.where(tf.reduce_any(exists, axis=-1), tf.gather(q, best, batch_dims=2), 0.0)


def mean_of_shown(x: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    """Mean over all items that were shown: x and shown [S, B, K] -> [S]."""
    ranks((x, 3), (shown, 3))
    of_shown = tf.reduce_sum(tf.where(shown, x, 0.0), axis=(1, 2))
    return of_shown / tf.maximum(tf.reduce_sum(tf.cast(shown, x.dtype), axis=(1, 2)), 1.0)


def page_reward(clicks: tf.Tensor, activeness: tf.Tensor, beta: tf.Tensor | float) -> tf.Tensor:
    """r = click + beta activeness, of each shown item: [..., K], [...] -> [..., K]. Zheng et al. 2018, equation 6."""
    return clicks + beta * activeness[..., None]

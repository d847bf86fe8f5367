"""Learners that choose from a grid of actions: what is served of them, and what they all report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from pipeline.learning.actions import ActionSpace
from pipeline.learning.grid import ActionGrid
from pipeline.learning.learner import Evaluation
from pipeline.learning.losses import Regression
from pipeline.learning.networks import Draw
from pipeline.learning.q_losses import at


class GreedyHeads(tf.Module):
    """What the tower gives -> the best atom in units: [S, B, ...] -> [S, K, B, N].

    A policy whose gate is shut stays at the baseline, whatever its Q says. The gate is a variable like the weights,
    so that it is served with them. Of atoms that are worth the same the one nearest to the baseline is taken, so a Q of
    zeros is the baseline, too.
    """

    def __init__(self, grid: ActionGrid, q: Callable[[tf.Tensor], tf.Tensor], draw: Draw, policies: int) -> None:
        super().__init__(name="greedy")
        self.grid, self.q = grid, q  # q: [S, B, ...] -> [S, K, B, M], up to what all atoms have in common
        self.gate = tf.Variable(
            tf.cast(draw("gate", (policies,), 0.0), tf.bool), trainable=False, name="gate"
        )  # [S, K]

    def __call__(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.grid.units(self.choice(self.q(hidden)))

    def choice(self, q: tf.Tensor) -> tf.Tensor:
        """[S, K, B, M] -> atom [S, K, B]."""
        return tf.where(self.gate[..., None], best(q), 0)

    def open(self, active: tf.Tensor) -> None:
        """`active` [K]: which policies may leave the baseline from now on."""
        self.gate.assign(tf.broadcast_to(active, tf.shape(self.gate)))


def best(q: tf.Tensor) -> tf.Tensor:
    """The first of the largest, over the last axis; tf.argmax may take any of them."""
    largest = q >= tf.reduce_max(q, axis=-1, keepdims=True)
    places = tf.range(tf.shape(q)[-1])
    return tf.reduce_min(tf.where(largest, places, tf.int32.max), axis=-1)


class Report(NamedTuple):
    """Means over the batch."""

    q_loss: tf.Tensor  # [S, K]
    q_abs: tf.Tensor  # [S, K] |Q_k(s, a)| of the executed action
    value_mean: tf.Tensor  # [S, K] Q_k(s, baseline)
    value_abs: tf.Tensor  # [S, K]
    advantage_mean: tf.Tensor  # [S, K] Q_k(s, what the policy does) - Q_k(s, baseline)
    advantage_abs: tf.Tensor  # [S, K]
    action_mean: tf.Tensor  # [S, K, N] what the policy does


def evaluated(heads: GreedyHeads, space: ActionSpace, q: tf.Tensor) -> Evaluation:
    """Of Q [S, K, B, M].

    The advantage is a maximum over estimates less one of them: it is never negative, and where nothing is to be gained
    it is as large as the estimates err. It is no evidence that a policy is better than the baseline.
    The value is that of the baseline action now and the best ones later.
    """
    atom = heads.choice(q)
    value = q[..., 0]
    return Evaluation(value, at(q, atom) - value, space.action(heads.grid.units(atom)))


def reported(fit: Regression, found: Evaluation) -> Report:
    return Report(
        tf.reduce_mean(fit.loss, axis=2),
        tf.reduce_mean(tf.abs(fit.target - fit.error), axis=2),
        tf.reduce_mean(found.value, axis=2),
        tf.reduce_mean(tf.abs(found.value), axis=2),
        tf.reduce_mean(found.advantage, axis=2),
        tf.reduce_mean(tf.abs(found.advantage), axis=2),
        tf.reduce_mean(found.action, axis=2),
    )

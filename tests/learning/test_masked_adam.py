"""Adam for members that rest: the formula for those that move, nothing at all for the others."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pipeline.learning.masked_adam import MaskedAdam

RATE = 0.1


def by_hand(gradients: list[float]) -> float:
    x, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def test_each_member_follows_the_formulas_over_its_own_turns() -> None:
    """[S, K] = [1, 2]: the second rests in every other update, during which its gradients are nobody's business."""
    x, gradients = tf.Variable(tf.ones([1, 2, 3])), [0.5, -2.0, 3.0, 0.25, 1.0]
    adam = MaskedAdam([x], RATE, lead=(1, 2))
    for i, g in enumerate(gradients):
        adam.apply([x], [tf.fill([1, 2, 3], g)], tf.constant([[True, i % 2 == 0]]))
    np.testing.assert_allclose(x[0, 0], [by_hand(gradients)] * 3, rtol=1e-4)
    np.testing.assert_allclose(x[0, 1], [by_hand(gradients[::2])] * 3, rtol=1e-4)


def test_who_rests_does_not_coast_on_its_moments() -> None:
    x = tf.Variable(tf.ones([2, 3]))
    adam = MaskedAdam([x], RATE, lead=(2,))
    adam.apply([x], [tf.ones([2, 3])], tf.constant([True, True]))
    before = [v.numpy()[1] for v in (x, adam.first[0], adam.second[0], adam.steps)]
    adam.apply([x], [tf.zeros([2, 3])], tf.constant([True, False]))
    for old, variable in zip(before, (x, adam.first[0], adam.second[0], adam.steps), strict=True):
        np.testing.assert_array_equal(variable.numpy()[1], old)
    assert (x.numpy()[0] < x.numpy()[1]).all()  # the other one coasted


def test_one_that_never_moved_is_as_it_was_drawn() -> None:
    x = tf.Variable(tf.fill([2, 1], 0.3))
    MaskedAdam([x], RATE, lead=(2,)).apply([x], [tf.ones([2, 1])], tf.constant([True, False]))
    assert x.numpy()[1, 0] == np.float32(0.3)

"""Adam against its own formulas, in numpy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pipeline.learning.optimiser import Adam


def by_hand(gradients: list[float], lr: float) -> float:
    x, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def test_adam_follows_its_formulas() -> None:
    x, gradients = tf.Variable([1.0]), [0.5, -2.0, 3.0, 0.0, 1.0]
    adam = Adam([x], learning_rate=0.1)
    for g in gradients:
        adam.apply([tf.constant([g])])
    np.testing.assert_allclose(x.numpy(), [by_hand(gradients, 0.1)], rtol=1e-4)


def test_decay_takes_its_share_of_kernels_alone() -> None:
    kernel, bias = tf.Variable([2.0], name="a_kernel"), tf.Variable([2.0], name="a_bias")
    adam = Adam([kernel, bias], 0.1, decay=0.25)
    for _ in range(2):
        adam.apply([tf.constant([0.0]), tf.constant([0.0])])
    assert (kernel.numpy(), bias.numpy()) == (1.125, 2.0)


def test_waiting_does_not_age_the_bias_correction() -> None:
    waited, fresh = tf.Variable([1.0]), tf.Variable([1.0])
    patient, eager = Adam([waited], 0.1), Adam([fresh], 0.1)
    for _ in range(100):
        patient.apply([tf.constant([0.0])], moving=tf.constant(False))
    assert waited.numpy() == 1.0
    for adam in (patient, eager):
        adam.apply([tf.constant([0.5])], moving=tf.constant(True))
    np.testing.assert_array_equal(waited, fresh)


def test_a_policy_that_starts_late_takes_the_steps_of_a_fresh_one() -> None:
    """The first is at its 51st step when the second takes its 1st, and the third never moves."""
    x, gradients = tf.Variable(tf.ones([1, 3, 1, 1])), [0.5, -2.0, 3.0, 0.25, 1.0]
    adam = Adam([x], learning_rate=0.1, policies=3)
    for step in range(55):
        second = step >= 50
        g = [1.0, gradients[step - 50] if second else 0.0, 0.0]
        adam.apply([tf.reshape(g, [1, 3, 1, 1])], moving=tf.constant([True, second, False]))
    expected = [by_hand([1.0] * 55, 0.1), by_hand(gradients, 0.1), 1.0]
    np.testing.assert_allclose(x.numpy().ravel(), expected, rtol=1e-4)
    assert x.numpy()[0, 2, 0, 0] == 1.0
    np.testing.assert_allclose(adam.beta1_power, [0.9**56, 0.9**6, 0.9], rtol=1e-4)


def test_policies_that_start_together_take_the_fused_kernels_steps() -> None:
    together, alone = tf.Variable(tf.ones([1, 2, 1, 1])), tf.Variable(tf.ones([1, 2, 1, 1]))
    stacked, plain = Adam([together], 0.1, policies=2), Adam([alone], 0.1)
    for g in (0.5, -2.0, 3.0):
        stacked.apply([tf.fill([1, 2, 1, 1], g)], moving=tf.constant([True, True]))
        plain.apply([tf.fill([1, 2, 1, 1], g)])
    np.testing.assert_array_equal(together, alone)


def test_a_gathers_sparse_gradient_moves_the_gathered_rows_only() -> None:
    table = tf.Variable(tf.ones([4, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 1, 3]))
    Adam([table], 0.1).apply(tape.gradient(loss, [table]))
    np.testing.assert_array_equal((table.numpy() != 1).any(axis=1), [False, True, False, True])

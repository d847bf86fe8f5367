"""What on-policy learners descend, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from pipeline import exploration
from pipeline.learning.policy_losses import (
    advantages,
    clipped_surrogate,
    divergence,
    effective_share,
    log_density,
    normalised,
    truncated_gradient,
)

REWARD, VALUE = np.array([1.0, 0.0, 2.0]), np.array([0.5, 0.4, 0.3])
LINKED = np.array([1.0, 1.0, 0.0])


def row(*values: float) -> tf.Tensor:
    """[S, B] of one seed."""
    return tf.constant([values], tf.float32)


def of_pages(*values: float) -> tf.Tensor:
    """[S, B, N] of one seed and one dimension."""
    return tf.constant(values, tf.float32)[None, :, None]


# Returns ---------------------------------------------------------------------------------------------------------


def gae(last: float, discount: float = 1.0, gae_lambda: float = 0.8, linked: np.ndarray = LINKED) -> np.ndarray:
    """Of three pages, gamma .9, with V(s') of the last one; `discount` is the last one's."""
    following = np.array([0.4, 0.3, last])
    return advantages(REWARD, 0.9 * np.array([1.0, 1.0, discount]), VALUE, following, linked, gae_lambda)


def test_advantages_of_a_visit_that_goes_on_bootstrap_from_its_next_state() -> None:
    np.testing.assert_allclose(gae(last=0.2), [1.740992, 1.2236, 1.88])


def test_advantages_of_a_visit_that_ended_do_not() -> None:
    np.testing.assert_allclose(gae(last=0.2, discount=0.0), [1.64768, 1.094, 1.7])


def test_with_lambda_1_they_are_returns_less_values() -> None:
    np.testing.assert_allclose(gae(last=0.2, gae_lambda=1.0) + VALUE, [2.7658, 1.962, 2.18])
    np.testing.assert_allclose(gae(last=0.2, discount=0.0, gae_lambda=1.0) + VALUE, [2.62, 1.8, 2.0])


def test_where_the_next_row_is_another_visit_the_value_of_the_next_state_stands_for_the_rest() -> None:
    """Row 0 is cut: 1 + .9 * .4 - .5. With the sum across it would be 1.74."""
    np.testing.assert_allclose(gae(last=0.2, linked=np.array([0.0, 1.0, 0.0])), [0.86, 1.2236, 1.88])


def test_seeds_are_summed_apart() -> None:
    both = np.stack([VALUE, VALUE + 1])
    found = advantages(REWARD, np.full(3, 0.9), both, np.roll(both, -1, axis=1), np.stack([LINKED] * 2), 0.8)
    np.testing.assert_array_equal(
        found[0], advantages(REWARD, np.full(3, 0.9), both[0], np.roll(VALUE, -1), LINKED, 0.8)
    )
    assert (found[0] != found[1]).all()


def test_normalised_over_the_usable_pages_of_each_seed() -> None:
    found = normalised(np.array([[1.0, 3.0, 1e9], [5.0, 5.0, 5.0]]), np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(found[0, :2], [-1, 1])
    np.testing.assert_array_equal(found[1], 0)
    assert np.isfinite(normalised(np.ones((1, 2)), np.zeros((1, 2)))).all()


# The policy ------------------------------------------------------------------------------------------------------


def test_log_density_is_the_one_that_the_agent_logs() -> None:
    found = log_density(of_pages(1.7, 0.2), of_pages(1.1, 0.9), of_pages(0.3, 0.5))
    expected = [exploration.log_density(1.7, 1.1, 0.3), exploration.log_density(0.2, 0.9, 0.5)]
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_densities_of_dimensions_multiply() -> None:
    both = log_density(*(tf.constant([[[a, b]]]) for a, b in ((1.7, 0.2), (1.1, 0.9), (0.3, 0.5))))
    expected = exploration.log_density(1.7, 1.1, 0.3) + exploration.log_density(0.2, 0.9, 0.5)
    assert float(both[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_divergence_of_gaussians() -> None:
    """(.6 / .3)^2 / 2."""
    np.testing.assert_allclose(divergence(of_pages(1.6), of_pages(1.0), of_pages(0.3)), [[2.0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"), [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (0.5, -1.0, -0.8), (1.5, -1.0, -1.5)]
)
def test_clipped_surrogate(ratio: float, advantage: float, expected: float) -> None:
    found = clipped_surrogate(row(math.log(ratio)), row(advantage), clip=0.2)
    assert float(found.loss[0, 0]) == pytest.approx(-expected, rel=1e-6)
    assert float(found.clipped[0, 0]) == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"), [(1.5, 1.0, 0.0), (0.5, 1.0, -0.5), (0.5, -1.0, 0.0), (1.5, -1.0, 1.5)]
)
def test_a_ratio_out_of_bounds_is_still_called_back(ratio: float, advantage: float, expected: float) -> None:
    """d loss / d log rho: 0 only where the policy went further than asked for, in the direction it was asked to go."""
    log_ratio = row(math.log(ratio))
    with tf.GradientTape() as tape:
        tape.watch(log_ratio)
        loss = clipped_surrogate(log_ratio, row(advantage), clip=0.2).loss
    assert float(tape.gradient(loss, log_ratio)[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_truncated_gradient() -> None:
    """-min(1, rho) A log pi: 2 * .5 and 3 * 1 times the log density."""
    found = truncated_gradient(row(math.log(0.5), math.log(4.0)), row(-1.0, -2.0), row(2.0, 3.0))
    np.testing.assert_allclose(found.loss, [[1.0, 6.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.clipped, [[0, 1]])


def test_effective_share() -> None:
    """Ratios 1, 3 of two usable pages: 16 / (2 * 10)."""
    assert float(effective_share(row(0, math.log(3), 9), row(1, 1, 0))[0]) == pytest.approx(0.8, rel=1e-6)
    assert float(effective_share(row(0, 1), row(0, 0))[0]) == 0


# What has no gradient --------------------------------------------------------------------------------------------


def test_nothing_but_log_pi_has_a_gradient() -> None:
    log_ratio, log_pi, advantage = row(-0.5), row(-1.0), row(2.0)
    with tf.GradientTape() as tape:
        tape.watch([log_ratio, log_pi, advantage])
        loss = truncated_gradient(log_ratio, log_pi, advantage).loss
    of_ratio, of_log_pi, of_advantage = tape.gradient(loss, [log_ratio, log_pi, advantage])
    assert (of_ratio, of_advantage) == (None, None)
    assert float(of_log_pi[0, 0]) == pytest.approx(-math.exp(-0.5) * 2, rel=1e-6)


def test_the_surrogates_advantage_has_no_gradient() -> None:
    advantage = row(2.0)
    with tf.GradientTape() as tape:
        tape.watch(advantage)
        loss = clipped_surrogate(row(0.1), advantage, clip=0.2).loss
    assert tape.gradient(loss, advantage) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: clipped_surrogate(tf.ones([1, 4, 1]), tf.ones([1, 4]), 0.2),
        lambda: truncated_gradient(tf.ones([1, 4]), tf.ones([1, 4, 1]), tf.ones([1, 4])),
        lambda: log_density(tf.ones([1, 4]), tf.ones([1, 4, 1]), tf.ones([1, 4, 1])),
        lambda: divergence(tf.ones([1, 4, 1]), tf.ones([1, 4]), tf.ones([1, 4, 1])),
        lambda: effective_share(tf.ones([1, 4]), tf.ones([1, 4, 1])),
    ],
)
def test_a_column_among_vectors_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="rank"):
        call()

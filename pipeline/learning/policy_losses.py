"""What on-policy learners descend, as pure functions. S: seeds, B: pages, N: action dimensions.

The policy is the agent's: raw = mu(s) + carried + sigma eps with eps standard normal, where `carried` is what is left
of the session's last noise. sigma and carried are as logged, so only mu has anything to learn. The entropy of that
Gaussian does not depend on mu: a bonus for it would add a constant, and there is none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.learning.losses import ranks

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Surrogate(NamedTuple):
    loss: tf.Tensor  # [S, B] to be descended
    clipped: tf.Tensor  # [S, B] 1 where the ratio is out of bounds


# Returns ---------------------------------------------------------------------------------------------------------


def advantages(
    r_t: np.ndarray,
    discount_t: np.ndarray,
    v_tm1: np.ndarray,
    v_t: np.ndarray,
    linked: np.ndarray,
    gae_lambda: float,
) -> np.ndarray:
    """Generalised advantages of pages that lie one after another, [n] or [S, n].

    A_i = delta_i + gamma lambda A_(i+1) with delta_i = r_i + discount_i v_t_i - v_tm1_i. `linked` is 1 where row i + 1
    is the page that followed row i: elsewhere the sum is cut and v_t stands for all that followed. Only after a leave,
    where discount_t is 0, does nothing follow. Source: Schulman et al. 2016, equation 16.
    """
    delta = r_t + discount_t * v_t - v_tm1
    carry = gae_lambda * discount_t * linked
    found, ahead = np.empty_like(delta), np.zeros(delta.shape[:-1])
    for i in reversed(range(delta.shape[-1])):
        ahead = delta[..., i] + carry[..., i] * ahead
        found[..., i] = ahead
    return found


def normalised(advantage: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the usable pages of a rollout, for each seed. [S, n]."""
    weight = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    centred = advantage - (weight * advantage).sum(axis=1, keepdims=True)
    spread = np.sqrt((weight * centred**2).sum(axis=1, keepdims=True))
    return centred / np.maximum(spread, 1e-8)


# The policy ------------------------------------------------------------------------------------------------------


def log_density(raw: tf.Tensor, expectation: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """log N(raw; expectation, sigma^2), summed over dimensions. [S, B, N] -> [S, B]."""
    ranks((raw, 3), (expectation, 3), (sigma, 3))
    z = (raw - expectation) / sigma
    return -tf.reduce_sum(0.5 * z * z + tf.math.log(sigma) + _LOG_SQRT_2PI, axis=2)


def divergence(mean: tf.Tensor, other: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """KL between two Gaussians of the same sigma, summed over dimensions. [S, B, N] -> [S, B]."""
    ranks((mean, 3), (other, 3), (sigma, 3))
    return tf.reduce_sum(0.5 * tf.square((mean - other) / sigma), axis=2)


def clipped_surrogate(log_ratio: tf.Tensor, advantage: tf.Tensor, clip: float) -> Surrogate:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A). Source: Schulman et al. 2017, equation 7."""
    ranks((log_ratio, 2), (advantage, 2))
    advantage, ratio = tf.stop_gradient(advantage), tf.exp(log_ratio)
    bounded = tf.clip_by_value(ratio, 1 - clip, 1 + clip)
    loss = -tf.minimum(ratio * advantage, bounded * advantage)
    return Surrogate(loss, tf.cast(bounded != ratio, tf.float32))


def truncated_gradient(log_ratio: tf.Tensor, log_pi: tf.Tensor, advantage: tf.Tensor) -> Surrogate:
    """-min(1, rho) A log pi, where nothing but log pi has a gradient.

    rho is 1 for pages of the present policy. For those of one a few versions older it corrects what is less likely now,
    and its truncation bounds the variance of what is more likely. Source: Espeholt et al. 2018, section 4.2.
    """
    ranks((log_ratio, 2), (log_pi, 2), (advantage, 2))
    ratio = tf.stop_gradient(tf.exp(log_ratio))
    loss = -tf.minimum(ratio, 1.0) * tf.stop_gradient(advantage) * log_pi
    return Surrogate(loss, tf.cast(ratio > 1, tf.float32))


def effective_share(log_ratio: tf.Tensor, usable: tf.Tensor) -> tf.Tensor:
    """Kish's effective sample size of the importance ratios, as a share of the usable pages. [S, B] -> [S]."""
    ranks((log_ratio, 2), (usable, 2))
    ratio = tf.exp(log_ratio) * usable
    total, squares = tf.reduce_sum(ratio, axis=1), tf.reduce_sum(ratio * ratio, axis=1)
    return tf.math.divide_no_nan(total * total, squares * tf.reduce_sum(usable, axis=1))

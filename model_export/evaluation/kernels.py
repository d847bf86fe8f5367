"""Kernel weights: for a target that does not explore, which no logged action matches exactly.

w = K((pi(s) - a) / h) / (h f(a | s)) (Kallus and Zhou, Policy evaluation and optimization with continuous treatments,
AISTATS 2018), for `weighted_mean`, `weighted_self_normalised` and `weighted_doubly_robust` of the estimators.

a is the raw action and f its density, on the whole line: an executed action piles up at the bounds, and a target near
a bound would lose half of its kernel there. What is estimated is the value of the target blurred by the kernel: biased
by about h^2 where the reward is smooth, by about h at a bound.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from model_export.evaluation.logged import Sessions
from model_export.evaluation.ratios import Target, behaviour, expectations
from model_export.evaluation.sequences import Array

Kernel = Literal["gaussian", "epanechnikov"]


def kernel_weights(distances: Array, log_densities: Array, bandwidth: float, kernel: Kernel = "gaussian") -> Array:
    """`distances`: target minus logged action, [n]; `log_densities`: of the logged actions."""
    return np.exp(_log_kernel(distances / bandwidth, kernel) - math.log(bandwidth) - log_densities)


def page_kernel_weights(sessions: Sessions, means: Array, bandwidth: float, kernel: Kernel = "gaussian") -> Array:
    """Of each page by itself, [n], for a target that does `means` [n, d] without noise: a product over dimensions.

    The bandwidth is in units of the logged noise, so that it means the same in every dimension.
    """
    middle, spread = expectations(sessions, behaviour(sessions))
    z = (sessions.raw - middle) / spread
    logged = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    weights = kernel_weights((means - sessions.raw) / spread, logged, bandwidth, kernel)
    found: Array = np.prod(weights, axis=1)
    return found


def blurred(sessions: Sessions, means: Array, bandwidth: float) -> Target:
    """The policy whose pages Gaussian kernel weights are the exact ratios of: it draws around `means`, each page by
    itself. So a Q of it takes variance out of them, and adds no bias."""
    _, spread = expectations(sessions, behaviour(sessions))
    return Target(np.broadcast_to(means, spread.shape).astype(np.float64), bandwidth * spread, np.ones_like(spread))


def _log_kernel(u: Array, kernel: Kernel) -> Array:
    if kernel == "gaussian":
        return -0.5 * u * u - 0.5 * math.log(2 * math.pi)
    inside = np.abs(u) < 1
    return np.where(inside, np.log(0.75 * (1 - np.where(inside, u, 0.0) ** 2)), -np.inf)

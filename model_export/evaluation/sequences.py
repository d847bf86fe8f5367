"""Confidence sequences: bounds on a mean that hold at every look at once, however often and whenever one looks. Pure.

Of observations x_1, x_2, ... the mean of E[x_i | what came before] is bounded. It may move: a bucket's policy is
learning. For each x_i there is a prediction p_i, made before it, and a reach c with x_i - p_i >= -c for sure. Then for
0 <= lambda < 1 and psi(lambda) = -log(1 - lambda) - lambda

    exp(lambda sum (x_i - E[x_i | before]) / c - psi(lambda) sum (x_i - p_i)^2 / c^2)

is a nonnegative supermartingale that starts at 1 (Howard, Ramdas, McAuliffe and Sekhon, Time-uniform, nonparametric,
nonasymptotic confidence sequences, Annals of Statistics 49(2), 2021, theorem 4 and its proof; it rests on Fan, Grama
and Liu, Exponential inequalities for martingales with applications, EJP 20, 2015: exp(lambda y - psi(lambda) y^2) <=
1 + lambda y for y >= -1). So is a mixture of such processes with fixed weights, and it ever reaches 1 / alpha with
probability at most alpha (Ville). What is bounded is only how far an observation may fall below its prediction, so that
products of importance ratios, which have no useful upper bound, have a lower confidence sequence.

A betting sequence (Waudby-Smith and Ramdas, JRSS B 86(1), 2024) is narrower at a few hundred observations, but is one
for a mean that stays what it is. The asymptotic kind (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of
Statistics 52(6), 2024) needs no bound on x, and promises nothing at any finite number: not for certifying.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Rates bet at once, each with the same weight: optimal from a variance sum of about 4 on up to one of 1e9
_RATES = 0.8 * 0.5 ** np.arange(16)
_COSTS = -np.log1p(-_RATES) - _RATES
_LOG_WEIGHT = -math.log(len(_RATES))
_STEPS = 60


class Sums(NamedTuple):
    """What is kept of observations. The fields are numbers, or arrays of the same shape."""

    n: Array
    total: Array  # of x
    squares: Array  # of x - p

    @classmethod
    def running(cls, x: Array, p: Array) -> Sums:
        """After every observation; time is the last axis."""
        counts = np.broadcast_to(np.arange(1.0, x.shape[-1] + 1), x.shape)
        return cls(counts, np.cumsum(x, -1), np.cumsum(np.square(x - p), -1))


def lower(sums: Sums, reach: float, alpha: float) -> Array:
    """Below the mean of the conditional means at all times, with probability 1 - alpha; -inf before any."""
    n, total, squares = (np.asarray(part, np.float64) for part in sums)
    far = reach * deviation(squares / reach**2, alpha)
    return np.where(n > 0, (total - far) / np.maximum(n, 1), -np.inf)


def deviation(variance: Array, alpha: float) -> Array:
    """The largest s for which the mixture, at a sum of squares `variance`, stays below 1 / alpha.

    By Newton's method from above: the log of the mixture is increasing and convex in s, so it comes down to the root
    and never passes it, and wherever it stops the bound holds.
    """
    variance = np.asarray(variance, np.float64)
    goal = -math.log(alpha)
    costs = variance[..., None] * _COSTS
    s: Array = np.min((goal - _LOG_WEIGHT + costs) / _RATES, -1)  # where one rate alone would do
    for _ in range(_STEPS):
        value, slope = _log_mixture(s, costs)
        step = (value - goal) / slope
        s = s - np.maximum(step, 0.0)
        if np.all(step <= 1e-12 * np.maximum(s, 1.0)):
            break
    return s


def log_wealth(s: Array, variance: Array) -> Array:
    """log of the mixture at a sum of deviations s: at or above log(1 / alpha) the claim s came from is refuted."""
    return _log_mixture(np.asarray(s, np.float64), np.asarray(variance, np.float64)[..., None] * _COSTS)[0]


def _log_mixture(s: Array, costs: Array) -> tuple[Array, Array]:
    """Its value and its slope in s."""
    exponents = _RATES * s[..., None] - costs + _LOG_WEIGHT
    peak = np.max(exponents, -1, keepdims=True)
    parts = np.exp(exponents - peak)
    whole = np.sum(parts, -1)
    return np.log(whole) + peak[..., 0], np.sum(parts * _RATES, -1) / whole


def alpha_of_epoch(alpha: float, epoch: int) -> float:
    """What the epoch numbered 1, 2, ... may spend: alpha / (k (k + 1)), so that all epochs together spend alpha."""
    return alpha / (epoch * (epoch + 1))


# Importance-weighted means --------------------------------------------------------------------------------------


def weighted_lower(weights: Array, values: Array, low: float, high: float, alpha: float, cap: float) -> Array:
    """A lower confidence sequence of E[w v] for values in [low, high] and weights w >= 0 of mean 1; [..., time].

    Weights are cut at `cap`: w (v - low) is never negative, so that can only lower the bound.
    """
    x = np.minimum(weights, cap) * (values - low) / (high - low)
    p = np.minimum(past_means(x, 0.5), 1.0)  # x >= 0 >= p - 1: the reach is 1
    return low + (high - low) * lower(Sums.running(x, p), 1.0, alpha)


def weighted_upper(weights: Array, values: Array, low: float, high: float, alpha: float, cap: float) -> Array:
    """The mirror image: high - (lower bound of E[w (high - v)])."""
    return -weighted_lower(weights, -values, -high, -low, alpha, cap)


def past_means(x: Array, first: float) -> Array:
    """The mean of all earlier values, and of `first` as one more; along the last axis."""
    before = np.cumsum(x, -1) - x
    return (before + first) / np.arange(1.0, x.shape[-1] + 1)

"""Importance ratios of a noisy policy that might have been deployed, to the one that was. Pure.

The target draws as the agent does: raw_i = mu'(s_i) + n'_i, n'_i = (1 - theta) n'_{i-1} + sigma eps_i. Had it drawn the
logged raw actions, its noise on the page before would have been n'_{i-1} = raw_{i-1} - mu'(s_{i-1}): its own, not the
one in the log. So the density of a session is the product over its pages of

    N(raw_i; mu'(s_i) + (1 - theta) (raw_{i-1} - mu'(s_{i-1})), sigma^2)

and the ratio to that of the behaviour makes the mean of ratio times return that of the target, for users see nothing
of a raw action but its clipped value. Two shortcuts are biased: the logged noise in the numerator (that is of no
policy: its mean on a page depends on what another policy did on the one before), and point masses at the bounds in the
product (the next page's noise follows from the raw action, which differs between the policies where the clipped value
does not). Of a single page, given what came before it, the ratio of clipped densities is exact and varies less.

Pages that were decided but not shown leave gaps: over a gap of g draws the noise decays by (1 - theta)^g, and its
variance is sigma^2 sum_{j < g} (1 - theta)^(2 j).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from model_export.evaluation.logged import Sessions
from model_export.evaluation.sequences import Array

_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True, eq=False)
class Target:
    """A noisy policy on the logged states; [n, d] each."""

    means: Array
    sigmas: Array
    thetas: Array

    @classmethod
    def like(cls, sessions: Sessions, means: Array) -> Target:
        """With the noise that was deployed."""
        return cls(np.broadcast_to(means, sessions.raw.shape).astype(np.float64), sessions.sigmas, sessions.thetas)


def behaviour(sessions: Sessions) -> Target:
    return Target(sessions.means, sessions.sigmas, sessions.thetas)


def session_ratios(sessions: Sessions, target: Target) -> Array:
    """log of the ratio of each session up to and including each of its pages, [n]."""
    pages = _raw_log_density(sessions, target) - _raw_log_density(sessions, behaviour(sessions))
    total = np.cumsum(pages)
    before = np.concatenate([[0.0], total])[sessions.starts[:-1]]
    found: Array = total - np.repeat(before, sessions.lengths)
    return found


def page_ratios(sessions: Sessions, target: Target) -> Array:
    """log of the ratio of each page's executed action by itself, given what came before it, [n]: point masses count."""
    return _clipped_log_density(sessions, target) - _clipped_log_density(sessions, behaviour(sessions))


def effective_size(weights: Array) -> float:
    """How many equally weighted draws are worth as much: (sum w)^2 / sum w^2 (Kish); 0 of none."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def expectations(sessions: Sessions, target: Target) -> tuple[Array, Array]:
    """Mean and standard deviation of each raw action, given the raw actions before it."""
    keep = 1 - target.thetas
    gaps = sessions.gaps[:, None]
    before = np.vstack([np.zeros((1, sessions.raw.shape[1])), (sessions.raw - target.means)[:-1]])
    before[sessions.first] = 0.0
    rest = 1 - keep**2  # > 0, as theta is
    spread = target.sigmas * np.sqrt((1 - keep ** (2 * gaps)) / rest)
    return target.means + keep**gaps * before, spread


def _raw_log_density(sessions: Sessions, target: Target) -> Array:
    middle, spread = expectations(sessions, target)
    z = (sessions.raw - middle) / spread
    # without the constant, which is the same in every density
    density: Array = np.sum(-0.5 * z * z - np.log(spread), axis=1)
    return density


def _clipped_log_density(sessions: Sessions, target: Target) -> Array:
    middle, spread = expectations(sessions, target)
    z = (sessions.executed - middle) / spread
    inside = -0.5 * z * z - np.log(spread) - 0.5 * math.log(2 * math.pi)
    at_low, at_high = sessions.executed <= sessions.low, sessions.executed >= sessions.high
    masses = log_cdf(np.where(at_low, (sessions.low - middle) / spread, (middle - sessions.high) / spread))
    found: Array = np.where(at_low | at_high, masses, inside).sum(axis=1)
    return found


def log_cdf(z: Array) -> Array:
    """log Phi(z), finite also where Phi underflows (the series of the Mills ratio, to 2e-10)."""
    far = z < -30
    near = np.log(0.5 * np.asarray(_erfc(-np.where(far, 0.0, z) / math.sqrt(2)), np.float64))
    y = np.where(far, z, -31.0)
    w = 1 / (y * y)
    tail = -0.5 * y * y - 0.5 * math.log(2 * math.pi) - np.log(-y) + np.log1p(-w * (1 - w * (3 - 15 * w)))
    return np.where(far, tail, near)

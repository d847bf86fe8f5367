"""Q of a policy from what another one logged: fitted Q evaluation, for the doubly robust estimators. Pure.

Le, Voloshin and Yue, Batch policy learning under constraints, ICML 2019, algorithm 3, with ridge regression:

    Q_k(s_i, a_i) fits r_i + gamma E[Q_{k-1}(s_{i+1}, a')], a' as the target draws it there; Q_0 = 0

as many times as the longest session has pages, for then the last page's reward has reached the first. What comes after
a page depends on its raw action in two ways: users see the clipped one, and the target's noise goes on from what the
raw one was beyond its own mean. Both are in the basis, and it is linear in their moments, so that the expectation over
the target's actions is exact, with the point masses that clipping puts on the bounds.

The Q of a session is fitted on others only (cross-fitting; Chernozhukov and others, Double/debiased machine learning,
The Econometrics Journal 21(1), 2018): one that has seen the session's own luck would take it for skill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.logged import Sessions, Slices
from model_export.evaluation.ratios import Target, expectations, log_cdf
from model_export.evaluation.sequences import Array

Mask = NDArray[np.bool_]
FOLDS = Slices("fitted q", 5)


class Fitted(NamedTuple):
    """What `doubly_robust` takes."""

    q: Array  # [n] of the logged actions
    v: Array  # [n] its expectation over what the target does on that page


class _Actions(NamedTuple):
    """Of a page's action, or its expectations; [n, d] each, executed actions from -1 to 1."""

    executed: Array
    squared: Array
    noise: Array  # of the target, after the page, in spreads


@dataclass(frozen=True, eq=False)
class _Pages:
    logged: Array  # [n, p] the basis at the logged actions
    expected: Array  # [n, p] over what the target does
    rewards: Array
    last: Mask  # [n] of its session
    owner: NDArray[np.int64]


def fit_q(
    sessions: Sessions, target: Target, states: Array, *, gamma: float = 1.0, folds: Slices = FOLDS, ridge: float = 1e-3
) -> Fitted:
    """`states` [n, f]: numbers known of a page before it is decided. `ridge`: the penalty, per page, on weights of
    terms of unit variance. Where there are no other sessions to fit on, Q is 0: right on average, as any is."""
    pages = _pages(sessions, target, states)
    fold = np.array([folds.of(name) for name in sessions.names], np.int64)[pages.owner]
    q, v = np.zeros(len(fold)), np.zeros(len(fold))
    for each in np.unique(fold):
        held, others = fold == each, fold != each
        if others.any():
            model = _fit(_chosen(pages, others), gamma, ridge)
            q[held], v[held] = model(pages.logged[held]), model(pages.expected[held])
    return Fitted(q, v)


# Fitting ---------------------------------------------------------------------------------------------------------


class _Linear(NamedTuple):
    middle: Array  # [p] what the terms are measured from
    weights: Array  # [p]
    level: float

    def __call__(self, basis: Array) -> Array:
        found: Array = (basis - self.middle) @ self.weights + self.level
        return found


def _fit(pages: _Pages, gamma: float, ridge: float) -> _Linear:
    middle, scale = pages.logged.mean(axis=0), pages.logged.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(middle)), scale, np.inf)  # a constant term says nothing
    z = (pages.logged - middle) / scale
    solver = np.linalg.inv(z.T @ z + ridge * len(z) * np.eye(z.shape[1]))
    lowest, highest = _returns_seen(pages, gamma)
    model = _Linear(middle, np.zeros(z.shape[1]), 0.0)
    for _ in range(int(np.bincount(pages.owner).max())):
        goal = pages.rewards + gamma * _worth_after(pages, np.clip(model(pages.expected), lowest, highest))
        level = float(goal.mean())
        model = _Linear(middle, solver @ (z.T @ (goal - level)) / scale, level)
    return model


def _returns_seen(pages: _Pages, gamma: float) -> tuple[float, float]:
    """The least and the most that a session brought from some page on. What is beyond was extrapolated, and would grow
    from one fit to the next; only goals are cut to it, as a cut Q would have no exact expectation."""
    found, after = np.zeros(len(pages.rewards)), 0.0
    for i in range(len(found) - 1, -1, -1):
        after = pages.rewards[i] + (0.0 if pages.last[i] else gamma * after)
        found[i] = after
    return float(found.min()), float(found.max())


def _worth_after(pages: _Pages, worth: Array) -> Array:
    """Of each page what `worth` has for the next one of its session."""
    return np.where(pages.last, 0.0, np.append(worth[1:], 0.0))


def _chosen(pages: _Pages, rows: Mask) -> _Pages:
    """Whole sessions, so that the page behind another one is still its successor."""
    return _Pages(pages.logged[rows], pages.expected[rows], pages.rewards[rows], pages.last[rows], pages.owner[rows])


# The basis -------------------------------------------------------------------------------------------------------


def _pages(sessions: Sessions, target: Target, states: Array) -> _Pages:
    known = np.column_stack([np.asarray(states, np.float64).reshape(len(sessions.rewards), -1), target.means])
    turn = sessions.turn[:, None] / max(int(sessions.lengths.max(initial=1)), 1)
    last = np.zeros(len(turn), np.bool_)
    last[sessions.starts[1:] - 1] = True
    logged, expected = (_basis(known, turn, a) for a in (_logged(sessions, target), _expected(sessions, target)))
    return _Pages(logged, expected, sessions.rewards, last, sessions.owner)


def _basis(known: Array, turn: Array, actions: _Actions) -> Array:
    """[n, p]. Dimensions are drawn independently of each other, given what came before: products of different ones
    have the products of their expectations."""
    executed, squared, noise = actions
    d = executed.shape[1]
    pairs = [executed[:, i] * executed[:, j] for i in range(d) for j in range(i)]
    by_state = (executed[:, :, None] * known[:, None, :]).reshape(len(known), -1)
    now = [known, executed, squared, noise, by_state]
    return np.column_stack([turn, turn**2, *now, *(part * turn for part in now), *pairs])


def _logged(sessions: Sessions, target: Target) -> _Actions:
    executed = _scaled(sessions, sessions.executed)
    return _Actions(executed, executed**2, (sessions.raw - target.means) / target.sigmas)


def _expected(sessions: Sessions, target: Target) -> _Actions:
    middle, spread = expectations(sessions, target)
    half = (sessions.high - sessions.low) / 2
    first, second = clipped_moments(_scaled(sessions, middle), spread / half)
    return _Actions(first, second, (middle - target.means) / target.sigmas)


def _scaled(sessions: Sessions, values: Array) -> Array:
    """The range of the action as -1 to 1."""
    scaled: Array = (2 * values - sessions.low - sessions.high) / (sessions.high - sessions.low)
    return scaled


def clipped_moments(mean: Array, spread: Array) -> tuple[Array, Array]:
    """E[y] and E[y^2] of y = a Gaussian clipped to [-1, 1]."""
    a, b = (-1 - mean) / spread, (1 - mean) / spread
    at_low, at_high = np.exp(log_cdf(a)), np.exp(log_cdf(-b))
    inside = 1 - at_low - at_high
    pa, pb = (np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) for z in (a, b))
    first = at_high - at_low + mean * inside + spread * (pa - pb)
    inner = (mean**2 + spread**2) * inside + 2 * mean * spread * (pa - pb) + spread**2 * (a * pa - b * pb)
    return first, at_high + at_low + inner

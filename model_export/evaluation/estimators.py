"""The value of a policy from what another one logged. Pure.

An estimator is a table of sums per session and a function of the sums over all sessions. So the bootstrap by session
is one matrix product, and it resamples normalisers together with what they normalise. Sessions of one user are alike:
`clustered` sums them up first, and then users are what is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from msgspec import Struct

from model_export.evaluation.logged import Integers, Sessions
from model_export.evaluation.ratios import effective_size
from model_export.evaluation.sequences import Array

_CHUNK = 4_000_000  # resampled counts at once
_LEAST = 5.0  # effective draws, below which no interval is wide enough
_UNIT = NormalDist()


@dataclass(frozen=True, eq=False)
class Terms:
    sums: Array  # [S, k]
    value: Callable[[Array], Array]  # [..., k] -> [...]
    weights: Array  # for the effective sample size: of sessions, or of pages where those are the draws


class OffPolicy(Struct, frozen=True):
    """An estimate. `effective` is to be read first: of a handful of effective draws neither value nor interval says
    anything, whatever their width."""

    value: float
    low: float
    high: float
    effective: float  # sample size
    draws: int


def estimate(terms: Terms, *, level: float = 0.95, replicates: int = 1_000, seed: int = 0) -> OffPolicy:
    """The value with its bootstrap interval over the rows of sums; the same for the same seed. NaN of nothing, and no
    interval of one row, of which every resample is the same."""
    effective, draws = effective_size(terms.weights), len(terms.weights)
    if not len(terms.sums):
        return OffPolicy(math.nan, math.nan, math.nan, effective, draws)
    low = high = math.nan
    if len(terms.sums) > 1:
        low, high = interval(resampled(terms, replicates, seed), min(effective, len(terms.sums)), level)
    return OffPolicy(float(terms.value(terms.sums.sum(axis=0))), low, high, effective, draws)


def clustered(terms: Terms, members: Sequence[str]) -> Terms:
    """With one row of sums for each cluster, a user, say; `members`: whose each row is. The value is the same."""
    _, groups = np.unique(np.asarray(members), return_inverse=True)
    return replace(terms, sums=_grouped(groups, *terms.sums.T))


def interval(found: Array, effective: float, level: float) -> tuple[float, float]:
    """Percentiles of values on resamples, further out the fewer draws there are: as far as Student's t is from the
    normal, and sqrt(n / (n - 1)) (Hesterberg, What teachers should know about the bootstrap, The American Statistician
    69(4), 2015, section 3.3, there for n; here for the effective n, which is what a sum of weights rests on).

    NaN where a resample had nothing to normalise by.
    """
    if not np.all(np.isfinite(found)):
        return math.nan, math.nan
    n = max(effective, _LEAST)
    z = _UNIT.inv_cdf((1 - level) / 2)
    tail = _UNIT.cdf(math.sqrt(n / (n - 1)) * _student(z, n - 1))
    low, high = np.quantile(found, (tail, 1 - tail))
    return float(low), float(high)


def _student(z: float, degrees: float) -> float:
    """The quantile of Student's t at the normal quantile z (Abramowitz and Stegun, 26.7.5, three terms)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def resampled(terms: Terms, replicates: int, seed: int) -> Array:
    """The value on samples of the sessions with replacement."""
    return np.concatenate([terms.value(counts @ terms.sums) for counts in resamples(len(terms.sums), replicates, seed)])


def resamples(size: int, replicates: int, seed: int) -> Iterator[Array]:
    """How often each of `size` draws is in each replicate, [some, size] at a time."""
    draw, most = np.random.default_rng(seed), max(1, _CHUNK // size)
    for begin in range(0, replicates, most):
        many = min(most, replicates - begin)
        yield draw.multinomial(size, np.full(size, 1 / size), size=many).astype(np.float64)


# Sessions --------------------------------------------------------------------------------------------------------


def importance(sessions: Sessions, logs: Array, gamma: float = 1.0) -> Terms:
    """Mean over sessions of ratio times return. `logs`: `session_ratios`, here and below."""
    whole, returns = _whole(sessions, logs), _per_session(sessions, _discounts(sessions, gamma) * sessions.rewards)
    return Terms(np.column_stack([whole * returns, np.ones_like(whole)]), _ratio, whole)


def self_normalised(sessions: Sessions, logs: Array, gamma: float = 1.0) -> Terms:
    whole, returns = _whole(sessions, logs), _per_session(sessions, _discounts(sessions, gamma) * sessions.rewards)
    return Terms(np.column_stack([whole * returns, whole]), _ratio, whole)


def per_decision(sessions: Sessions, logs: Array, gamma: float = 1.0) -> Terms:
    """Each reward with the ratio up to its page only (Precup, Sutton and Singh, ICML 2000)."""
    found = _per_session(sessions, _discounts(sessions, gamma) * np.exp(logs) * sessions.rewards)
    return Terms(np.column_stack([found, np.ones_like(found)]), _ratio, _whole(sessions, logs))


def per_decision_self_normalised(sessions: Sessions, logs: Array, gamma: float = 1.0) -> Terms:
    """Normalised turn by turn. A session that has ended stays in the normaliser with its ratio: it earns nothing."""
    gains = _by_turn(sessions, _discounts(sessions, gamma) * np.exp(logs) * sessions.rewards)
    return Terms(np.hstack([gains, _held(sessions, logs)]), _ratios_by_turn, _whole(sessions, logs))


def doubly_robust(sessions: Sessions, logs: Array, q: Array, v: Array, gamma: float = 1.0) -> Terms:
    """With a fitted Q of the target (Jiang and Li, ICML 2016): q [n] at the logged actions, v [n] its expectation over
    the target's actions on that page, given the noise that the target has there. Any q is right on average, for any
    such v; a good one takes variance out."""
    parts = np.exp(logs) * (sessions.rewards - q) + _one_back(sessions, logs) * v
    found = _per_session(sessions, _discounts(sessions, gamma) * parts)
    return Terms(np.column_stack([found, np.ones_like(found)]), _ratio, _whole(sessions, logs))


def doubly_robust_self_normalised(sessions: Sessions, logs: Array, q: Array, v: Array, gamma: float = 1.0) -> Terms:
    """Weighted doubly robust (Thomas and Brunskill, ICML 2016)."""
    discounts = _discounts(sessions, gamma)
    errors = _by_turn(sessions, discounts * np.exp(logs) * (sessions.rewards - q))
    hopes = _by_turn(sessions, discounts * _one_back(sessions, logs) * v)
    held = _held(sessions, logs)
    before = np.column_stack([np.ones(len(held)), held[:, :-1]])
    turns = held.shape[1]

    def value(sums: Array) -> Array:
        halves = sums[..., : 2 * turns], sums[..., 2 * turns :]
        return _ratios_by_turn(halves[0]) + _ratios_by_turn(halves[1])

    return Terms(np.hstack([errors, held, hopes, before]), value, _whole(sessions, logs))


# Single draws: pages by themselves, bandit rounds ----------------------------------------------------------------


def weighted_mean(weights: Array, rewards: Array, groups: Integers | None = None) -> Terms:
    """Mean of w r. `groups`: which draws are of one session, or user, for the bootstrap; each its own without."""
    return Terms(_grouped(groups, weights * rewards, np.ones_like(weights)), _ratio, weights)


def weighted_self_normalised(weights: Array, rewards: Array, groups: Integers | None = None) -> Terms:
    return Terms(_grouped(groups, weights * rewards, weights), _ratio, weights)


def weighted_doubly_robust(weights: Array, rewards: Array, q: Array, v: Array, groups: Integers | None = None) -> Terms:
    """Mean of v + w (r - q): q at the logged actions (or at the target's, for kernels), v what the target expects."""
    return Terms(_grouped(groups, v + weights * (rewards - q), np.ones_like(weights)), _ratio, weights)


# Sums ------------------------------------------------------------------------------------------------------------


def _ratio(sums: Array) -> Array:
    return _divided(sums[..., 0], sums[..., 1])


def _ratios_by_turn(sums: Array) -> Array:
    turns = sums.shape[-1] // 2
    found: Array = np.sum(_divided(sums[..., :turns], sums[..., turns:]), -1)
    return found


def _divided(a: Array, b: Array) -> Array:
    """NaN where there is nothing to normalise by."""
    found: Array = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) > 0)
    return found


def _whole(sessions: Sessions, logs: Array) -> Array:
    return np.exp(logs[sessions.starts[1:] - 1])


def _discounts(sessions: Sessions, gamma: float) -> Array:
    return np.float64(gamma) ** sessions.turn


def _per_session(sessions: Sessions, values: Array) -> Array:
    return np.bincount(sessions.owner, values, minlength=len(sessions.names)).astype(np.float64)


def _by_turn(sessions: Sessions, values: Array) -> Array:
    """[S, T]; 0 behind the end of a session."""
    table = np.zeros((len(sessions.names), int(sessions.lengths.max(initial=1))))
    table[sessions.owner, sessions.turn] = values
    return table


def _held(sessions: Sessions, logs: Array) -> Array:
    """[S, T] ratios; a session's last one goes on behind its end."""
    table = _by_turn(sessions, np.exp(logs))
    behind = np.arange(table.shape[1]) >= sessions.lengths[:, None]
    return np.where(behind, _whole(sessions, logs)[:, None], table)


def _one_back(sessions: Sessions, logs: Array) -> Array:
    """The ratio before each page: 1 on a session's first."""
    before = np.concatenate([[0.0], logs[:-1]])
    return np.where(sessions.first, 1.0, np.exp(before))


def _grouped(groups: Integers | None, *columns: Array) -> Array:
    table = np.column_stack(columns)
    if groups is None:
        return table
    _, members = np.unique(groups, return_inverse=True)
    return np.column_stack([np.bincount(members, column) for column in table.T])

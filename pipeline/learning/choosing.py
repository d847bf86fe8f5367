"""Which of the seeds is handed out: the one that would do best on pages that none of them has learned from.

On the pages that a policy explored itself, the one-step residual r + gamma d V(s') - V(s) says what the executed action
brought beyond what the baseline would have; V is the mean over all seeds, so that no seed is its own judge. A seed's
score is the mean of it, weighted by how much more likely the seed was to execute that action than who did: the density
of a Gaussian around the seed's mu over the logged one, of the raw action, self-normalised. Weights are cut at
sqrt(n) times their mean (Ionides 2008, "Truncated importance sampling").

What that ignores: what an action does to later pages beyond what V knows of s', for V is the baseline's, and a guess on
states that the baseline does not reach; that a seed would bring users to other states than those logged; that the noise
the target draws with is not correlated from page to page, as the served one is; dimensions that do not explore. Cutting
the weights draws the scores of seeds far from what was logged towards the mean of the logs. And the best of several
scores is flattered: it serves to choose, not to report. Whether a policy is good is the version controller's to say.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FEWEST_EFFECTIVE = 100.0  # pages, of a seed and a policy: with fewer no score is worth acting upon


class Pages(NamedTuple):
    """Of the held-out sessions, explored by a policy. n: pages, N: action dimensions."""

    policy: np.ndarray  # [n] its number
    session: np.ndarray  # [n] uint64
    raw: np.ndarray  # [n, N] before clipping
    sigma: np.ndarray  # [n, N] of the noise; 0 where a dimension was not drawn
    log_density: np.ndarray  # [n] of raw, as logged: the sum over the dimensions that were drawn
    residual: np.ndarray  # [n] r + gamma d V(s') - V(s)


class Choice(NamedTuple):
    chosen: int
    scores: tuple[float, ...]  # one per seed; empty where nothing could be compared
    effective: tuple[float, ...]  # pages behind each score, of the policy with the fewest


def choose(pages: Pages, means: np.ndarray, before: int, fewest: float = FEWEST_EFFECTIVE) -> Choice:
    """`means` [S, n, N]: what each seed would do on each page, without noise. `before`: the seed chosen until now.

    Another seed has to be better by more than a standard error of the difference (of sessions, paired). Where its own
    evidence is too thin it is not chosen; where that of the former is, it is given up for one that can be judged.
    """
    policies = [k for k in np.unique(pages.policy) if np.count_nonzero(pages.policy == k) >= fewest]
    if not policies:
        return Choice(before, (), ())
    of_policies = [_compared(_of(pages, means, int(k))) for k in policies]
    scores = np.mean([found.scores for found in of_policies], axis=0)
    effective = np.min([found.effective for found in of_policies], axis=0)
    judged = effective >= fewest
    best = int(np.argmax(np.where(judged, scores, -np.inf)))
    if not judged[best]:
        return Choice(before, tuple(scores.tolist()), tuple(effective.tolist()))
    margin = _standard_error([found.shares[best] - found.shares[before] for found in of_policies], of_policies)
    better = scores[best] - scores[before] > margin or not judged[before]
    return Choice(best if better else before, tuple(scores.tolist()), tuple(effective.tolist()))


class _Compared(NamedTuple):
    """All seeds on the pages of one policy."""

    session: np.ndarray
    scores: np.ndarray  # [S]
    effective: np.ndarray  # [S]
    shares: np.ndarray  # [S, n] what each page adds to a score's error, to first order


def _of(pages: Pages, means: np.ndarray, policy: int) -> tuple[Pages, np.ndarray]:
    at = pages.policy == policy
    return Pages(*(column[at] for column in pages)), means[:, at]


def _compared(of: tuple[Pages, np.ndarray]) -> _Compared:
    pages, means = of
    weights = truncated(log_ratios(pages, means))
    total = weights.sum(axis=1, keepdims=True)
    scores = weights @ pages.residual / total[:, 0]
    shares = weights * (pages.residual - scores[:, None]) / total
    return _Compared(pages.session, scores, total[:, 0] ** 2 / np.square(weights).sum(axis=1), shares)


def log_ratios(pages: Pages, means: np.ndarray) -> np.ndarray:
    """[S, n] log of N(raw; mu_seed, sigma^2) / logged density."""
    drawn = pages.sigma > 0
    sigma = np.where(drawn, pages.sigma, 1.0)
    z = np.where(drawn, (pages.raw - means) / sigma, 0.0)
    constant = np.where(drawn, np.log(sigma) + 0.5 * np.log(2 * np.pi), 0.0)
    return -(0.5 * z * z + constant).sum(axis=2) - pages.log_density


def truncated(log_weights: np.ndarray) -> np.ndarray:
    """[S, n] weights up to a factor per seed, none larger than sqrt(n) times the mean of its seed's."""
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    ceiling = weights.mean(axis=1, keepdims=True) * np.sqrt(weights.shape[1])
    return np.minimum(weights, ceiling)


def _standard_error(shares: list[np.ndarray], of: list[_Compared]) -> float:
    """Of a mean over policies, from each page's share in its error: pages of a session are not independent."""
    sessions, places = np.unique(np.concatenate([found.session for found in of]), return_inverse=True)
    sums = np.zeros(len(sessions))
    np.add.at(sums, places, np.concatenate(shares) / len(of))
    return float(np.sqrt(np.square(sums).sum()))

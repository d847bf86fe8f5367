"""Off-policy evaluation against a truth that is known: a thousand runs of a hundred logged sessions each.

The share of runs in which a 97.5 % lower bound is above the truth has a standard error of 0.5 points; the bar is 2.5 %
and three of them. What is known to be biased must miss the truth by far more than its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from model_export.evaluation.estimators import (
    Terms,
    doubly_robust,
    doubly_robust_self_normalised,
    estimate,
    importance,
    interval,
    per_decision,
    per_decision_self_normalised,
    resamples,
    self_normalised,
    weighted_mean,
)
from model_export.evaluation.kernels import page_kernel_weights
from model_export.evaluation.logged import Sessions
from model_export.evaluation.ratios import Target, effective_size, expectations, page_ratios, session_ratios
from model_export.evaluation.sequences import Array, weighted_lower, weighted_upper
from tests.laws import feed_process as feed

RUNS, SIZE = 1_000, 100
ALPHA = 0.05


class Case(NamedTuple):
    played: feed.Played
    sessions: Sessions
    target: Target
    logs: Array
    truth: float
    error: float  # of the truth


@pytest.fixture(scope="module")
def case() -> Case:
    played = feed.logged(RUNS * SIZE, "laws", np.random.default_rng(1))
    sessions = feed.sessions_of(played)
    target = Target.like(sessions, feed.other(played.states)[played.there][:, None])
    luck = np.random.default_rng(2)
    returns = feed.play(feed.other, luck.normal(size=(600_000, feed.PAGES)), luck).returns
    error = float(returns.std() / math.sqrt(len(returns)))
    return Case(played, sessions, target, session_ratios(sessions, target), float(returns.mean()), error)


def rough_q(case: Case) -> tuple[Array, Array]:
    """A fitted Q that is far from exact, and its exact expectation under the target: linear in the raw action."""
    middle, _ = expectations(case.sessions, case.target)
    return 1.2 - 0.6 * case.sessions.raw[:, 0], 1.2 - 0.6 * middle[:, 0]


ESTIMATORS: dict[str, Callable[[Case], Terms]] = {
    "importance": lambda case: importance(case.sessions, case.logs),
    "self-normalised": lambda case: self_normalised(case.sessions, case.logs),
    "per decision": lambda case: per_decision(case.sessions, case.logs),
    "per decision, self-normalised": lambda case: per_decision_self_normalised(case.sessions, case.logs),
    "doubly robust": lambda case: doubly_robust(case.sessions, case.logs, *rough_q(case)),
    "doubly robust, self-normalised": lambda case: doubly_robust_self_normalised(
        case.sessions, case.logs, *rough_q(case)
    ),
}


def values_of_runs(terms: Terms) -> Array:
    return terms.value(terms.sums.reshape(RUNS, SIZE, -1).sum(axis=1))


def off(terms: Terms, case: Case) -> float:
    """How many standard errors all sessions together are from the truth."""
    spread = float(values_of_runs(terms).std()) / math.sqrt(RUNS)
    return abs(float(terms.value(terms.sums.sum(axis=0))) - case.truth) / math.hypot(spread, case.error)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_finds_the_value_of_a_policy_that_was_never_deployed(case: Case, name: str) -> None:
    assert abs(case.played.returns.mean() - case.truth) > 20 * case.error  # which is another than the deployed one's
    assert off(ESTIMATORS[name](case), case) < 4


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_lower_bound_is_above_the_truth_in_a_fortieth_of_the_runs_at_most(case: Case, name: str) -> None:
    terms = ESTIMATORS[name](case)
    (counts,) = resamples(SIZE, 1_000, seed=4)  # the same for each run
    parts = terms.sums.reshape(RUNS, SIZE, -1)
    sizes = [effective_size(weights) for weights in terms.weights.reshape(RUNS, SIZE)]
    values = (terms.value(counts @ part) for part in parts)
    bounds = np.array([interval(found, size, 1 - ALPHA)[0] for found, size in zip(values, sizes, strict=True)])
    assert np.mean(bounds > case.truth) <= ALPHA / 2 + 3 * math.sqrt(ALPHA / 2 * (1 - ALPHA / 2) / RUNS)


def test_the_confidence_sequence_is_ever_wrong_in_a_twentieth_of_the_runs_at_most(case: Case) -> None:
    whole = np.exp(case.logs)[case.sessions.starts[1:] - 1].reshape(RUNS, SIZE)
    returns = case.played.returns.reshape(RUNS, SIZE)
    low, high = (
        bound(whole, returns, 0.0, float(feed.PAGES), ALPHA / 2, 20.0)[:, 4::5]
        for bound in (weighted_lower, weighted_upper)
    )
    above, below = np.any(low > case.truth, axis=1), np.any(high < case.truth, axis=1)
    assert np.mean(above) <= ALPHA / 2 + 3 * math.sqrt(ALPHA / 2 / RUNS)
    assert np.mean(above | below) <= ALPHA + 3 * math.sqrt(ALPHA / RUNS)
    assert np.mean(low[:, -1]) > 0  # it says something


# Traps -----------------------------------------------------------------------------------------------------------


def summed(sessions: Sessions, pages: Array) -> Array:
    total = np.cumsum(pages)
    return total - np.repeat(np.concatenate([[0.0], total])[sessions.starts[:-1]], sessions.lengths)


def test_the_logged_noise_in_place_of_the_targets_own_is_biased(case: Case) -> None:
    s = case.sessions
    before = np.concatenate([[0.0], (s.raw - s.means)[:-1, 0]])
    before[s.first] = 0
    kept = (1 - feed.THETA) * before
    zs = [(s.raw[:, 0] - means[:, 0] - kept) / feed.SIGMA for means in (case.target.means, s.means)]
    wrong = summed(s, 0.5 * (zs[1] ** 2 - zs[0] ** 2))
    assert np.exp(wrong)[s.starts[1:] - 1].mean() == pytest.approx(1, abs=0.02)  # the weights do not show it
    assert off(per_decision(s, wrong), case) > 20


def test_point_masses_across_pages_are_biased(case: Case) -> None:
    wrong = summed(case.sessions, page_ratios(case.sessions, case.target))
    assert np.exp(wrong)[case.sessions.starts[1:] - 1].mean() == pytest.approx(1, abs=0.02)
    assert off(per_decision(case.sessions, wrong), case) > 5


def test_leaving_out_the_noise_that_goes_on_is_biased(case: Case) -> None:
    """Pages as if they were drawn independently."""
    s = case.sessions
    z = [(s.raw[:, 0] - means[:, 0]) / feed.SIGMA for means in (case.target.means, s.means)]
    assert off(per_decision(s, summed(s, 0.5 * (z[1] ** 2 - z[0] ** 2))), case) > 20


# Single pages ----------------------------------------------------------------------------------------------------


def first_pages(case: Case, mean: feed.Mean) -> float:
    luck = np.random.default_rng(3)
    return float(feed.play(mean, luck.normal(size=(600_000, feed.PAGES)), luck).rewards[:, 0].mean())


def test_of_a_single_page_point_masses_are_exact_and_vary_less(case: Case) -> None:
    s, first = case.sessions, case.sessions.first
    clipped = np.exp(page_ratios(s, case.target))[first]
    raw = np.exp(case.logs)[first]
    truth = first_pages(case, feed.other)
    for weights in (clipped, raw):
        spread = (weights * s.rewards[first]).std() / math.sqrt(first.sum())
        assert abs(estimate(weighted_mean(weights, s.rewards[first]), replicates=10).value - truth) < 4 * spread + 2e-3
    assert effective_size(clipped) > 1.05 * effective_size(raw)


def test_a_kernel_finds_a_target_that_does_not_explore_even_at_a_bound(case: Case) -> None:
    s, first = case.sessions, case.sessions.first
    at_bound = np.full_like(s.raw, feed.HIGH)
    weights = page_kernel_weights(s, at_bound, 0.1)[first]
    found = float(weights @ s.rewards[first] / weights.sum())
    truth = 0.0  # nobody takes an offer at the upper bound on a first page
    assert found == pytest.approx(truth, abs=0.03)
    assert weights.mean() == pytest.approx(1, abs=0.03)  # no half of the kernel is lost

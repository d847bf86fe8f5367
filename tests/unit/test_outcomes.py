"""Figures of visits, of which those of one user are not independent."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.simulation.outcomes import Estimate, Outcome, clustered, difference, estimate, relative, summarise


def test_the_interval_is_that_of_the_textbook():
    found = clustered([1.0, 2.0, 3.0, 6.0], ["a", "a", "b", "c"])
    # totals 3, 3, 6; sizes 2, 1, 1; mean 3; residuals -3, 0, 3; variance 3/2 * (9 + 0 + 9) / 4^2
    assert found.mean == 3.0
    assert found.half == pytest.approx(1.96 * np.sqrt(1.5 * 18) / 4)


def test_values_of_clusters_of_one_are_independent():
    values = np.random.default_rng(1).normal(size=500)
    alone, found = estimate(values), clustered(values, np.arange(500))
    assert found.mean == pytest.approx(alone.mean)
    assert found.half == pytest.approx(alone.half * np.sqrt(500 / 499))


def test_one_cluster_has_a_mean_and_no_interval():
    found = clustered([1.0, 3.0], ["a", "a"])
    assert found.mean == 2.0
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(clustered([], []).mean)


def test_intervals_cover_the_truth_where_users_differ():
    """Mean 1 by construction. The interval that takes visits for independent covers it in far fewer worlds."""
    rng = np.random.default_rng(7)
    covered, naive, worlds = 0, 0, 400
    for _ in range(worlds):
        users = np.repeat(np.arange(120), rng.integers(1, 20, 120))
        values = 1 + rng.normal(size=120)[users] + rng.normal(size=len(users))
        found, blind = clustered(values, users), estimate(values)
        covered += found.low <= 1 <= found.high
        naive += blind.low <= 1 <= blind.high
    assert 0.91 < covered / worlds < 0.98
    assert naive / worlds < 0.75


def test_a_summary_goes_by_user():
    visits = [Outcome(user, True, True, 2, 1, 0, 10.0, reward) for user, reward in [("a", 1.0), ("a", 1.2), ("b", 3.0)]]
    assert summarise(visits).reward == clustered([1.0, 1.2, 3.0], ["a", "a", "b"])


def test_differences_and_ratios_of_independent_means():
    a, b = Estimate(6.0, 5.7, 6.3), Estimate(4.0, 3.6, 4.4)
    apart = difference(a, b)
    assert (apart.mean, apart.half) == (2.0, pytest.approx(0.5))
    more = relative(a, b)
    assert more is not None
    assert more.mean == 0.5
    for r in (1 + more.low, 1 + more.high):  # Fieller: where a - r b is just as far from zero as its interval reaches
        assert abs(a.mean - r * b.mean) == pytest.approx(np.hypot(a.half, r * b.half))


@pytest.mark.parametrize("mean", np.linspace(3.0, 5.0, 41))
def test_both_ways_of_looking_agree_on_whether_there_is_a_difference(mean: float):
    a, b = Estimate(mean, mean - 0.3, mean + 0.3), Estimate(4.0, 3.6, 4.4)
    apart, more = difference(a, b), relative(a, b)
    assert more is not None
    assert (apart.low > 0, apart.high < 0) == (more.low > 0, more.high < 0)


@pytest.mark.parametrize("base", [Estimate(0.1, -0.1, 0.3), Estimate(-2.0, -3.0, -1.0), estimate([])])
def test_a_ratio_to_nothing_says_nothing(base: Estimate):
    assert relative(Estimate(1.0, 0.9, 1.1), base) is None

"""Figures of visits, of which those of one user are not independent."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.simulation.outcomes import (
    Estimate,
    Outcome,
    clustered,
    difference,
    estimate,
    relative,
    relative_within,
    summarise,
    t_quantile,
)


def test_the_interval_is_that_of_the_textbook():
    found = clustered([1.0, 2.0, 3.0, 6.0], ["a", "a", "b", "c"])
    # totals 3, 3, 6; sizes 2, 1, 1; mean 3; residuals -3, 0, 3; variance 3/2 * (9 + 0 + 9) / 4^2
    assert found.mean == 3.0
    assert found.half == pytest.approx(4.302653 * np.sqrt(1.5 * 18) / 4)  # t with 2 degrees of freedom


def t_distribution(t: float, degrees: int) -> float:
    """Of even degrees of freedom, in closed form (Abramowitz and Stegun, 26.7.4)."""
    sine, cosine2 = t / np.sqrt(degrees + t * t), degrees / (degrees + t * t)
    terms = np.cumprod([1.0] + [(2 * k - 1) / (2 * k) * cosine2 for k in range(1, degrees // 2)])
    return float(0.5 + 0.5 * sine * terms.sum())


@pytest.mark.parametrize("degrees", [2, 4, 6, 8, 10, 20, 60, 1000])
def test_the_quantile_has_two_and_a_half_percent_above_it(degrees: int):
    slope = (t_distribution(t_quantile(degrees) + 1e-3, degrees) - t_distribution(t_quantile(degrees), degrees)) / 1e-3
    assert abs(t_distribution(t_quantile(degrees), degrees) - 0.975) < 3e-4 * slope


def test_quantiles_of_odd_degrees_lie_between_their_neighbours():
    assert t_quantile(1) == pytest.approx(np.tan(0.475 * np.pi), abs=1e-6)  # Cauchy's
    found = [t_quantile(degrees) for degrees in range(1, 200)]
    assert found == sorted(found, reverse=True)
    assert (np.diff(found, 2) > 0).all()
    assert t_quantile(5) == pytest.approx(2.570582, abs=3e-4)
    assert t_quantile(10**6) == pytest.approx(1.959964, abs=1e-5)
    assert np.isnan(t_quantile(0))


def test_values_of_clusters_of_one_are_independent():
    values = np.random.default_rng(1).normal(size=500)
    alone, found = estimate(values), clustered(values, np.arange(500))
    assert found.mean == pytest.approx(alone.mean)
    assert found.half == pytest.approx(alone.half * np.sqrt(500 / 499) * t_quantile(499) / 1.96)


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


def test_few_users_are_covered_as_often_as_many():
    rng = np.random.default_rng(3)
    covered, worlds = 0, 2000
    for _ in range(worlds):
        found = clustered(rng.normal(size=4), np.arange(4))
        covered += found.low <= 0 <= found.high
    assert 0.935 < covered / worlds < 0.965  # with 1.96 for any number of users: 0.86


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


def pairs(users: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A base of mean 2 and what is half as much again, both by the taste of their user."""
    clusters = np.repeat(np.arange(users), rng.integers(1, 9, users))
    taste = rng.normal(size=users)[clusters]
    base = 2 + taste + rng.normal(size=len(clusters))
    return 3 + 1.5 * taste + rng.normal(size=len(clusters)), base, clusters


def test_a_ratio_of_pairs_knows_that_they_are_pairs():
    values, base, clusters = pairs(400, np.random.default_rng(5))
    within = relative_within(values, base, clusters)
    apart = relative(clustered(values, clusters), clustered(base, clusters))
    assert within is not None
    assert apart is not None
    assert within.mean == pytest.approx(apart.mean) == pytest.approx(values.mean() / base.mean() - 1)
    assert within.high - within.low < 0.6 * (apart.high - apart.low)
    itself = relative_within(base, base, clusters)
    assert itself is not None
    assert (itself.mean, itself.low, itself.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_its_interval_covers_the_ratio_and_ends_where_the_difference_to_it_is_just_shown():
    rng, covered, worlds = np.random.default_rng(11), 0, 400
    for _ in range(worlds):
        values, base, clusters = pairs(60, rng)
        found = relative_within(values, base, clusters)
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.92 < covered / worlds < 0.98
    for r in (1 + found.low, 1 + found.high):
        apart = clustered(values - r * base, clusters)
        assert abs(apart.mean) == pytest.approx(apart.half)


def test_a_ratio_of_pairs_to_a_base_that_may_be_nothing_says_nothing():
    clusters = np.arange(50)
    base = np.random.default_rng(2).normal(size=50)
    assert clustered(base, clusters).low < 0
    assert relative_within(base + 1, base, clusters) is None
    assert relative_within(base + 1, base - 5, clusters) is None
    assert relative_within(np.ones(2), np.ones(2), np.zeros(2)) is None  # one user: no interval
    assert relative_within(np.ones(0), np.ones(0), np.ones(0)) is None


def test_reward_per_visit_counts_the_visits_that_did_not_look():
    visits = [Outcome("a", True, True, 2, 1, 0, 10.0, 3.0), Outcome("a", True, False), Outcome("b", True, False)]
    found = summarise(visits)
    assert (found.reward.mean, found.visit_reward.mean) == (3.0, 1.0)
    assert found.visit_reward == clustered([3.0, 0.0, 0.0], ["a", "a", "b"])

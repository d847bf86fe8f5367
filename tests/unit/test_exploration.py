"""Exploration: hand numbers and edges. Its laws are in tests/laws."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from pipeline.exploration import (
    default_sigma,
    draw,
    explore,
    horizon,
    log_density,
    log_density_clipped,
    mass_on_bounds,
    noise_before,
    stationary_std,
)

UNIT = NormalDist()
PATH = {"theta": 0.15, "sigma": 0.2, "salt": "salt/rl_a", "session_id": "s1", "dimension": "a"}


def epsilon(index: int) -> float:
    return draw("salt/rl_a", "s1", index, "a")


def test_the_first_page_has_no_noise_behind_it():
    assert noise_before(0, **PATH) == 0.0


def test_the_noise_of_the_second_and_third_page_by_hand():
    assert noise_before(1, **PATH) == 0.2 * epsilon(0)
    assert noise_before(2, **PATH) == pytest.approx(0.85 * 0.2 * epsilon(0) + 0.2 * epsilon(1), rel=1e-15)


def test_draws_are_fixed_for_good():
    """A change of the hash or its key would make every logged decision impossible to recompute."""
    assert [draw("salt", "session", page, "a") for page in (0, 1, 10**6)] == [
        -0.16455550813259961,
        -0.08850186867488022,
        -0.7772485615544693,
    ]


@pytest.mark.parametrize(
    "other", [("salt2", "s", 0, "a"), ("salt", "s2", 0, "a"), ("salt", "s", 1, "a"), ("salt", "s", 0, "b")]
)
def test_each_argument_of_a_draw_matters(other: tuple[str, str, int, str]):
    assert draw("salt", "s", 0, "a") != draw(*other)


def test_draws_are_standard_normal():
    draws = sorted(draw("salt", f"session-{i}", i % 7, "a") for i in range(20_000))
    gap = max(abs((i + 0.5) / len(draws) - UNIT.cdf(x)) for i, x in enumerate(draws))
    assert gap < 1.63 / math.sqrt(len(draws))  # Kolmogorov-Smirnov, 1 %


def test_consecutive_draws_are_uncorrelated():
    pairs = [(draw("salt", f"s{i}", 0, "a"), draw("salt", f"s{i}", 1, "a")) for i in range(20_000)]
    assert abs(sum(x * y for x, y in pairs) / len(pairs)) < 4 / math.sqrt(len(pairs))


def test_no_sigma_means_no_draw_and_no_propensity():
    action = explore("a", 1.7, low=0.5, high=1.5, theta=0.15, sigma=0, previous_noise=0.0, epsilon=3.0)
    assert (action.value, action.propensity) == (1.5, None)


def test_what_is_executed_is_clipped_and_what_is_logged_is_not():
    action = explore("a", 1.0, low=0.5, high=1.5, theta=0.15, sigma=0.2, previous_noise=0.1, epsilon=5.0)
    assert action.value == 1.5
    assert action.propensity is not None
    assert action.propensity.raw == pytest.approx(1.0 + 0.85 * 0.1 + 0.2 * 5.0)
    assert action.propensity.log_density_raw == pytest.approx(math.log(NormalDist(1.085, 0.2).pdf(2.085)))
    assert action.propensity.log_density_clipped == pytest.approx(math.log(1 - NormalDist(1.085, 0.2).cdf(1.5)))


def test_a_bound_carries_the_mass_beyond_it():
    assert log_density_clipped(0.5, 1.0, 0.5, 0.5, 1.5) == pytest.approx(math.log(UNIT.cdf(-1)))
    assert log_density_clipped(1.5, 1.0, 0.5, 0.5, 1.5) == pytest.approx(math.log(UNIT.cdf(-1)))
    assert log_density_clipped(0.7, 1.0, 0.5, 0.5, 1.5) == log_density(0.7, 1.0, 0.5)


@pytest.mark.parametrize("theta", [0.05, 0.15, 1.0])
@pytest.mark.parametrize(("baseline", "low", "high"), [(1.0, 0.5, 1.5), (1.0, 0.9, 3.0), (0.0, -1.0, 0.2)])
def test_the_default_sigma_clips_a_tenth_of_the_noise_around_the_baseline(
    theta: float, baseline: float, low: float, high: float
):
    sigma = default_sigma(baseline, low, high, theta)
    assert mass_on_bounds(baseline, stationary_std(theta, sigma), low, high) == pytest.approx(0.1, abs=1e-9)


def test_the_default_sigma_of_a_baseline_on_a_bound_looks_at_the_other_one():
    std = stationary_std(0.15, default_sigma(0.0, 0.0, 1.0, 0.15))
    assert 1 - UNIT.cdf(1 / std) == pytest.approx(0.1, abs=1e-9)


def test_the_stationary_deviation_is_that_of_the_recursion():
    variance = 0.0
    for _ in range(2_000):
        variance = 0.85**2 * variance + 0.2**2
    assert stationary_std(0.15, 0.2) == pytest.approx(math.sqrt(variance), rel=1e-12)


@pytest.mark.parametrize(("theta", "pages"), [(1.0, 1), (0.15, 228), (1e-3, 36_982)])
def test_the_horizon_is_as_far_as_a_draw_matters(theta: float, pages: int):
    assert horizon(theta) == pages
    assert (1 - theta) ** pages < 1e-16


def test_white_noise_costs_one_draw_however_far_the_session_is():
    path = {**PATH, "theta": 1.0}
    assert noise_before(10**9, **path) == 0.2 * epsilon(10**9 - 1)


def test_a_page_far_into_a_session_costs_no_more_than_the_horizon():
    """Would not end otherwise."""
    assert math.isfinite(noise_before(10**12, **PATH))


@pytest.mark.parametrize("distance", [10.0, 29.99, 30.01, 1e3, 1e8, 1e100])
def test_tails_are_finite_however_far_the_bound(distance: float):
    at_low = log_density_clipped(0.0, distance, 1.0, 0.0, 2 * distance)
    at_high = log_density_clipped(2 * distance, distance, 1.0, 0.0, 2 * distance)
    assert at_low == at_high
    assert math.isfinite(at_low)
    assert at_low == pytest.approx(-0.5 * distance**2, rel=0.08)


def test_the_two_forms_of_the_tail_meet():
    near, far = (log_density_clipped(0.0, z, 1.0, 0.0, 100.0) for z in (29.999_999, 30.000_001))
    slope = 30 + 1 / 30  # of log Phi, there
    assert near - far == pytest.approx(slope * 2e-6, abs=1e-9)

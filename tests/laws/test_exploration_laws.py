"""What holds for every exploration: total mass 1, the recursion, independence of the replica, mirror symmetry."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.exploration import draw, explore, horizon, log_density, log_density_clipped, noise_before

means = st.floats(-3, 3)
sigmas = st.floats(1e-3, 3)
thetas = st.floats(0.01, 1)
widths = st.floats(0.1, 4)
sessions = st.text(min_size=1, max_size=12)


def integral(density, low: float, high: float, peak: float, width: float) -> float:
    """Gauss-Legendre over pieces cut around the peak."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    cuts = sorted({low, high, *(min(max(peak + k * width, low), high) for k in range(-10, 11, 2))})
    total = 0.0
    for left, right in pairwise(cuts):
        xs = (right - left) / 2 * nodes + (left + right) / 2
        total += (right - left) / 2 * sum(w * density(float(x)) for w, x in zip(weights, xs, strict=True))
    return total


@settings(deadline=None, max_examples=60)
@given(means, sigmas, means, widths)
def test_the_clipped_density_and_the_masses_on_the_bounds_sum_to_one(mean, sigma, low, width):
    high = low + width
    inside = integral(lambda x: math.exp(log_density_clipped(x, mean, sigma, low, high)), low, high, mean, sigma)
    at_low = math.exp(log_density_clipped(low, mean, sigma, low, high))
    at_high = math.exp(log_density_clipped(high, mean, sigma, low, high))
    assert abs(inside + at_low + at_high - 1) < 1e-9


@settings(deadline=None, max_examples=60)
@given(means, sigmas)
def test_the_raw_density_sums_to_one(mean, sigma):
    total = integral(lambda x: math.exp(log_density(x, mean, sigma)), mean - 12 * sigma, mean + 12 * sigma, mean, sigma)
    assert abs(total - 1) < 1e-9


@settings(deadline=None, max_examples=50)
@given(thetas, sigmas, sessions, st.integers(0, 60))
def test_the_noise_follows_the_recursion(theta, sigma, session, pages):
    noise = 0.0
    for page in range(pages):
        noise = (1 - theta) * noise + sigma * draw("salt", session, page, "a")
    found = noise_before(pages, theta=theta, sigma=sigma, salt="salt", session_id=session, dimension="a")
    assert abs(found - noise) <= 1e-13 * max(1.0, abs(noise), sigma)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 1), sigmas, sessions)
def test_what_the_horizon_leaves_out_does_not_matter(theta, sigma, session):
    pages = horizon(theta) + 50
    noise = 0.0
    for page in range(pages):
        noise = (1 - theta) * noise + sigma * draw("salt", session, page, "a")
    found = noise_before(pages, theta=theta, sigma=sigma, salt="salt", session_id=session, dimension="a")
    assert abs(found - noise) <= 1e-13 * max(1.0, sigma)


@settings(deadline=None, max_examples=100)
@given(means, means, widths, thetas, sigmas, st.floats(-2, 2), st.floats(-8.3, 8.3))
def test_every_action_is_in_its_range_with_finite_densities(mean, low, width, theta, sigma, noise, epsilon):
    high = low + width
    action = explore("a", mean, low=low, high=high, theta=theta, sigma=sigma, previous_noise=noise, epsilon=epsilon)
    assert low <= action.value <= high
    assert action.propensity is not None
    assert action.value == min(max(action.propensity.raw, low), high)
    assert math.isfinite(action.propensity.log_density_raw)
    assert math.isfinite(action.propensity.log_density_clipped)


@settings(deadline=None, max_examples=100)
@given(means, widths, sigmas, st.floats(0, 1))
def test_a_mirror_image_has_the_same_density(mean, width, sigma, share):
    value = -width + 2 * width * share
    here = log_density_clipped(value, mean, sigma, -width, width)
    there = log_density_clipped(-value, -mean, sigma, -width, width)
    assert here == there


@settings(deadline=None, max_examples=100)
@given(sessions, st.integers(0, 10**9))
def test_draws_are_finite_and_the_same_on_every_replica(session, page):
    assume(len(session.encode(errors="ignore")) > 0)
    assert abs(draw("salt", session, page, "a")) < 8.3
    assert draw("salt", session, page, "a") == draw("".join(["sa", "lt"]), session, int(str(page)), "a")

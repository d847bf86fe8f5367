"""What a confidence sequence promises, held against the truth over thousands of cheap runs in which it is known.

Shares of runs have a standard error: of 2.5 % of 1,000 runs it is 0.5 points, of 5 % 0.7. Each bar is the promise and
three of them. What is known to be wrong must break the same bar, so that the bar is known to notice.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.evaluation.contrast import Terms, bounds, mismatch, observe
from model_export.evaluation.power import all_the_time, one_look
from model_export.evaluation.sequences import (
    Array,
    Sums,
    alpha_of_epoch,
    deviation,
    log_wealth,
    lower,
    past_means,
    weighted_lower,
    weighted_upper,
)

RUNS, TIMES = 1_000, 1_000
ALPHA = 0.05


def bar(promise: float, runs: int = RUNS) -> float:
    return promise + 3 * math.sqrt(promise * (1 - promise) / runs)


def ever(sums: Sums, truth: Array | float, reach: float, alpha: float) -> Array:
    """Per run whether the lower bound of the running truth is above it at any time; by the wealth, which is cheaper."""
    wealth = log_wealth((sums.total - sums.n * truth) / reach, sums.squares / reach**2)
    return np.any(wealth >= math.log(1 / alpha), axis=-1)


# The bound itself ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1e9), st.floats(1e-6, 0.5))
def test_the_bound_is_where_the_wealth_has_grown_to_one_over_alpha(variance: float, alpha: float) -> None:
    far = deviation(np.array([variance]), alpha)
    assert log_wealth(far, np.array([variance]))[0] == pytest.approx(-math.log(alpha), abs=1e-6)
    assert log_wealth(far * (1 - 1e-6), np.array([variance]))[0] < -math.log(alpha)


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 20), st.integers(0, 15))
def test_each_rates_wealth_is_not_expected_to_grow(chance: float, predicted: float, size: float, rate: int) -> None:
    """Of an observation that is `size` with some chance and else 0, so that it is never 1 below a prediction in [0, 1]:
    the exact expectation of one step's factor."""
    step = 0.8 * 0.5**rate
    cost = -math.log1p(-step) - step
    mean = chance * size
    factors = [step * (x - mean) - cost * (x - predicted) ** 2 for x in (size, 0.0)]
    expected = chance * math.exp(factors[0]) + (1 - chance) * math.exp(factors[1])
    assert expected <= 1 + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.1, 10), st.floats(-10, 10))
def test_bounds_move_with_units_and_origin(x: list[float], unit: float, origin: float) -> None:
    values = np.array(x)
    p = past_means(values, 0.0)
    moved = values * unit + origin
    found = lower(Sums.running(moved, p * unit + origin), 10 * unit, ALPHA)
    assert found == pytest.approx(lower(Sums.running(values, p), 10, ALPHA) * unit + origin, rel=1e-6, abs=1e-6)


def test_before_any_observation_nothing_is_known() -> None:
    nothing = Sums(np.zeros(1), np.zeros(1), np.zeros(1))
    assert lower(nothing, 1.0, ALPHA)[0] == -math.inf
    low, high = bounds(Terms(0.5, 0, 1), nothing, ALPHA)
    assert (low[0], high[0]) == (-math.inf, math.inf)


def test_all_epochs_together_spend_alpha() -> None:
    spent = sum(alpha_of_epoch(ALPHA, epoch) for epoch in range(1, 100_000))
    assert 0.9999 * ALPHA < spent < ALPHA


def test_it_is_about_a_third_wider_than_the_best_bound_for_one_look() -> None:
    variance = np.geomspace(100, 1e8, 30)
    best = np.sqrt(2 * variance * math.log(1 / 0.025))
    assert np.all(deviation(variance, 0.025) < 1.55 * best)


# Means that are bounded ------------------------------------------------------------------------------------------


def rewards(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Mostly nothing, sometimes a click, rarely an order: mean 0.31, as skewed as rewards are; in [0, 5]."""
    return rng.choice([0.0, 1.0, 5.0], p=[0.83, 0.145, 0.025], size=shape)


MEAN = 0.145 + 5 * 0.025


def test_a_mean_is_ever_outside_in_at_most_alpha_of_the_runs() -> None:
    x = rewards(np.random.default_rng(1), (RUNS, TIMES))
    p = np.clip(past_means(x, 0.0), 0, 5)
    below = ever(Sums.running(x, p), MEAN, 5.0, ALPHA / 2)
    above = ever(Sums.running(-x, -p), -MEAN, 5.0, ALPHA / 2)
    assert np.mean(below) <= bar(ALPHA / 2)
    assert np.mean(below | above) <= bar(ALPHA)


def test_an_interval_for_one_look_does_not_bear_continuous_looking() -> None:
    """The trap that sequences are for: the same runs, a t interval at every look."""
    x = rewards(np.random.default_rng(1), (RUNS, TIMES))
    counts = np.arange(1.0, TIMES + 1)
    means = np.cumsum(x, -1) / counts
    spread = np.sqrt(np.maximum(np.cumsum(x * x, -1) / counts - means**2, 1e-12))
    outside = np.abs(means - MEAN) > 1.96 * spread / np.sqrt(counts)
    assert np.mean(np.any(outside[:, 99:], -1)) > 2 * bar(ALPHA)


def test_a_mean_that_moves_is_bounded_on_average() -> None:
    """A policy that gets better, then worse: what is bounded is the mean of what was expected so far."""
    rng = np.random.default_rng(2)
    chance = 0.15 + 0.1 * np.sin(np.arange(TIMES) / 80)
    x = (rng.random((RUNS, TIMES)) < chance).astype(np.float64)
    truth = np.cumsum(chance) / np.arange(1, TIMES + 1)
    p = past_means(x, 0.0)
    assert np.mean(ever(Sums.running(x, p), truth, 1.0, ALPHA / 2)) <= bar(ALPHA / 2)
    assert np.mean(ever(Sums.running(-x, -p), -truth, 1.0, ALPHA / 2)) <= bar(ALPHA / 2)


def test_a_promise_of_the_wrong_reach_is_broken() -> None:
    """Rare orders of 50 and a reach of 1: an upper bound that believes it learns that they do not exist."""
    rng = np.random.default_rng(3)
    x = np.where(rng.random((RUNS, 300)) < 0.002, 50.0, 0.0)
    upper_from_wrong = ever(Sums.running(-x, np.zeros_like(x)), -0.1, 1.0, ALPHA / 2)
    upper = ever(Sums.running(-x, np.zeros_like(x)), -0.1, 50.0, ALPHA / 2)
    assert np.mean(upper) <= bar(ALPHA / 2)
    assert np.mean(upper_from_wrong) > 2 * bar(ALPHA / 2)


# Importance-weighted means ---------------------------------------------------------------------------------------


def weighted(rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Gaussian actions around 0, judged for a policy around 0.8: weights exp(0.8 a - 0.32), rewards in [0, 1]."""
    a = rng.normal(size=(RUNS, 400))
    values = (rng.random(a.shape) < 1 / (1 + np.exp(-a))).astype(np.float64)
    target = rng.normal(0.8, 1, size=2_000_000)
    return np.exp(0.8 * a - 0.32), values, float(np.mean(1 / (1 + np.exp(-target))))


@pytest.mark.parametrize("cap", [3.0, 1e9])
def test_an_importance_weighted_mean_stays_inside_its_bounds(cap: float) -> None:
    weights, values, truth = weighted(np.random.default_rng(4))
    looks = slice(9, None, 10)
    low = weighted_lower(weights, values, 0, 1, ALPHA / 2, cap)[:, looks]
    high = weighted_upper(weights, values, 0, 1, ALPHA / 2, cap)[:, looks]
    assert np.mean(np.any(low > truth, -1)) <= bar(ALPHA / 2)
    assert np.mean(np.any((low > truth) | (high < truth), -1)) <= bar(ALPHA)
    assert np.mean(low[:, -1]) > 0.4  # and says something: the truth is 0.66


def test_weights_that_do_not_have_mean_one_are_noticed_by_the_bar() -> None:
    """The density of a noisier policy than the one that was deployed in the denominator, say."""
    weights, values, truth = weighted(np.random.default_rng(4))
    low = weighted_lower(1.8 * weights, values, 0, 1, ALPHA / 2, 1e9)
    assert np.mean(np.any(low > truth, -1)) > 2 * bar(ALPHA / 2)


# Two buckets -----------------------------------------------------------------------------------------------------

TERMS = Terms(share=1 / 3, low=-1.0, high=5.0)


def contrast_ever(
    terms: Terms, r: Array, treated: np.ndarray, truth: Array | float, alpha: float = ALPHA
) -> tuple[Array, Array]:
    """Per run whether the lower, the upper bound is ever wrong."""
    seen = observe(terms, r, treated)
    sides = ((seen.x, seen.p, truth), (-seen.x, -seen.p, -np.asarray(truth)))
    low, high = (ever(Sums.running(x, p), t, terms.reach(), alpha / 2) for x, p, t in sides)
    return low, high


@pytest.mark.parametrize("gain", [0.0, 1.0, -0.5])
def test_a_difference_of_buckets_is_ever_outside_in_at_most_alpha_of_the_runs(gain: float) -> None:
    rng = np.random.default_rng(5)
    treated = rng.random((RUNS, TIMES)) < TERMS.share
    drift = np.linspace(0, gain, TIMES)  # the policy learns; the days differ, for both
    days = 0.5 * np.sin(np.arange(TIMES) / 50) * 0.2
    chance = 0.3 + days + treated * drift * 0.2
    r = np.where(rng.random((RUNS, TIMES)) < chance, 2.0, -0.5)
    truth = np.cumsum(drift * 0.2 * 2.5) / np.arange(1, TIMES + 1)
    low, high = contrast_ever(TERMS, r, treated, truth)
    assert np.mean(low) <= bar(ALPHA / 2)
    assert np.mean(low | high) <= bar(ALPHA)


def test_the_contrast_of_a_lift_is_zero_where_that_is_the_lift() -> None:
    rng = np.random.default_rng(6)
    terms = Terms(TERMS.share, TERMS.low, TERMS.high, lift=0.25)
    treated = rng.random((RUNS, TIMES)) < terms.share
    r = rng.exponential(np.where(treated, 0.5, 0.4)).clip(None, 5.0)
    exact = [scale * (1 - math.exp(-5 / scale)) for scale in (0.5, 0.4)]
    low, high = contrast_ever(terms, r, treated, exact[0] - 1.25 * exact[1])
    assert np.mean(low | high) <= bar(ALPHA)
    seen = observe(terms, r, treated)
    assert np.mean(seen.x) == pytest.approx(exact[0] - 1.25 * exact[1], abs=0.01)


def test_it_is_as_sharp_as_the_difference_of_plain_means() -> None:
    rng = np.random.default_rng(7)
    treated = rng.random((200, 4_000)) < 0.5
    r = rng.exponential(3.0, treated.shape).clip(None, 30) + 5
    terms = Terms(0.5, 0.0, 40.0)
    x = observe(terms, r, treated).x.mean(-1)
    plain = (r * treated).sum(-1) / treated.sum(-1) - (r * ~treated).sum(-1) / (~treated).sum(-1)
    assert np.std(x) < 1.05 * np.std(plain)


def test_sessions_of_a_user_are_not_draws_of_their_own() -> None:
    """Users differ, and come ten times: taken one by one the sequence is wrong far more often than it promises, taken
    by user it keeps it. There is no difference between the buckets."""
    rng = np.random.default_rng(8)
    users, sessions, runs = 100, 10, 500
    treated = rng.random((runs, users)) < 0.5
    habits = rng.choice([0.05, 0.95], size=treated.shape)
    r = (rng.random((runs, users, sessions)) < habits[..., None]).astype(np.float64)
    by_user = contrast_ever(Terms(0.5, 0, sessions), r.sum(-1), treated, 0.0)
    one_by_one = contrast_ever(
        Terms(0.5, 0, 1), r.reshape(runs, -1), np.repeat(treated, sessions, axis=-1).reshape(runs, -1), 0.0
    )
    assert np.mean(by_user[0] | by_user[1]) <= bar(ALPHA, runs)
    assert np.mean(one_by_one[0] | one_by_one[1]) > 2 * bar(ALPHA, runs)


WORTH = np.array([2.0, 1.0])  # what users of two kinds bring when they come, whoever serves them
BASE_KEEPS = np.array([0.5, 0.4])


def comers(rng: np.random.Generator, share: float, keeps: Array) -> tuple[Array, np.ndarray, float]:
    """Rewards and buckets of the first TIMES who come again, per run, and what is true of totals for each of them.

    There are as many users of either kind, and a bucket keeps so many of each; who does not come again is nowhere seen.
    """
    shape = (RUNS, 5 * TIMES)
    treated, kinds = rng.random(shape) < share, rng.integers(0, 2, shape)
    comes = rng.random(shape) < np.where(treated, keeps[kinds], BASE_KEEPS[kinds])
    assert comes.sum(-1).min() > TIMES
    first = np.argsort(~comes, axis=-1, kind="stable")[:, :TIMES]
    r = rng.choice([0.5, 1.0, 1.5], shape) * WORTH[kinds]
    come = share * keeps.mean() + (1 - share) * BASE_KEEPS.mean()
    truth = ((keeps - BASE_KEEPS) * WORTH).mean() / come
    return np.take_along_axis(r, first, -1), np.take_along_axis(treated, first, -1), float(truth)


@pytest.mark.parametrize(
    ("keeps", "gain"),
    [((0.5, 0.4), 0), ((0.5, 1.0), 1), ((0.25, 0.1), -1), ((0.3, 0.8), 0)],
    ids=["the same", "more who bring little", "fewer of all", "others, as much in all"],
)
def test_of_users_whom_a_policy_keeps_or_loses_totals_say_what_it_brings(keeps: tuple[float, float], gain: int) -> None:
    r, treated, truth = comers(np.random.default_rng(13), TERMS.share, np.array(keeps))
    assert truth == pytest.approx(0, abs=1e-9) if gain == 0 else np.sign(truth) == gain
    terms = Terms(TERMS.share, 0.0, 3.0, totals=True)
    low, high = contrast_ever(terms, r, treated, truth)
    assert np.mean(low) <= bar(ALPHA / 2)
    assert np.mean(low | high) <= bar(ALPHA)
    better, worse = contrast_ever(terms, r, treated, 0.0)
    assert np.mean(better) <= bar(ALPHA / 2) if gain < 1 else np.mean(better) > 0.8
    assert np.mean(worse) <= bar(ALPHA / 2) if gain > -1 else np.mean(worse) > 0.8


def test_means_of_those_who_come_count_users_that_a_policy_keeps_against_it() -> None:
    """The trap that totals are for: it brings more, and far too many runs call it worse."""
    r, treated, truth = comers(np.random.default_rng(13), TERMS.share, np.array([0.5, 1.0]))
    _, worse = contrast_ever(Terms(TERMS.share, 0.0, 3.0), r, treated, 0.0)
    assert truth > 0.2
    assert np.mean(worse) > 2 * bar(ALPHA)


@settings(deadline=None, max_examples=100)
@given(
    st.floats(0.01, 0.99), st.floats(-0.5, 2), st.floats(-20, 0), st.floats(1, 20),
    st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=20),
)  # fmt: skip
def test_no_total_is_further_from_its_prediction_than_the_reach(
    share: float, lift: float, low: float, high: float, units: list[tuple[float, bool]]
) -> None:
    terms = Terms(share, low, high, lift, totals=True)
    seen = observe(terms, np.array([r for r, _ in units]), np.array([z for _, z in units]))
    assert np.all(np.abs(seen.x - seen.p) <= terms.reach() * (1 + 1e-9))


@pytest.mark.parametrize("totals", [False, True], ids=["means", "totals"])
def test_no_prediction_knows_what_it_is_a_prediction_of(totals: bool) -> None:
    """Or the sum of squares is too small, by too little to be seen in the share of runs that are wrong."""
    rng = np.random.default_rng(14)
    r, treated = rng.exponential(1.0, 40), rng.random(40) < TERMS.share
    terms = Terms(TERMS.share, 0.0, 5.0, lift=0.1, totals=totals)
    made = observe(terms, r, treated).p
    for i in range(40):
        others = np.where(np.arange(40) < i, r, 5.0 - r), np.where(np.arange(40) < i, treated, ~treated)
        assert observe(terms, *others).p[: i + 1] == pytest.approx(made[: i + 1], abs=1e-12)


def test_a_mismatch_of_buckets_and_slots_is_found_and_not_invented() -> None:
    rng = np.random.default_rng(9)
    ours = np.cumsum(rng.random((300, 1_000)) < 1 / 3, -1)
    times = range(49, 1_000, 50)
    invented = [any(mismatch(1 / 3, int(run[t]), t + 1 - int(run[t])) > math.log(20) for t in times) for run in ours]
    assert np.mean(invented) <= bar(0.05, 300)
    assert mismatch(1 / 3, 4_000, 6_000) > math.log(1_000)
    assert mismatch(0.5, 0, 0) == pytest.approx(0.0)


# Power -----------------------------------------------------------------------------------------------------------


def test_the_traffic_that_is_said_to_be_needed_shows_the_difference_as_often_as_said() -> None:
    terms, gain = Terms(0.4, 0.0, 20.0), 0.5
    spread = 4.0  # an exponential's variance, cut at 20: 3.9
    once = one_look(spread, terms.share, gain, power=0.8)
    always = all_the_time(spread, terms, gain, power=0.8)
    assert once == pytest.approx((1.95996 + 0.84162) ** 2 * spread / (0.4 * 0.6) / gain**2, rel=1e-4)
    rng = np.random.default_rng(10)
    treated = rng.random((RUNS, round(always))) < terms.share
    r = rng.exponential(2.0, treated.shape) + gain * treated
    seen = observe(terms, r, treated)
    every = Sums.running(seen.x, seen.p)
    at = Sums(*(part[:, -1] for part in every))
    by_then = bounds(terms, at, alpha_of_epoch(ALPHA, 1))[0] > 0
    assert np.mean(by_then) == pytest.approx(0.8, abs=0.08)
    few = round(once)
    error = np.sqrt(every.squares[:, few - 1]) / few
    assert np.mean(seen.x[:, :few].mean(-1) > 1.96 * error) == pytest.approx(0.8, abs=0.08)


def test_so_it_does_where_a_lift_is_asked_for_that_the_baseline_is_multiplied_by() -> None:
    terms = Terms(0.3, -20.0, 20.0, lift=0.5)
    needed = round(all_the_time(9.0, terms, 3.4 - 1.5 * 2.0, power=0.8))
    rng = np.random.default_rng(11)
    treated = rng.random((RUNS, needed)) < terms.share
    seen = observe(terms, np.where(treated, 3.4, 2.0) + 3 * rng.normal(size=treated.shape), treated)
    at = Sums(*(part[:, -1] for part in Sums.running(seen.x, seen.p)))
    assert np.mean(bounds(terms, at, alpha_of_epoch(ALPHA, 1))[0] > 0) == pytest.approx(0.8, abs=0.08)


def test_no_difference_is_never_shown() -> None:
    assert one_look(4.0, 0.5, 0.0) == math.inf
    assert all_the_time(4.0, Terms(0.5, 0, 10), 0.0) == math.inf
    assert all_the_time(4.0, Terms(0.5, 0, 10), -0.1) == all_the_time(4.0, Terms(0.5, 0, 10), 0.1)


def test_all_epochs_of_a_policy_together_are_wrong_in_at_most_alpha_of_the_runs() -> None:
    """Restarted again and again, with what is left of alpha: there is no difference to be found."""
    rng = np.random.default_rng(11)
    wrong = np.zeros(RUNS, np.bool_)
    for epoch in range(1, 7):
        treated = rng.random((RUNS, 250)) < TERMS.share
        low, high = contrast_ever(TERMS, rewards(rng, treated.shape), treated, 0.0, alpha_of_epoch(ALPHA, epoch))
        wrong |= low | high
    assert np.mean(wrong) <= bar(ALPHA)

"""A fitted Q of a policy that was never deployed: where the truth is known, and what it takes out of the interval."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model_export.evaluation import fitted
from model_export.evaluation.estimators import doubly_robust, doubly_robust_self_normalised, estimate, per_decision
from model_export.evaluation.fitted import FOLDS, clipped_moments, fit_q
from model_export.evaluation.logged import Sessions, Slices
from model_export.evaluation.ratios import Target, behaviour, session_ratios
from model_export.evaluation.sequences import Array
from pipeline.exploration import log_density_clipped
from tests.laws import feed_process as feed

SIZE, SIGMA, AT, GAMMA = 4_000, 0.6, 0.8, 0.9  # AT: what the target does on every page, next to the bound at 1


def after(state: Array, executed: Array) -> Array:
    return 0.5 * state + 0.8 * executed


def reward(state: Array, executed: Array) -> Array:
    return 1.0 + 2.0 * state + 3.0 * executed - 2.0 * executed**2


class Linear:
    """Two pages, noise without memory, all linear in the basis: of the clipped action, and its square."""

    def __init__(self, mean: float, seed: int, size: int = SIZE) -> None:
        luck = np.random.default_rng(seed)
        self.states, self.raw = np.zeros((size, 2)), mean + SIGMA * luck.normal(size=(size, 2))
        self.executed = np.clip(self.raw, -1, 1)
        self.states[:, 0] = luck.normal(size=size)
        self.states[:, 1] = after(self.states[:, 0], self.executed[:, 0]) + 0.3 * luck.normal(size=size)
        self.rewards = reward(self.states, self.executed) + 0.5 * luck.normal(size=(size, 2))
        self.mean = mean

    def sessions(self) -> Sessions:
        return sessions_of(self.rewards, self.raw, self.executed, self.mean, SIGMA)


def sessions_of(rewards: Array, raw: Array, executed: Array, mean: float, spread: float) -> Sessions:
    """[sessions, pages] each; noise without memory, actions from -1 to 1."""
    size, pages = rewards.shape
    names, column = tuple(f"session-{i}" for i in range(size)), np.ones((rewards.size, 1))
    return Sessions(
        names=names,
        users=names,
        starts=np.arange(0, rewards.size + 1, pages),
        gaps=np.ones(rewards.size, np.int64),
        rewards=rewards.ravel(),
        raw=raw.reshape(-1, 1),
        executed=executed.reshape(-1, 1),
        means=mean * column,
        sigmas=spread * column,
        thetas=column,
        low=np.array([-1.0]),
        high=np.array([1.0]),
    )


@pytest.fixture(scope="module")
def logged() -> Linear:
    return Linear(0.0, 1)


def fit(logged: Linear, sessions: Sessions | None = None) -> tuple[Sessions, Target, fitted.Fitted]:
    sessions = sessions or logged.sessions()
    target = Target.like(sessions, np.full((1, 1), AT))
    return sessions, target, fit_q(sessions, target, logged.states.reshape(-1, 1), gamma=GAMMA)


def truth() -> float:
    played = Linear(AT, 2, 1_000_000)
    return float((played.rewards @ np.array([1.0, GAMMA])).mean())


def test_moments_of_a_clipped_gaussian_are_those_of_its_density() -> None:
    """The masses on the bounds and the density inside are the exploration's own."""
    for mean, spread in ((0.0, 0.6), (0.9, 0.3), (-3.0, 1.0), (0.2, 0.05), (7.0, 0.1)):
        steps = np.linspace(-1, 1, 20_001)
        inside = np.array([np.exp(log_density_clipped(x, mean, spread, -2.0, 2.0)) for x in steps])
        low, high = (np.exp(log_density_clipped(x, mean, spread, -1.0, 1.0)) for x in (-1.0, 1.0))
        expected = [np.trapezoid(inside * steps**k, steps) + low * (-1) ** k + high for k in (1, 2)]
        found = clipped_moments(np.array([mean]), np.array([spread]))
        assert [x[0] for x in found] == pytest.approx(expected, abs=1e-6)


def test_where_the_truth_is_linear_it_is_found(logged: Linear) -> None:
    sessions, _, found = fit(logged)
    assert abs(found.v[sessions.first].mean() - truth()) < 0.05
    last = ~sessions.first
    exact = reward(logged.states, logged.executed).ravel()
    assert np.abs(found.q - exact)[last].mean() < 0.05


def test_without_the_masses_on_the_bounds_it_is_not_found(logged: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "clipped_moments", lambda mean, spread: (mean, mean**2 + spread**2))
    sessions, _, found = fit(logged)
    assert abs(found.v[sessions.first].mean() - truth()) > 0.4


def test_with_the_logged_actions_in_place_of_the_targets_it_is_not_found(logged: Linear) -> None:
    """The value of the policy that logged."""
    sessions = logged.sessions()
    found = fit_q(sessions, Target.like(sessions, sessions.means), logged.states.reshape(-1, 1), gamma=GAMMA)
    assert abs(found.v[sessions.first].mean() - truth()) > 0.5


# Cross-fitting ---------------------------------------------------------------------------------------------------


def test_a_sessions_own_rewards_are_not_in_its_q(logged: Linear) -> None:
    sessions, _, before = fit(logged)
    mine = sessions.owner == 7
    lucky = dataclasses.replace(sessions, rewards=np.where(mine, 1_000.0, sessions.rewards))
    _, _, now = fit(logged, lucky)
    same = np.array([FOLDS.of(name) == FOLDS.of(sessions.names[7]) for name in sessions.names])[sessions.owner]
    assert np.array_equal(now.q[same], before.q[same])
    assert np.array_equal(now.v[same], before.v[same])
    assert np.all(now.q[~same] != before.q[~same])


def test_where_there_are_no_others_q_is_nothing(logged: Linear) -> None:
    sessions = logged.sessions()
    found = fit_q(sessions, Target.like(sessions, sessions.means), logged.states.reshape(-1, 1), folds=Slices("one", 1))
    assert not found.q.any()
    assert not found.v.any()


def test_a_q_far_from_what_was_logged_does_not_run_away() -> None:
    """Forty pages, rewards of luck alone, a target ten spreads away: what a fit extrapolates, the next would learn."""
    luck, size, pages, spread = np.random.default_rng(3), 20, 40, 0.1
    raw = spread * luck.normal(size=(size, pages))
    executed, states = np.clip(raw, -1, 1), np.zeros((size, pages, 3))
    for page in range(1, pages):
        states[:, page] = 0.9 * states[:, page - 1] + executed[:, [page - 1]] + 0.1 * luck.normal(size=(size, 3))
    rewards = luck.normal(size=(size, pages))
    most = np.abs(np.cumsum(rewards[:, ::-1], axis=1)).max()
    sessions = sessions_of(rewards, raw, executed, 0.0, spread)
    found = fit_q(sessions, Target.like(sessions, np.full((1, 1), 1.0)), states.reshape(-1, 3))
    assert np.abs(found.v).max() < 5 * most


# What it is for --------------------------------------------------------------------------------------------------


def test_it_takes_variance_out_of_importance_sampling_and_keeps_the_truth() -> None:
    """Of policies that differ much, on pages that change the next ones, in twelve logs of their own."""
    real, covered, widths = feed.truth(feed.other, 600_000), 0, []
    for seed in range(12):
        played = feed.logged(600, f"fitted-{seed}", np.random.default_rng(seed))
        sessions = feed.sessions_of(played)
        target = Target.like(sessions, feed.other(played.states)[played.there][:, None])
        logs = session_ratios(sessions, target)
        found = fit_q(sessions, target, played.states[played.there][:, None])
        plain = estimate(per_decision(sessions, logs), replicates=400)
        both = [
            estimate(kind(sessions, logs, *found), replicates=400)
            for kind in (doubly_robust, doubly_robust_self_normalised)
        ]
        covered += sum(each.low <= real <= each.high for each in both)
        widths.append([(each.high - each.low) / (plain.high - plain.low) for each in both])
    assert np.mean(widths, axis=0).max() < 0.8
    assert covered >= 20  # of 24


def test_v_is_the_expectation_of_q_over_what_the_target_does() -> None:
    """The condition under which any Q is right on average. Where the target is what logged, q - v is a martingale
    difference: of mean 0, and without correlation with the noise so far."""
    played = feed.logged(20_000, "expectation", np.random.default_rng(5))
    sessions = feed.sessions_of(played)
    found = fit_q(sessions, behaviour(sessions), played.states[played.there][:, None])
    before = np.append(0.0, (sessions.raw - sessions.means)[:-1, 0]) * ~sessions.first
    assert found.q.std() > 0.1
    for with_what in (np.ones(len(before)), before, sessions.means[:, 0] - 0.95, sessions.turn):
        products = (found.q - found.v) * with_what
        assert abs(products.mean()) < 4 * products.std() / np.sqrt(len(products))

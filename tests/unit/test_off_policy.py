"""Logged sessions as arrays, ratios and estimators by hand numbers, from actions that the agent's own code draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from model_export.evaluation.estimators import (
    Terms,
    clustered,
    doubly_robust,
    doubly_robust_self_normalised,
    estimate,
    importance,
    per_decision,
    per_decision_self_normalised,
    self_normalised,
    weighted_doubly_robust,
    weighted_mean,
    weighted_self_normalised,
)
from model_export.evaluation.kernels import blurred, kernel_weights, page_kernel_weights
from model_export.evaluation.logged import Gathered, Sessions, Slices, gather
from model_export.evaluation.ratios import (
    Target,
    behaviour,
    effective_size,
    log_cdf,
    page_ratios,
    session_ratios,
)
from pipeline.config.schema import ActionDimension
from pipeline.exploration import draw, explore, log_density, log_density_clipped, noise_before
from pipeline.records import Action, DecidedBy, Decision, Ending, Episode, State, Step

THETA, SIGMA, LOW, HIGH = 0.3, 0.5, 0.0, 2.0
DIMENSIONS = (ActionDimension("a", 1.0, (LOW, HIGH)), ActionDimension("b", 1.0, (LOW, HIGH)))
KEEP = 1 - THETA


def drawn(session: str, page: int, name: str, mean: float) -> Action:
    noise = {"theta": THETA, "sigma": SIGMA}
    before = noise_before(page, salt="salt", session_id=session, dimension=name, **noise)
    epsilon = draw("salt", session, page, name)
    return explore(name, mean, low=LOW, high=HIGH, previous_noise=before, epsilon=epsilon, **noise)


def step(session: str, page: int, **more: Any) -> Step:
    actions = (drawn(session, page, "a", 1.0 + 0.1 * page), drawn(session, page, "b", 0.8))
    decision = more.pop("decision", Decision(DecidedBy.POLICY, "rl", "bucket", actions))
    return replace(Step(f"{session}-{page}", 1_000 * page, page, State(), decision, float(page + 1)), **more)


def episode(session: str, steps: list[Step]) -> Episode:
    return Episode(f"{session}@1-{steps[0].page_index}", "user", session, tuple(steps), "1", Ending.LEAVE, 0.0)


def gathered(*episodes: Episode, **more: Any) -> Gathered:
    return gather(episodes, DIMENSIONS, "rl", **more)


@pytest.fixture
def sessions() -> Sessions:
    return gathered(*(episode(s, [step(s, page) for page in range(1 + i)]) for i, s in enumerate("xyz"))).sessions


# Gathering -------------------------------------------------------------------------------------------------------


def test_sessions_become_rows_with_what_was_logged(sessions: Sessions) -> None:
    assert (sessions.names, sessions.starts.tolist()) == (("x", "y", "z"), [0, 1, 3, 6])
    assert sessions.rewards.tolist() == [1, 1, 2, 1, 2, 3]
    assert sessions.turn.tolist() == [0, 0, 1, 0, 1, 2]
    assert sessions.means[5].tolist() == [pytest.approx(1.2), 0.8]
    assert np.array_equal(sessions.executed, np.clip(sessions.raw, LOW, HIGH))


def test_a_session_is_all_of_its_episodes() -> None:
    steps = [step("x", page) for page in range(4)]
    whole = gathered(episode("x", steps)).sessions
    parts = gathered(episode("x", steps[2:]), episode("x", steps[:2])).sessions
    assert len(parts.names) == 1
    assert np.array_equal(parts.raw, whole.raw)
    assert parts.gaps.tolist() == [1, 1, 1, 1]


def test_a_session_that_goes_on_is_left_out() -> None:
    cut = replace(episode("x", [step("x", page) for page in range(2)]), ending=Ending.TRUNCATED)
    assert gathered(cut, episode("y", [step("y", 0)])).left_out == {"unfinished": 1}
    rest = episode("x", [step("x", 2)])
    assert gathered(rest, cut).sessions.lengths.tolist() == [3]


def by(who: DecidedBy, actions: tuple[Action, ...] = (), policy: str = "rl") -> Decision:
    return Decision(who, policy, "bucket", actions)


def odd(page: int, name: str, **changes: Any) -> Step:
    made = step("x", page)
    actions = tuple(
        replace(a, **{k: v for k, v in changes.items() if k == "value"}, propensity=replace(
            a.propensity, **{k: v for k, v in changes.items() if k != "value"}
        )) if a.name == name else a
        for a in made.decision.actions
    )  # fmt: skip
    return replace(made, decision=replace(made.decision, actions=actions))


@pytest.mark.parametrize(
    ("reason", "second"),
    [
        ("fallback", step("x", 1, decision=by(DecidedBy.FALLBACK))),
        ("not_drawn", step("x", 1, decision=by(DecidedBy.BASELINE))),
        ("not_drawn", step("x", 1, decision=by(DecidedBy.POLICY, policy="another"))),
        ("actions", step("x", 1, decision=by(DecidedBy.POLICY, (Action("a", 1.0), Action("b", 1.0))))),
        ("actions", step("x", 1, decision=by(DecidedBy.POLICY, step("x", 1).decision.actions[:1]))),
        ("order", step("x", 0)),
        ("density", odd(1, "b", log_density_raw=-3.0)),
        ("density", odd(1, "b", log_density_clipped=-3.0)),
        ("density", odd(1, "a", value=-0.5)),
        ("density", odd(1, "a", sigma=0.0)),
    ],
)
def test_a_session_with_a_page_that_says_nothing_is_left_out_as_a_whole(reason: str, second: Step) -> None:
    found = gathered(episode("x", [step("x", 0), second]), episode("y", [step("y", 0)]))
    assert (found.sessions.names, found.left_out) == (("y",), {reason: 1})
    assert found.fallback_share == (0.5 if reason == "fallback" else 0.0)
    assert len(found.steps) == 1


def test_noise_that_does_not_go_on_from_the_page_before_is_noticed() -> None:
    """Another salt, say, or a page's mean that is not what it was drawn around."""
    other = step("y", 1)
    found = gathered(episode("x", [step("x", 0), replace(other, request_id="x-1")]))
    assert found.left_out == {"noise": 1}


def test_sessions_that_training_had_a_say_in_are_held_back() -> None:
    slices = Slices("salt", 4)
    names = [f"s{i}" for i in range(200)]
    fresh = slices.among((3,))
    found = gathered(*(episode(name, [step(name, 0)]) for name in names), usable=fresh)
    assert set(found.sessions.names) == {name for name in names if slices.of(name) == 3}
    assert 30 < len(found.sessions.names) < 70
    assert found.left_out == {"held_back": 200 - len(found.sessions.names)}
    assert {Slices("another", 4).of(name) == slices.of(name) for name in names} == {True, False}


def test_of_nothing_there_is_nothing() -> None:
    found = gathered()
    assert (found.sessions.raw.shape, found.fallback_share) == ((0, 2), 0.0)


# Ratios ----------------------------------------------------------------------------------------------------------


def target_means(sessions: Sessions) -> np.ndarray:
    return sessions.means + np.array([0.3, -0.2]) * (1 + sessions.turn[:, None])


def test_the_ratio_of_the_deployed_policy_to_itself_is_one(sessions: Sessions) -> None:
    assert session_ratios(sessions, behaviour(sessions)).tolist() == [0.0] * 6
    assert page_ratios(sessions, behaviour(sessions)).tolist() == [0.0] * 6


def test_a_ratio_by_hand_with_the_targets_own_noise(sessions: Sessions) -> None:
    """Of the last session's three pages, from the densities of the exploration itself and the logged ones."""
    means, expected = target_means(sessions), 0.0
    for page in range(3):
        row = 3 + page
        for k, name in enumerate("ab"):
            own = sessions.raw[row - 1, k] - means[row - 1, k] if page else 0.0
            logged = drawn("z", page, name, sessions.means[row, k]).propensity
            assert logged is not None
            ours = log_density(sessions.raw[row, k], means[row, k] + KEEP * own, SIGMA)
            expected += ours - logged.log_density_raw
    found = session_ratios(sessions, Target.like(sessions, means))
    assert found[5] == pytest.approx(expected, rel=1e-12)
    assert found[0] == pytest.approx(session_ratios(sessions, Target.like(sessions, means))[0])


def test_a_single_pages_ratio_by_hand_with_point_masses(sessions: Sessions) -> None:
    at_bounds = replaced(sessions, raw=sessions.raw + np.array([5.0, -5.0]))
    means = target_means(at_bounds)
    found = page_ratios(at_bounds, Target.like(at_bounds, means))
    for row in (0, 1, 3):  # first pages: no noise before
        expected = sum(
            log_density_clipped(at_bounds.executed[row, k], means[row, k], SIGMA, LOW, HIGH)
            - log_density_clipped(at_bounds.executed[row, k], at_bounds.means[row, k], SIGMA, LOW, HIGH)
            for k in range(2)
        )
        assert found[row] == pytest.approx(expected, rel=1e-9)


def replaced(sessions: Sessions, *, raw: np.ndarray) -> Sessions:
    fields = {name: getattr(sessions, name) for name in sessions.__dataclass_fields__}
    return Sessions(**{**fields, "raw": raw, "executed": np.clip(raw, LOW, HIGH)})


def test_over_a_page_that_was_not_shown_the_noise_goes_on_unseen() -> None:
    """N(0.9 + 0.7^2 n, 0.5^2 (1 + 0.7^2)), if n was the noise two pages ago."""
    steps = [step("x", 0), step("x", 2)]
    s = gathered(episode("x", steps)).sessions
    assert s.gaps.tolist() == [1, 2]
    means = np.full((2, 2), 0.9)
    expected = 0.0
    for k in range(2):
        spread = SIGMA * math.sqrt(1 + KEEP**2)
        ours, theirs = ((s.raw[0, k] - m[0, k], m) for m in (means, s.means))
        for sign, (noise, m) in ((1, ours), (-1, theirs)):
            expected += sign * log_density(s.raw[0, k], m[0, k], SIGMA)
            expected += sign * log_density(s.raw[1, k], m[1, k] + KEEP**2 * noise, spread)
    assert session_ratios(s, Target.like(s, means))[1] == pytest.approx(expected, rel=1e-9)


def test_the_masses_of_tails_are_those_of_the_exploration() -> None:
    zs = np.array([-200.0, -40.0, -30.0001, -29.9999, -5.0, 0.0, 3.0, 9.0])
    expected = [log_density_clipped(0.0, -z, 1.0, 0.0, 1.0) for z in zs]
    assert log_cdf(zs).tolist() == pytest.approx(expected, rel=1e-9)


def test_effective_sizes_by_hand() -> None:
    assert effective_size(np.array([1.0, 1.0, 1.0])) == 3
    assert effective_size(np.array([2.0, 0.0, 0.0])) == 1
    assert effective_size(np.zeros(0)) == 0


# Estimators ------------------------------------------------------------------------------------------------------

LOGS = np.log(np.array([2.0, 0.5, 0.25, 1.0, 3.0, 1.5]))


def value(terms: Terms) -> float:
    return estimate(terms, replicates=2).value


def test_estimators_of_sessions_by_hand(sessions: Sessions) -> None:
    """Ratios up to each page 2 | 0.5, 0.25 | 1, 3, 1.5; rewards 1 | 1, 2 | 1, 2, 3; gamma 0.5."""
    returns = [1, 2, 1 + 1 + 0.75]
    weighted = 2 * returns[0] + 0.25 * returns[1] + 1.5 * returns[2]
    assert value(importance(sessions, LOGS, 0.5)) == pytest.approx(weighted / 3)
    assert value(self_normalised(sessions, LOGS, 0.5)) == pytest.approx(weighted / 3.75)
    by_page = 2 + 0.5 + 0.5 * 0.25 * 2 + 1 + 0.5 * 3 * 2 + 0.25 * 1.5 * 3
    assert value(per_decision(sessions, LOGS, 0.5)) == pytest.approx(by_page / 3)
    first = (2 + 0.5 + 1) / (2 + 0.5 + 1)
    second = 0.5 * (0.25 * 2 + 3 * 2) / (2 + 0.25 + 3)
    third = 0.25 * (1.5 * 3) / (2 + 0.25 + 1.5)
    assert value(per_decision_self_normalised(sessions, LOGS, 0.5)) == pytest.approx(first + second + third)


def test_doubly_robust_by_hand(sessions: Sessions) -> None:
    q, v = np.array([0.5, 1.0, 1.5, 0.0, 2.0, 2.5]), np.array([0.6, 0.9, 1.4, 0.2, 1.8, 2.4])
    ratios, before = np.exp(LOGS), np.array([1, 1, 0.5, 1, 1, 3.0])
    whole = (ratios * (sessions.rewards - q) + before * v).sum() / 3
    assert value(doubly_robust(sessions, LOGS, q, v)) == pytest.approx(whole)
    errors = [(2 * 0.5 + 0 + 1) / 3.5, (0.25 * 0.5 + 0) / 5.25, (1.5 * 0.5) / 3.75]
    hopes = [(0.6 + 0.9 + 0.2) / 3, (0.5 * 1.4 + 1 * 1.8) / (2 + 0.5 + 1), (3 * 2.4) / (2 + 0.25 + 3)]
    assert value(doubly_robust_self_normalised(sessions, LOGS, q, v)) == pytest.approx(sum(errors) + sum(hopes))


def test_on_policy_every_estimator_is_the_mean_return(sessions: Sessions) -> None:
    logs = np.zeros(6)
    nothing = np.zeros(6)
    for terms in (
        importance(sessions, logs),
        self_normalised(sessions, logs),
        per_decision(sessions, logs),
        per_decision_self_normalised(sessions, logs),
        doubly_robust(sessions, logs, nothing, nothing),
        doubly_robust_self_normalised(sessions, logs, nothing, nothing),
    ):
        assert value(terms) == pytest.approx(10 / 3)
        assert estimate(terms, replicates=2).effective == 3


def test_single_draws_by_hand() -> None:
    w, r = np.array([2.0, 0.0, 1.0, 1.0]), np.array([1.0, 5.0, 3.0, 0.0])
    q, v = np.array([1.0, 4.0, 2.0, 1.0]), np.array([0.5, 0.5, 0.5, 1.5])
    assert value(weighted_mean(w, r)) == pytest.approx(5 / 4)
    assert value(weighted_self_normalised(w, r)) == pytest.approx(5 / 4)
    assert value(weighted_doubly_robust(w, r, q, v)) == pytest.approx((0.5 + 0.5 + 1.5 + 0.5) / 4)
    grouped = weighted_self_normalised(w, r, np.array([7, 7, 3, 3]))
    assert (value(grouped), len(grouped.sums)) == (pytest.approx(5 / 4), 2)


def test_the_bootstrap_is_that_of_sessions_and_repeats_itself() -> None:
    luck = np.random.default_rng(5)
    x = luck.normal(3.0, 2.0, 400)
    terms = weighted_mean(np.ones(400), x)
    found = estimate(terms, replicates=4_000, seed=1)
    assert found == estimate(terms, replicates=4_000, seed=1)
    assert found != estimate(terms, replicates=4_000, seed=2)
    half = 1.96 * x.std() / 20
    assert (found.low, found.high) == (
        pytest.approx(x.mean() - half, rel=0.02),
        pytest.approx(x.mean() + half, rel=0.02),
    )
    doubled = weighted_mean(np.ones(800), np.repeat(x, 2), np.repeat(np.arange(400), 2))
    again = estimate(doubled, replicates=4_000, seed=1)
    assert again.high - again.low == pytest.approx(found.high - found.low, rel=0.02)  # no narrower: the same sessions


def covered(members: list[str], looks: int = 200) -> float:
    """How often the interval holds the mean of all users there could be: 40 of them, of 10 sessions each."""
    luck = np.random.default_rng(6)
    hits = 0
    for look in range(looks):
        x = np.repeat(luck.normal(0.0, 1.0, 40), 10) + luck.normal(0.0, 1.0, 400)
        found = estimate(clustered(weighted_mean(np.ones(400), x), members), replicates=300, seed=look)
        hits += found.low < 0.0 < found.high
    return hits / looks


def test_an_interval_is_right_for_users_with_many_sessions_only_where_users_are_the_draws() -> None:
    assert covered([f"u{i // 10}" for i in range(400)]) > 0.91
    assert covered([f"s{i}" for i in range(400)]) < 0.7


def test_clusters_do_not_change_the_value() -> None:
    terms = weighted_self_normalised(np.array([1.0, 0.5, 2.0]), np.array([1.0, 3.0, 5.0]))
    found = clustered(terms, ["b", "a", "b"])
    assert found.sums.tolist() == [[1.5, 0.5], [11.0, 3.0]]
    assert value(found) == pytest.approx(value(terms))


def test_one_draw_has_no_interval() -> None:
    found = estimate(weighted_mean(np.ones(3), np.array([1.0, 2.0, 6.0]), np.zeros(3, np.int64)))
    assert found.value == pytest.approx(3.0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_fewer_effective_draws_make_a_wider_interval() -> None:
    x = np.random.default_rng(5).normal(0, 1, 400)
    weights = np.where(np.arange(400) < 8, 1.0, 1e-9)
    even, uneven = (estimate(Terms(weighted_mean(np.ones(400), x).sums, weighted_mean(x, x).value, w)) for w in (
        np.ones(400), weights,
    ))  # fmt: skip
    assert uneven.effective == pytest.approx(8, rel=0.01)
    assert uneven.high - uneven.low > 1.2 * (even.high - even.low)


def test_of_no_sessions_nothing_is_estimated() -> None:
    found = estimate(importance(gathered().sessions, np.zeros(0)))
    assert math.isnan(found.value)
    assert (found.effective, found.draws) == (0, 0)


# Kernels ---------------------------------------------------------------------------------------------------------


def test_kernels_by_hand() -> None:
    distances, logs = np.array([0.0, 0.1, 0.3]), np.log(np.array([0.5, 1.0, 2.0]))
    gaussian = [math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi) / 0.2 / f for u, f in ((0, 0.5), (0.5, 1), (1.5, 2))]
    assert kernel_weights(distances, logs, 0.2).tolist() == pytest.approx(gaussian)
    parabola = [0.75 / 0.2 / 0.5, 0.75 * 0.75 / 0.2, 0.0]
    assert kernel_weights(distances, logs, 0.2, "epanechnikov").tolist() == pytest.approx(parabola)


def test_a_pages_kernel_is_of_its_raw_action_given_its_noise(sessions: Sessions) -> None:
    means, bandwidth = target_means(sessions), 0.4
    noise = sessions.raw[4] - sessions.means[4]
    expected = 1.0
    for k in range(2):
        f = math.exp(log_density(sessions.raw[5, k], sessions.means[5, k] + KEEP * noise[k], SIGMA))
        width = bandwidth * SIGMA
        expected *= math.exp(log_density(means[5, k], sessions.raw[5, k], width)) / f
    assert page_kernel_weights(sessions, means, bandwidth)[5] == pytest.approx(expected, rel=1e-9)


def test_a_pages_kernel_is_the_ratio_of_the_policy_that_it_blurs_the_target_to(sessions: Sessions) -> None:
    """So a Q of that policy is what doubly robust estimates by kernels are to take."""
    means, bandwidth = target_means(sessions), 0.3
    logs = session_ratios(sessions, blurred(sessions, means, bandwidth))
    before = np.where(sessions.first, 0.0, np.concatenate([[0.0], logs[:-1]]))
    assert np.exp(logs - before) == pytest.approx(page_kernel_weights(sessions, means, bandwidth), rel=1e-9)

"""A2C, A3C and PPO on tasks whose answer is known: what their values and actions converge to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.config import schema
from pipeline.learning.a2c import A2c
from pipeline.learning.a3c import A3c
from pipeline.learning.policy_gradient import OnPolicy
from pipeline.learning.ppo import Ppo
from pipeline.learning.rollouts import Pages, Turn

SIGMA = 0.3
BASELINE = 2  # the number of the baseline, beside two policies
LEARNERS = {"a2c": (A2c, schema.A2c), "a3c": (A3c, schema.A3c), "ppo": (Ppo, schema.Ppo)}
SMALL = {"gamma": 0.8, "tower": (8,), "head": (16,), "learning_rate": 0.01, "actor_learning_rate": 0.01}
Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]  # state [n], executed action [n] -> [n]


@pytest.fixture(params=sorted(LEARNERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(make_config) -> Callable[..., Any]:
    def make(kind: str, config: dict[str, Any] | None = None, policies: int = 2, **algorithm: Any) -> OnPolicy:
        learner, settings = LEARNERS[kind]
        parts = {"algorithm": settings(**{**SMALL, **algorithm})}
        return learner(make_config({**parts, **(config or {})}, policies=policies))

    return make


# Values ----------------------------------------------------------------------------------------------------------


def value_after(learner: OnPolicy, policy: int, discount: float, linked: float = 1.0) -> float:
    """V of the only state, or of a policy in it, after reward 1 forever, as long rows of pages of one visit."""
    n, state, one = 32, {"dense": np.ones((32, 1), "f4")}, np.ones((32, 1), "f4")
    follows = np.append(np.full(n - 1, linked), 0).astype("f4")
    for i in range(10 if isinstance(learner, Ppo) else 150):
        noise = np.random.default_rng(i).normal(size=(n, 1)).astype("f4")
        density = -0.5 * noise[:, 0] ** 2 - np.log(SIGMA) - 0.5 * np.log(2 * np.pi)
        drawn = (1 + SIGMA * noise, one, 0 * one, SIGMA * one, density.astype("f4"))
        pages = Pages(state, state, *drawn, one[:, 0], np.full(n, discount, "f4"), follows)
        learner.learn(pages, Turn(policy, i % 2, False, i))
    value, gain, _ = (part.numpy()[0, 0, 0] for part in learner.evaluate({"dense": np.ones((1, 1), "f4")}))
    return float(value + gain)


@pytest.mark.parametrize("policy", [0, BASELINE])
def test_reward_one_forever_is_worth_one_over_one_minus_gamma(make, kind: str, policy: int) -> None:
    assert value_after(make(kind, learning_rate=0.03), policy, discount=1.0) == pytest.approx(5.0, rel=0.03)


def test_a_leave_taken_for_a_page_that_goes_on_would_be_noticed(make, kind: str) -> None:
    """Reward 1 and a leave on each page are worth 1; with discount 1 they would be worth 5."""
    learners = (make(kind, learning_rate=0.03), make(kind, learning_rate=0.03))
    assert value_after(learners[0], 0, discount=0.0, linked=0.0) == pytest.approx(1.0, rel=0.03)
    assert value_after(learners[1], 0, discount=1.0, linked=0.0) > 2


# Actions ---------------------------------------------------------------------------------------------------------


def play(learner: OnPolicy, rng: np.random.Generator, n: int, theta: float, *steps: Reward, move: float = 0.0) -> Pages:
    """n visits of policy 0 with a page per step. The first state is random, the second moves by `move` (a - 1)."""
    state, noise, parts = rng.uniform(-1, 1, n), np.zeros(n), []
    for i, reward in enumerate(steps):
        x = np.stack([state, np.full(n, i)], axis=1).astype("f4")
        mean = learner.evaluate({"dense": x}).action.numpy()[0, 0, :, 0]
        carried, fresh = (1 - theta) * noise, rng.normal(size=n)
        noise = carried + SIGMA * fresh
        action = np.clip(mean + noise, 0, 2)
        following = state + move * (action - 1)
        density = -0.5 * fresh**2 - np.log(SIGMA) - 0.5 * np.log(2 * np.pi)
        last = i == len(steps) - 1
        after = np.stack([following, np.full(n, i + 1)], axis=1)
        parts.append((x, after, mean + noise, mean, carried, density, reward(state, action), not last))
        state = following
    # [n, steps] -> rows of one visit together
    x, after = (np.stack([p[j] for p in parts], axis=1).reshape(-1, 2).astype("f4") for j in (0, 1))
    raw, mean, carried, density, reward = (
        np.stack([p[j] for p in parts], axis=1).reshape(-1).astype("f4") for j in range(2, 7)
    )
    goes_on = np.tile([float(p[7]) for p in parts], n).astype("f4")
    wide = (column[:, None] for column in (raw, mean, carried, np.full_like(raw, SIGMA)))
    return Pages({"dense": x}, {"dense": after}, *wide, density, reward, goes_on, goes_on)


TWO_COLUMNS = {"features": (schema.Dense("x", "user.x"), schema.Dense("page", "page.i"))}


def learned(make, kind: str, theta: float, *steps: Reward, move: float = 0.0) -> OnPolicy:
    rate = {} if kind == "ppo" else {"actor_learning_rate": 0.003}
    learner, rng = make(kind, TWO_COLUMNS, policies=1, **rate), np.random.default_rng(0)
    for i in range(25 if kind == "ppo" else 150):
        pages = play(learner, rng, (512 if kind == "ppo" else 256) // len(steps), theta, *steps, move=move)
        learner.learn(pages, Turn(0, i % 4, True, 100 * i))
    return learner


def mean_action(learner: OnPolicy, state: float, page: int) -> float:
    return float(learner.evaluate({"dense": np.array([[state, page]], "f4")}).action[0, 0, 0, 0])


def test_the_optimum_of_a_bandit_away_from_the_baseline_is_found(make, kind: str) -> None:
    learner = learned(make, kind, 1.0, lambda state, action: -((action - 1.4) ** 2))
    found = [mean_action(learner, x, 0) for x in np.linspace(-1, 1, 9)]
    optimum = 1.418  # of the mean: its draws are clipped at 2, which makes those far above cheaper than those far below
    assert np.mean(found) == pytest.approx(optimum, abs=0.05)
    np.testing.assert_allclose(found, optimum, atol=0.12)


def test_an_action_that_only_pays_on_the_next_page_is_found(make, kind: str) -> None:
    """Linear-quadratic: u = a - 1 costs u^2, and the page after costs (x + u)^2, so u = -gamma x / (1 + gamma)."""
    learner = learned(make, kind, 1.0, lambda _, a: -((a - 1) ** 2), lambda state, _: -(state**2), move=1.0)
    found = [mean_action(learner, x, 0) - 1 for x in (-0.8, 0.0, 0.8)]
    np.testing.assert_allclose(found, [0.8 * 0.8 / 1.8, 0, -0.8 * 0.8 / 1.8], atol=0.1)


@pytest.mark.parametrize("kind", ["a2c", "ppo"])
def test_noise_that_carries_over_draws_no_page_to_the_optimum_of_the_next(make, kind: str) -> None:
    """85 % of a page's noise is on the next page, whose optimum is on the other side of the baseline."""
    learner = learned(make, kind, 0.15, lambda _, a: -((a - 1.3) ** 2), lambda _, a: -((a - 0.7) ** 2))
    for page, optimum in ((0, 1.3), (1, 0.7)):
        assert np.mean([mean_action(learner, x, page) for x in (-0.5, 0, 0.5)]) == pytest.approx(optimum, abs=0.1)

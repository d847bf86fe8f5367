"""Every learner that chooses from a grid: small worlds with known answers, and nothing left to chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import Bits, Cell
from pipeline.learning.learner import Batch, Learner
from pipeline.learning.learners import learner_of

ALL = np.array([True, True])
DEEP = {"tower": (32,), "head": (32,), "learning_rate": 0.01, "target_period": 20}
PLACES = {"features": (Bits("place", "user.place", width=5),)}
SETTINGS: dict[type, dict[str, Any]] = {
    schema.Dqn: DEEP,
    schema.DoubleDqn: DEEP,
    schema.DuelingDqn: DEEP,
    schema.QLearning: {"learning_rate": 0.5},
}


@pytest.fixture(params=list(SETTINGS), ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


def made(make_config, kind: type, config: dict[str, Any] | None = None, **algorithm: Any) -> Learner:
    """Cells, where there are any, are of the first feature."""
    config = config or {}
    cells = {"cells": (Cell("place") if "features" in config else Cell("x", (-1.0, 0.0, 1.0)),)}
    return learner_of(
        make_config(config, kind=kind, **{**SETTINGS[kind], **(cells if kind is schema.QLearning else {}), **algorithm})
    )


def q_of(learner: Learner, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """[K, B, M] of the only seed."""
    states = {name: x[None] for name, x in inputs.items()}
    network = learner.online if hasattr(learner, "online") else lambda s: learner.heads.q(learner.cells(s))
    return network(states).numpy()[0]


# A chain of five places. Going on (a = 2) brings 1 at its end and nothing before; leaving at once (a = 0) brings a
# little; the baseline stays where it is and brings less.
GAMMA, ATOMS = 0.8, (1.0, 0.0, 2.0)
REWARD = np.array([[0.05, 0.5, 0.0], *[[0.05, 0.3, 0.0]] * 3, [0.05, 0.3, 1.0]])
NEXT = np.array([[s, s, min(s + 1, 4)] for s in range(5)])
GOES_ON = np.array([[1, 0, 1]] * 4 + [[1, 0, 0]])


def solved() -> np.ndarray:
    """Q* [5, 3] by value iteration."""
    q = np.zeros((5, 3))
    for _ in range(200):
        q = REWARD + GAMMA * GOES_ON * q.max(axis=1)[NEXT]
    return q


def chain_batch(make_batch, leave: float) -> Batch:
    """Every place and action once, executed near its atom. `leave` is the discount after the last page of a visit."""
    place, atom = (x.ravel() for x in np.indices((5, 3)))
    one_hot = np.eye(5, dtype="f4")
    return make_batch(
        15,
        state={"place": one_hot[place]},
        next_state={"place": one_hot[NEXT.ravel()]},
        action=(np.array(ATOMS)[atom] + np.array([0.2, 0.3, -0.1])[atom])[:, None].astype("f4"),
        reward=REWARD.ravel().astype("f4"),
        discount=np.where(GOES_ON.ravel() == 1, 1.0, leave).astype("f4"),
    )


def learned_chain(make_config, make_batch, kind: type, leave: float = 0.0) -> Learner:
    learner = made(make_config, kind, PLACES, levels=3, gamma=GAMMA)
    batch = chain_batch(make_batch, leave)
    for _ in range(500):
        learner.step(batch, ALL)
    return learner


def test_the_chain_is_solved_where_a_myopic_policy_is_wrong(make_config, make_batch, kind: type) -> None:
    learner, expected = learned_chain(make_config, make_batch, kind), solved()
    assert REWARD.argmax(axis=1).tolist() == [1, 1, 1, 1, 2]
    assert expected.argmax(axis=1).tolist() == [1, 2, 2, 2, 2]
    places = {"place": np.eye(5, dtype="f4")}
    np.testing.assert_allclose(q_of(learner, places), [expected, expected], atol=0.05)
    found = learner.evaluate(places)
    np.testing.assert_array_equal(found.action[0, :, :, 0], [[0, 2, 2, 2, 2]] * 2)
    np.testing.assert_allclose(found.value[0, 0], expected[:, 0], atol=0.05)
    np.testing.assert_allclose(found.advantage[0, 0], expected.max(axis=1) - expected[:, 0], atol=0.06)


@pytest.mark.parametrize("kind", [schema.DoubleDqn, schema.QLearning])
def test_looking_ahead_past_a_leave_would_be_noticed(make_config, make_batch, kind: type) -> None:
    wrong = q_of(learned_chain(make_config, make_batch, kind, leave=1.0), {"place": np.eye(5, dtype="f4")})
    assert np.abs(wrong - solved()).max() > 0.5


def test_reward_one_forever_is_worth_one_over_one_minus_gamma(make_config, make_batch, kind: type) -> None:
    learner = made(make_config, kind, gamma=0.8)
    state = {"dense": np.ones((16, 1), "f4")}
    batch = make_batch(state=state, next_state=state, reward=np.ones(16, "f4"), discount=np.ones(16, "f4"))
    for _ in range(500):
        learner.step(batch, ALL)
    assert float(learner.evaluate(state).value[0, 0, 0]) == pytest.approx(5.0, rel=0.02)


# A bandit: one-page visits, reward -(a - optimum)^2 -----------------------------------------------------------------


def bandit(make_config, make_batch, kind: type, optimum: float) -> np.ndarray:
    """What the policies do [K, B] after pages of which a third are the baseline's, and the others explore."""
    learner = made(make_config, kind, **({"learning_rate": 0.005} if kind is not schema.QLearning else {}))
    rng = np.random.default_rng(0)
    for i in range(500):
        action = np.where(np.arange(48) % 3 == 0, 1.0, np.clip(rng.normal(1.0, 0.5, 48), 0, 2)).astype("f4")
        learner.step(make_batch(48, seed=i, action=action[:, None], reward=-((action - optimum) ** 2)), ALL)
    state = {name: x[0] for name, x in make_batch(200, seed=99).state.items()}
    return learner.evaluate(state).action.numpy()[0, :, :, 0]


def test_the_policy_finds_an_optimum_away_from_the_baseline(make_config, make_batch, kind: type) -> None:
    found = bandit(make_config, make_batch, kind, optimum=1.4)
    np.testing.assert_allclose(found.mean(axis=1), 1.4, atol=0.1)
    np.testing.assert_allclose(found, 1.4, atol=0.2001)


def test_where_the_baseline_is_best_the_policy_stays(make_config, make_batch, kind: type) -> None:
    np.testing.assert_allclose(bandit(make_config, make_batch, kind, optimum=1.0), 1.0, atol=0.2001)


# Nothing left to chance ------------------------------------------------------------------------------------------


def batches(make_batch, seed: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return [
        make_batch(
            seed=10 * i + seed,
            action=rng.uniform(0, 2, (16, 1)).astype("f4"),
            reward=rng.normal(size=16).astype("f4"),
            discount=np.ones(16, "f4"),
        )
        for i in range(5)
    ]


def after(learner: Learner, several: list[Batch]) -> list[np.ndarray]:
    for batch in several:
        learner.step.python_function(batch, ALL)
    return [v.numpy() for v in (*learner.actor.variables, *learner.variables)]


def test_same_seed_same_weights_to_the_last_bit(make_config, make_batch, kind: type) -> None:
    one, same = (after(made(make_config, kind, seed=3), batches(make_batch, 1)) for _ in range(2))
    other = after(made(make_config, kind, seed=3), batches(make_batch, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_seeds_side_by_side_are_seeds_alone(make_config, make_batch, kind: type) -> None:
    """Each with batches of its own: a slice of the stack is the learner of that seed."""
    several = [batches(make_batch, 1), batches(make_batch, 2)]
    alone = [after(made(make_config, kind, seed=3 + i), several[i]) for i in range(2)]
    joined = [tf.nest.map_structure(lambda *x: np.concatenate(x), *each) for each in zip(*several, strict=True)]
    together = after(made(make_config, kind, seed=3, seeds=2), joined)
    stacked = [(v, *each) for v, *each in zip(together, *alone, strict=True) if np.ndim(v) > 1]
    assert len(stacked) > 2
    for both, *each in stacked:
        np.testing.assert_allclose(both, np.concatenate(each), rtol=1e-4, atol=1e-5)

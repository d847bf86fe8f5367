"""A2C, A3C and PPO: who trains what, from which pages, and that nothing is left to chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import ActionDimension, FeatureConfig
from pipeline.learning.a2c import A2c
from pipeline.learning.a3c import A3c
from pipeline.learning.policy_gradient import OnPolicy
from pipeline.learning.policy_value import served
from pipeline.learning.ppo import Ppo
from pipeline.learning.rollouts import Lesson, Pages, Turn

SIGMA = 0.3
BASELINE = 2  # the number of the baseline, beside two policies
LEARNERS = {"a2c": (A2c, schema.A2c), "a3c": (A3c, schema.A3c), "ppo": (Ppo, schema.Ppo)}
SMALL = {"gamma": 0.8, "tower": (8,), "head": (16,), "learning_rate": 0.01, "actor_learning_rate": 0.01}


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


def dense(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"dense": np.asarray(x, "f4").reshape(-1, 1)}


def some_pages(n: int = 16, seed: int = 0, width: int = 1, dimensions: int = 1, **columns: Any) -> Pages:
    """n pages drawn around the baseline action 1, with rewards of no reason."""
    rng = np.random.default_rng(seed)
    state, following = ({"dense": x} for x in rng.normal(size=(2, n, width)).astype("f4"))
    noise = rng.normal(size=(n, dimensions)).astype("f4")
    full = {
        "state": state,
        "next_state": following,
        "raw": 1 + SIGMA * noise,
        "mean": np.ones((n, dimensions), "f4"),
        "carried": np.zeros((n, dimensions), "f4"),
        "sigma": np.full((n, dimensions), SIGMA, "f4"),
        "log_density": (-0.5 * noise**2 - np.log(SIGMA) - 0.5 * np.log(2 * np.pi)).sum(axis=1).astype("f4"),
        "reward": rng.normal(size=n).astype("f4"),
        "discount": np.zeros(n, "f4"),
        "linked": np.zeros(n, "f4"),
    }
    return Pages(**{**full, **columns})


def taught(learner: OnPolicy, lessons: int = 5, policy: int = 0, active: bool = True, **options: Any) -> Lesson:
    for i in range(lessons):
        lesson = learner.learn(some_pages(seed=i, **options), Turn(policy, i % 2, active, i))
    return lesson


def evaluated(learner: OnPolicy, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the only seed: V [K, B], D [K, B] and action [K, B] of the only dimension."""
    value, gain, action = (part.numpy()[0] for part in learner.evaluate(dense(x)))
    return value, gain, action[..., 0]


# Who trains what -------------------------------------------------------------------------------------------------


def trained(learner: OnPolicy, loss: str, policy: int) -> set[str]:
    """The parts that a gradient of the loss reaches, None elsewhere; of heads it must be that policy's alone."""
    learner._working = learner.networks  # of a3c, whose gradients are taken at a copy
    whose = np.eye(3, dtype="f4")[policy][:2]
    examples = learner._examples(some_pages(64, seed=9), whose)
    names = ("tower", "value", "gain", "actor")
    groups = dict(zip(names, (list(g.variables) for g in learner.networks.groups), strict=True))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(getattr(learner.losses(examples, whose), loss))
    reached = set()
    for name, found in tape.gradient(total, groups).items():
        assert all(g is None for g in found) or all(g is not None for g in found), name
        if found[0] is not None and any(np.abs(g).max() > 0 for g in found):
            reached.add(name)
            if name in ("gain", "actor"):
                assert all(np.abs(g[:, 1 - policy]).max() == 0 for g in found)
    return reached


def test_each_loss_trains_its_own_part_and_the_tower(make, kind: str) -> None:
    learner = make(kind)
    taught(learner, 3)
    taught(learner, 3, BASELINE)
    assert trained(learner, "advantage_loss", 0) == {"tower", "gain"}
    assert trained(learner, "actor_loss", 0) == {"tower", "actor"}
    assert trained(learner, "value_loss", BASELINE) == {"tower", "value"}
    assert trained(learner, "value_loss", 0) == trained(learner, "actor_loss", BASELINE) == set()


@pytest.mark.parametrize("by", [("value",), ("actor",), ()])
def test_the_tower_is_trained_by_named_losses_only(make, by: tuple[str, ...]) -> None:
    learner = make("ppo", tower_trained_by=by)
    taught(learner, 3)
    for loss, name in (("advantage_loss", "value"), ("actor_loss", "actor")):
        assert ("tower" in trained(learner, loss, 0)) == (name in by)


def members(learner: OnPolicy, policy: int) -> list[np.ndarray]:
    heads = [v for group in learner.networks.groups[2:] for v in group.variables]
    slots = [v for adam in learner.adams[2:] for v in (*adam.first, *adam.second)]
    return [v.numpy()[:, policy] for v in (*heads, *slots)]


def test_a_rollout_moves_nobody_elses_heads(make, kind: str) -> None:
    """Not even by the moments that they have from rollouts of their own."""
    learner = make(kind)
    taught(learner, 3, policy=1)
    before, value = members(learner, 1), [v.numpy() for v in learner.networks.groups[1].variables]
    taught(learner, 3, policy=0)
    for old, new in zip(before, members(learner, 1), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, variable in zip(value, learner.networks.groups[1].variables, strict=True):
        np.testing.assert_array_equal(old, variable)


# A fresh policy is the baseline ----------------------------------------------------------------------------------

ODD = {"action": (ActionDimension("a", 1.1, (0.3, 1.7)), ActionDimension("b", 0.1, (0.1, 0.9)))}


def test_a_policy_is_the_baseline_to_the_last_bit_until_it_may_move(make, kind: str) -> None:
    learner, states = make(kind, ODD), dense(np.linspace(-2, 2, 100))
    expected = np.broadcast_to(np.array([1.1, 0.1], "f4"), (100, 2))
    np.testing.assert_array_equal(learner.evaluate(states).action[0, 0], expected)
    mean = np.tile(np.array([[1.1, 0.1]], "f4"), (16, 1))
    taught(learner, 5, policy=0, active=False, dimensions=2, mean=mean)
    taught(learner, 5, policy=1, active=True, dimensions=2, mean=mean)
    taught(learner, 5, policy=BASELINE, dimensions=2)
    waiting, moving = learner.evaluate(states).action.numpy()[0]
    np.testing.assert_array_equal(waiting, expected)
    assert (moving[:, 0] != np.float32(1.1)).all()


def test_a_policy_is_worth_what_the_baseline_is_until_its_pages_say_otherwise(make, kind: str) -> None:
    learner = make(kind)
    taught(learner, 5, policy=BASELINE)
    value, gain, _ = evaluated(learner, np.linspace(-2, 2, 9))
    assert (value != 0).all()
    np.testing.assert_array_equal(gain, 0)


def test_a_mean_that_left_its_range_is_called_back_and_not_driven_further(make) -> None:
    space = make("ppo").space
    units, pull = tf.constant([[[3.0], [3.0], [-3.0], [0.5]]]), tf.constant([[[1.0], [-1.0], [-1.0], [-1.0]]])
    with tf.GradientTape() as tape:
        tape.watch(units)
        mean = served(space, units)
        loss = tf.reduce_sum(mean * pull)
    np.testing.assert_array_equal(mean[0, :, 0], [2.0, 2.0, 0.0, 1.5])
    np.testing.assert_array_equal(tape.gradient(loss, units)[0, :, 0], [1.0, 0.0, -1.0, -1.0])


# Pages of another policy -----------------------------------------------------------------------------------------


def test_pages_that_a_distant_policy_decided_are_left_out_and_counted(make, kind: str) -> None:
    """Four pages were decided around 2, which is 3.3 sigmas from here; whatever they brought, nothing changes."""
    mean = np.ones((16, 1), "f4")
    mean[::4] = 2
    found = []
    for reward in (0.0, 1e6):
        learner, pages = make(kind, **({"minibatches": 1} if kind == "ppo" else {})), some_pages(mean=mean)
        pages.reward[::4] = reward
        lesson = learner.learn(pages, Turn(0, 0, True, 0))
        assert lesson.left_out.tolist() == [4]
        np.testing.assert_allclose(lesson.losses["off_policy_share"], [0.25])
        found.append([v.numpy() for v in learner.networks.variables])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_advantage_is_summed_across_a_page_that_was_left_out(make, kind: str) -> None:
    """Row 0 goes on to row 1, which is of a distant policy: what came after it is V's to say."""
    mean, linked = np.ones((16, 1), "f4"), np.zeros(16, "f4")
    mean[1], linked[0] = 2, 1
    learner, whose = make(kind), np.array([1, 0], "f4")
    pages = some_pages(mean=mean, linked=linked, discount=np.ones(16, "f4"))
    pages.reward[1] = 1e6
    target = learner._examples(pages, whose).target[0]  # V is 0 yet
    assert target[0] == pages.reward[0]
    assert learner._examples(pages._replace(mean=np.ones((16, 1), "f4")), whose).target[0, 0] > 1e5


def test_a_rollout_of_nothing_but_distant_pages_changes_nothing(make, kind: str) -> None:
    learner = make(kind)
    before = [v.numpy() for v in learner.variables]
    lesson = learner.learn(some_pages(mean=np.full((16, 1), 2, "f4")), Turn(0, 0, True, 0))
    assert all(np.isfinite(x).all() for x in lesson.losses.values())
    for old, new in zip(before, learner.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_ratios_are_to_the_logged_density(make, kind: str) -> None:
    """Logged as half as likely as it is now: of every page the ratio is 2."""
    pages = some_pages()
    lesson = make(kind).learn(
        pages._replace(log_density=pages.log_density - np.log(2, dtype="f4")), Turn(0, 0, False, 0)
    )
    np.testing.assert_allclose(lesson.losses["ratio_mean"], [2.0], rtol=1e-5)
    np.testing.assert_allclose(lesson.losses["clip_share"], [1.0])
    np.testing.assert_allclose(lesson.losses["effective_share"], [1.0], rtol=1e-5)


def test_mu_rests_where_it_is_further_from_what_was_served_than_max_kl(make) -> None:
    """.1 / .3 sigmas are a KL of .056: within max_lag, so D learns."""
    mean = np.full((16, 1), 1.1, "f4")
    for max_kl, moves in ((0.05, False), (0.06, True)):
        learner = make("ppo", max_kl=max_kl)
        learner.learn(some_pages(mean=mean), Turn(0, 0, True, 0))
        _, gain, action = evaluated(learner, np.linspace(-2, 2, 9))
        assert (gain[0] != 0).all()
        assert (action[0] != 1).any() == moves


# A3C -------------------------------------------------------------------------------------------------------------


def test_a_worker_learns_at_what_it_copied_at_its_last_turn(make) -> None:
    """Two turns of different workers from fresh copies add up the steps that each would take from there."""
    pages = [some_pages(seed=i) for i in (1, 2)]
    learner = make("a3c", workers=2)
    learner.learn(pages[0], Turn(0, 0, True, 0))
    after_first = [v.numpy() for v in learner.networks.variables]
    fresh = make("a3c", workers=2).networks.variables
    for copy, shared in zip(learner.copies[0], after_first, strict=True):
        np.testing.assert_array_equal(copy, shared)
    for copy, start in zip(learner.copies[1], fresh, strict=True):
        np.testing.assert_array_equal(copy, start)
    at_copy = make("a3c", workers=2)._examples(pages[1], np.array([1, 0], "f4"))
    learner.learn(pages[1], Turn(0, 1, True, 1))
    for mine, theirs in zip(learner._working.variables, fresh, strict=True):
        np.testing.assert_array_equal(mine, theirs)  # where its gradient was taken
    np.testing.assert_array_equal(at_copy.target[0], pages[1].reward)  # V of the copy: none yet
    for copy, shared in zip(learner.copies[1], learner.networks.variables, strict=True):
        np.testing.assert_array_equal(copy, shared)


def test_with_one_worker_a3c_is_a2c(make) -> None:
    one, a2c = make("a3c", workers=1), make("a2c")
    for learner in (one, a2c):
        for i in range(5):
            learner.learn(some_pages(seed=i), Turn(0, 0, True, i))
    for a, b in zip(one.networks.variables, a2c.networks.variables, strict=True):
        np.testing.assert_array_equal(a, b)


# Nothing left to chance ------------------------------------------------------------------------------------------


def test_same_seed_same_weights_to_the_last_bit(make, kind: str) -> None:
    learners = [make(kind, seed=seed) for seed in (3, 3, 4)]
    for learner in learners:
        taught(learner, 4)
    one, same, other = ([v.numpy() for v in learner.variables] for learner in learners)
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_seeds_side_by_side_are_seeds_alone(make, kind: str) -> None:
    alone, together = [make(kind, seed=seed) for seed in (3, 4)], make(kind, seed=3, seeds=2)
    for learner in (*alone, together):
        taught(learner, 4)
        taught(learner, 2, policy=BASELINE)
    for i, learner in enumerate(alone):
        for mine, its in zip(together.networks.variables, learner.networks.variables, strict=True):
            np.testing.assert_allclose(mine[i], its[0], rtol=1e-4, atol=1e-6, err_msg=mine.name)


def test_a_config_of_baselines_only_still_learns_v(make, kind: str) -> None:
    learner = make(kind, policies=0)
    lesson = taught(learner, 3, policy=0)
    assert set(lesson.losses) == {"value_loss", "value_mean", "value_abs", "q_abs"}
    assert (learner.networks(dense(np.ones(3)), tf.zeros([0])).value.numpy() != 0).all()


def test_settings_are_of_the_kind(make_config) -> None:
    """Nothing of a replay is accepted that would not be used."""
    config: FeatureConfig = make_config({"algorithm": schema.Ppo(gamma=0.9)})
    assert not hasattr(config.algorithm, "replay")

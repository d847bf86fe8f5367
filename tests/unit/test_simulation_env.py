"""The environment: Gymnasium's own checker, seeding, and the same sessions as the batch plays."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pipeline.simulation.env import FeedEnv
from pipeline.simulation.params import World
from pipeline.simulation.rollout import constant, play


def episode(env: FeedEnv, action: float) -> tuple[float, int, bool]:
    reward, pages = 0.0, 0
    while True:
        _, r, terminated, truncated, _ = env.step(np.array([action], np.float32))
        reward, pages = reward + r, pages + 1
        if terminated or truncated:
            return reward, pages, truncated


def test_gymnasiums_checker_finds_nothing():
    with warnings.catch_warnings():  # the action is the product's own, not normalised: peers wrap it in RescaleAction
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space.*")
        check_env(FeedEnv(), skip_render_check=True)  # there is nothing to see


def test_episodes_are_the_sessions_that_the_batch_plays():
    env = FeedEnv()
    env.reset(seed=11)
    found = [episode(env, 1.5)]
    for _ in range(25):
        env.reset()
        found.append(episode(env, 1.5))
    played = play(World(), constant(1.5), env.population, np.arange(26))
    assert [reward for reward, _, _ in found] == pytest.approx(played.reward.tolist(), abs=1e-9)
    assert [pages for _, pages, _ in found] == played.pages.tolist()


def test_a_seed_starts_the_same_population_and_resets_walk_through_it():
    first, second = FeedEnv(), FeedEnv()
    starts = [[env.reset(seed=3)[0], env.reset()[0], env.reset()[0]] for env in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*starts, strict=True))
    assert not np.array_equal(starts[0][0], starts[0][1])
    assert not np.array_equal(first.reset(seed=4)[0], starts[0][0])


def test_without_a_seed_populations_differ():
    assert not np.array_equal(FeedEnv().reset()[0], FeedEnv().reset()[0])


def test_a_session_is_truncated_at_max_pages_and_terminated_by_a_leave():
    env = FeedEnv(max_pages=2)
    endings = set()
    for seed in range(30):
        env.reset(seed=seed)
        _, pages, truncated = episode(env, 2.0)
        assert pages <= 2
        assert pages == 2 or not truncated
        endings.add((pages, truncated))
    assert endings == {(1, False), (2, False), (2, True)}


def test_observations_stay_inside_the_space():
    env = FeedEnv()
    env.action_space.seed(1)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            done = terminated or truncated


def test_an_action_outside_the_range_is_clipped():
    results = []
    for action in (2.0, 17.0):
        env = FeedEnv()
        env.reset(seed=5)
        results.append(episode(env, action))
    assert results[0] == results[1]

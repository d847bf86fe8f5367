"""TD3 of Stable-Baselines3 (Fujimoto et al. 2018) on the feeds that ours learn from, all of them its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import TD3
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.courses import Decide
from benchmarks.feeding import FEEDS, Scaling, SideBySide
from benchmarks.rows import GAMMA, Settings
from pipeline.simulation.draws import Array
from pipeline.simulation.env import FeedEnv
from pipeline.simulation.params import World


class FeedVec(VecEnv):
    """`FeedEnv` for many sessions at once, with scaled observations."""

    def __init__(self, world: World, seed: int, size: int = FEEDS) -> None:
        env, self._scaling = FeedEnv(world), Scaling.of(world)
        unbounded = gymnasium.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        super().__init__(size, unbounded, env.action_space)
        self._feed = SideBySide(world, int(np.random.default_rng([seed, 1]).integers(2**62)), size)
        self._actions = np.zeros(size)

    def reset(self) -> Array:
        return self._scaling(self._feed.state)

    def step_async(self, actions: Array) -> None:
        self._actions = actions[:, 0].astype(np.float64)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        turned = self._feed.turn(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = turned.left | turned.cut
        last = self._scaling(turned.reached)
        for i in np.flatnonzero(over):
            infos[i] = {"terminal_observation": last[i], "TimeLimit.truncated": bool(turned.cut[i])}
        return self._scaling(self._feed.state), turned.reward.astype(np.float32), over, infos

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: object = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: object, indices: object = None, **kwargs: object) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Sequence[int] | None = None) -> list[bool]:
        return [False] * self.num_envs


class Td3School:
    def __init__(self, world: World, settings: Settings, seed: int) -> None:
        noise = NormalActionNoise(np.zeros(1), np.full(1, settings["noise"]))  # in half ranges, as TD3 scales actions
        gradient_steps = settings["updates_per_transition"] * FEEDS
        self._model = TD3(
            "MlpPolicy",
            FeedVec(world, seed),
            learning_rate=settings["learning_rate"],
            buffer_size=settings["replay"],
            learning_starts=settings["learning_starts"],
            batch_size=settings["batch_size"],
            gamma=GAMMA,
            train_freq=1,
            gradient_steps=round(gradient_steps),
            action_noise=VectorizedActionNoise(noise, FEEDS),
            policy_kwargs={"net_arch": list(settings["layers"])},
            seed=seed,
        )
        self._started = False

    @property
    def transitions(self) -> int:
        return int(self._model.num_timesteps)

    @property
    def updates(self) -> int:
        return int(self._model._n_updates)

    def learn(self, transitions: int) -> None:
        if transitions > self.transitions:
            more = transitions - (self.transitions if self._started else 0)
            self._model.learn(more, reset_num_timesteps=not self._started)
            self._started = True

    def decider(self, number: int) -> Decide:
        def decide(states: Array) -> Array:
            return np.asarray(self._model.predict(states, deterministic=True)[0])[:, 0].astype(np.float64)

        return decide


def school(world: World, settings: Settings, seed: int) -> Td3School:
    torch.set_num_threads(1)
    return Td3School(world, settings, seed)

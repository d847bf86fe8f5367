"""Two of Gymnasium's tasks, played by several players at once, each in games of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np

from pipeline.config.schema import (
    ActionDimension,
    Algorithm,
    Bucket,
    Buckets,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Reward,
)

Act = Callable[[np.ndarray], np.ndarray]  # states [n, width] -> actions [n]


class Task(NamedTuple):
    name: str  # in Gymnasium
    width: int  # of a state
    baseline: float
    low: float
    high: float
    to_play: Callable[[float], object]  # an action, as the environment wants it
    solved: float  # mean return

    def config(self, algorithm: Algorithm) -> FeatureConfig:
        """As of a feed: a number is the action, and the state's numbers are features."""
        return FeatureConfig(
            schema_version=1,
            name="classic",
            kv_prefix="c",
            features=tuple(Dense(f"s{i}", f"user.s{i}") for i in range(self.width)),
            fusion=PayPlusAPhi(1.0),
            action=(ActionDimension("a", self.baseline, (self.low, self.high)),),
            reward=Reward({"click": 1.0}),
            algorithm=algorithm,
            policies=(Policy("base", "baseline"), Policy("learned", "learned")),
            buckets=Buckets("salt", (Bucket("all", "base", (0, 99)),)),
        )


# Solved as Gymnasium's registry has it (reward_threshold); Pendulum has no threshold there: what peers come to.
CART_POLE = Task("CartPole-v1", 4, 0.0, 0.0, 1.0, lambda a: int(a > 0.5), 475.0)
# The same for a policy that draws a number: to the right where it is above 0
LEANING_POLE = Task("CartPole-v1", 4, 0.0, -1.0, 1.0, lambda a: int(a > 0), 475.0)
PENDULUM = Task("Pendulum-v1", 3, 0.0, -2.0, 2.0, lambda a: np.array([a], np.float32), -200.0)


class Moved(NamedTuple):
    """One step of every game."""

    state: np.ndarray  # [n, width] before
    next_state: np.ndarray  # after; of a game that ended the last one
    reward: np.ndarray  # [n]
    discount: np.ndarray  # [n] 0 where the game was lost or won; a game that is cut at its greatest length goes on
    over: np.ndarray  # [n] the next state of the game is that of a new one


class Games:
    """n of them side by side, each begun again when it is over."""

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        self._task = task
        self._games = [gymnasium.make(task.name) for _ in seeds]
        begun = [game.reset(seed=seed)[0] for game, seed in zip(self._games, seeds, strict=True)]
        self.states = np.array(begun, np.float32)

    def move(self, actions: np.ndarray) -> Moved:
        before, self.states = self.states, self.states.copy()
        told = [game.step(self._task.to_play(float(a))) for game, a in zip(self._games, actions, strict=True)]
        after = np.array([each[0] for each in told], np.float32)
        reward, lost, cut = (np.array([float(each[i]) for each in told], np.float32) for i in (1, 2, 3))
        over = (lost + cut) > 0
        self.states[:] = after
        for i in np.flatnonzero(over):
            self.states[i] = self._games[i].reset()[0]
        return Moved(before, after, reward, 1 - lost, over)


def returns(task: Task, act: Act, seeds: Sequence[int]) -> np.ndarray:
    """[n] what a game of each seed brings from its beginning to its end."""
    games, totals, going = Games(task, seeds), np.zeros(len(seeds)), np.ones(len(seeds), bool)
    while going.any():
        moved = games.move(act(games.states))
        totals += np.where(going, moved.reward, 0.0)
        going &= ~moved.over
    return totals

"""Learners at the games: the pipeline's own, fed as a trainer feeds them, but by their own exploration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import structs

from benchmarks.classics.rows import Replaying, Rolling, Row
from benchmarks.classics.tasks import Games, Moved, Task, returns
from pipeline.features.inputs import DENSE
from pipeline.learning.learner import Batch
from pipeline.learning.learners import learner_of
from pipeline.learning.rollouts import Pages, Turn

_EVALUATIONS = 10_000  # seeds of games that are measured begin here, beyond those that are learned from


class Point(NamedTuple):
    steps: int
    returns: tuple[float, ...]  # mean over the measured games, of each seed


class Player(Protocol):
    def play(self, steps: int) -> Iterator[int]:
        """Learn; yields how many steps each seed has done, every now and then."""

    def act(self, states: np.ndarray) -> np.ndarray:
        """[S, n, width] -> [S, n], without exploration."""


def measured(player: Player, task: Task, seeds: int, games: int) -> tuple[float, ...]:
    """The same games for all seeds."""
    starts = [_EVALUATIONS + i for _ in range(seeds) for i in range(games)]

    def act(states: np.ndarray) -> np.ndarray:
        return player.act(states.reshape(seeds, games, -1)).ravel()

    return tuple(returns(task, act, starts).reshape(seeds, games).mean(axis=1).tolist())


def own_rows(every: np.ndarray, seeds: int) -> np.ndarray:
    """Of what all seeds say of all states, [S, S n], what each says of its own, [S, n]."""
    return every.reshape(seeds, seeds, -1)[np.arange(seeds), np.arange(seeds)]


class ReplayPlayer:
    """All seeds at once, each with a game and a memory of its own."""

    def __init__(self, row: Row, seeds: range) -> None:
        self._way: Replaying = row.way
        algorithm = structs.replace(row.algorithm, seed=seeds.start, seeds=len(seeds))
        self._learner = learner_of(row.task.config(algorithm))
        self._seeds, self._task, self._batch = len(seeds), row.task, algorithm.batch_size
        self._games = Games(row.task, seeds)
        self._rngs = [np.random.default_rng(seed) for seed in seeds]  # a seed alone would draw the same
        self._memory: dict[str, np.ndarray] = {}  # of every step, [steps, S, ...]
        self._done = 0

    def act(self, states: np.ndarray) -> np.ndarray:
        flat = states.reshape(-1, self._task.width)
        return own_rows(self._learner.evaluate({DENSE: flat}).action.numpy()[:, 0, :, 0], self._seeds)

    def play(self, steps: int) -> Iterator[int]:
        way = self._way
        for step in range(1, steps + 1):
            action = self._explored(step / steps, step <= way.warm_up)
            self._keep(steps, self._games.move(action), action)
            if step > way.warm_up and step % way.every == 0:
                self._learner.steps(self._drawn(way.updates), np.array([True]))
            if step % 1000 == 0 or step == steps:
                yield step

    def _explored(self, done: float, at_random: bool) -> np.ndarray:
        """[S] with the way's noise: of a grid any action now and then, else a Gaussian around the learner's."""
        task, way = self._task, self._way
        if way.greedy_after is not None:
            share = way.noise + (1 - way.noise) * max(0.0, 1 - done / way.greedy_after)
            anything = np.where(self._each(lambda rng: rng.random()) < 0.5, task.low, task.high)
            return np.where(at_random | (self._each(lambda rng: rng.random()) < share), anything, self._chosen())
        if at_random:
            return self._each(lambda rng: rng.uniform(task.low, task.high))
        sigma = way.noise * (task.high - task.low) / 2
        return np.clip(self._chosen() + sigma * self._each(lambda rng: rng.normal()), task.low, task.high)

    def _each(self, draw: Callable[[np.random.Generator], float]) -> np.ndarray:
        return np.array([draw(rng) for rng in self._rngs])

    def _chosen(self) -> np.ndarray:
        return self.act(self._games.states[:, None])[:, 0]

    def _keep(self, steps: int, moved: Moved, action: np.ndarray) -> None:
        row = {"action": action, **{name: getattr(moved, name) for name in _COLUMNS}}
        if not self._memory:
            self._memory = {name: np.zeros((steps, *x.shape), np.float32) for name, x in row.items()}
        for name, x in row.items():
            self._memory[name][self._done] = x
        self._done += 1

    def _drawn(self, updates: int) -> Batch:
        """[updates, S, B, ...], each seed from its own."""
        at = np.stack([rng.integers(0, self._done, (updates, self._batch)) for rng in self._rngs], axis=1)
        own = np.arange(self._seeds)[None, :, None]
        state, following, reward, discount = (self._memory[name][at, own] for name in _COLUMNS)
        action, reward = self._memory["action"][at, own][..., None], reward * np.float32(self._way.reward_scale)
        # All pages count as the baseline's for V, where there is one: here it is the value of whoever plays
        return Batch({DENSE: state}, {DENSE: following}, action, reward, discount, np.ones_like(reward))


_COLUMNS = ("state", "next_state", "reward", "discount")


class RolloutPlayer:
    """One seed: a rollout is one policy's, and it is learned from at once."""

    def __init__(self, row: Row, seeds: range) -> None:
        self._way: Rolling = row.way
        (seed,) = seeds
        self._learner = learner_of(row.task.config(structs.replace(row.algorithm, seed=seed)))
        self._task, self._updates = row.task, 0
        self._rng = np.random.default_rng(seed)
        self._games = Games(row.task, [1000 * seed + i for i in range(self._way.games)])

    def act(self, states: np.ndarray) -> np.ndarray:
        flat = states.reshape(-1, self._task.width)
        return self._learner.evaluate({DENSE: flat}).action.numpy()[:, 0, :, 0]

    def play(self, steps: int) -> Iterator[int]:
        done, told, each = 0, 0, self._way.games * self._way.length
        while done < steps:
            lesson = self._learner.learn(self._rollout(), Turn(0, 0, True, self._updates))
            self._updates += lesson.updates
            done += each
            if done - told >= 1000 or done >= steps:
                told = done
                yield done

    def _rollout(self) -> Pages:
        """Games one after another, each in its order."""
        way, parts = self._way, []
        for _ in range(way.length):
            mean = self.act(self._games.states)[0].astype(np.float32)
            noise = self._rng.normal(size=len(mean)).astype(np.float32)
            raw = mean + np.float32(way.sigma) * noise
            density = -0.5 * noise**2 - np.log(way.sigma) - 0.5 * np.log(2 * np.pi)
            parts.append((mean, raw, density, self._games.move(np.clip(raw, self._task.low, self._task.high))))
        mean, raw, density = (_in_order([part[i] for part in parts]) for i in range(3))
        state, following, reward, discount, over = (_in_order([part[3][i] for part in parts]) for i in range(5))
        last = np.zeros((way.games, way.length), bool)
        last[:, -1] = True
        linked = ~(over | last.ravel())
        wide = (x[:, None].astype(np.float32) for x in (raw, mean, np.zeros_like(mean), np.full_like(mean, way.sigma)))
        flat = (x.astype(np.float32) for x in (density, reward * way.reward_scale, discount, linked))
        return Pages({DENSE: state}, {DENSE: following}, *wide, *flat)


def _in_order(columns: list[np.ndarray]) -> np.ndarray:
    """[length] of [games, ...] -> [games * length, ...], a game's steps together."""
    stacked = np.stack(columns, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])

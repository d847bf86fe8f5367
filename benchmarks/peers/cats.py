"""CATS of Vowpal Wabbit (Majzoubi et al. 2020): a contextual bandit with a continuous action, which counts the present
page alone."""

from __future__ import annotations

import numpy as np
from vowpalwabbit import Workspace

from benchmarks.courses import Decide
from benchmarks.feeding import FEEDS, Scaling, SideBySide
from benchmarks.rows import Settings
from pipeline.simulation.draws import Array
from pipeline.simulation.params import World

_DIGITS = 4  # of a feature


class CatsSchool:
    def __init__(self, world: World, settings: Settings, seed: int) -> None:
        objective, self._random = world.objective, np.random.default_rng([seed, 2])
        self._feed = SideBySide(world, int(np.random.default_rng([seed, 1]).integers(2**62)), FEEDS)
        self._scaling = Scaling.of(world)
        self._vw = Workspace(
            f"--cats_pdf {settings['actions']} --bandwidth {settings['bandwidth']} --min_value {objective.low} "
            f"--max_value {objective.high} --epsilon {settings['epsilon']} -l {settings['learning_rate']} "
            f"--random_seed {seed} --quiet"
        )
        self.transitions = self.updates = 0

    def learn(self, transitions: int) -> None:
        while self.transitions < transitions:
            contexts = described(self._scaling(self._feed.state))
            drawn = [self._drawn(self._vw.predict(context)) for context in contexts]
            reward = self._feed.turn(np.array([action for action, _ in drawn])).reward
            for context, (action, density), r in zip(contexts, drawn, reward, strict=True):
                self._vw.learn(f"ca {action:.6f}:{-r:.4f}:{density:.6f} {context}")
            self.transitions += len(reward)
            self.updates += len(reward)

    def decider(self, number: int) -> Decide:
        """The middle of where its density is highest."""
        return lambda states: np.array([peak(self._vw.predict(context)) for context in described(states)])

    def _drawn(self, pieces: list[tuple[float, float, float]]) -> tuple[float, float]:
        """An action from a density in pieces (from, to, height), and the density there."""
        low, high, height = np.array(pieces).T
        mass = (high - low) * height
        piece = min(int(np.searchsorted(np.cumsum(mass), self._random.random() * mass.sum())), len(mass) - 1)
        return float(self._random.uniform(low[piece], high[piece])), float(height[piece])


def described(states: Array) -> list[str]:
    """Features in Vowpal Wabbit's words, those that are 0 left out."""
    return ["| " + " ".join(f"{i}:{row[i]:.{_DIGITS}f}" for i in np.flatnonzero(row)) for row in states]


def peak(pieces: list[tuple[float, float, float]]) -> float:
    low, high, _ = max(pieces, key=lambda piece: piece[2])
    return (low + high) / 2


def school(world: World, settings: Settings, seed: int) -> CatsSchool:
    return CatsSchool(world, settings, seed)

"""A feed of three pages at most, in numpy, whose truth is known: what is done on a page changes the next ones.

The logged side explores with the project's own noise; the truth of a policy is its mean return over many sessions that
it decides itself, with other draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model_export.evaluation.logged import Sessions
from pipeline.exploration import draw

THETA, SIGMA, LOW, HIGH = 0.05, 0.5, 0.8, 1.2
PAGES = 3
Mean = Callable[[np.ndarray], np.ndarray]  # of the state


def deployed(state: np.ndarray) -> np.ndarray:
    return 0.9 + 0.1 * state


def other(state: np.ndarray) -> np.ndarray:
    return 1.2 - 0.1 * state


class Played(NamedTuple):
    """[sessions, pages]; what comes behind a session's end is not in `there`."""

    there: np.ndarray
    states: np.ndarray
    means: np.ndarray
    raw: np.ndarray
    executed: np.ndarray
    rewards: np.ndarray  # 0 or 1

    @property
    def returns(self) -> np.ndarray:
        return np.where(self.there, self.rewards, 0.0).sum(axis=1)


def play(mean: Mean, epsilon: np.ndarray, luck: np.random.Generator) -> Played:
    """`epsilon`: the draws of the exploration, [sessions, pages]."""
    size = len(epsilon)
    state, noise, here = np.zeros(size), np.zeros(size), np.ones(size, np.bool_)
    pages = []
    for page in range(PAGES):
        noise = (1 - THETA) * noise + SIGMA * epsilon[:, page]
        raw = mean(state) + noise
        executed = np.clip(raw, LOW, HIGH)
        reward = (luck.random(size) < (1.2 - executed) * (1 + page) + 0.1 * state).astype(np.float64)
        pages.append((here.copy(), state, mean(state), raw, executed, reward))
        here = here & (luck.random(size) < executed / 1.25)
        state = np.clip(2 * (executed - 0.8) + 0.1 * luck.normal(size=size), 0, 1)
    return Played(*(np.stack(column, axis=1) for column in zip(*pages, strict=True)))


def logged(size: int, salt: str, luck: np.random.Generator) -> Played:
    """Sessions that `deployed` decided, with draws as an agent makes them."""
    epsilon = [[draw(salt, f"session-{i}", page, "a") for page in range(PAGES)] for i in range(size)]
    return play(deployed, np.array(epsilon), luck)


def truth(mean: Mean, size: int = 2_000_000) -> float:
    """Its standard error is below 0.001."""
    luck = np.random.default_rng(99)
    return float(play(mean, luck.normal(size=(size, PAGES)), luck).returns.mean())


def sessions_of(played: Played) -> Sessions:
    size, lengths = len(played.there), played.there.sum(axis=1)

    def rows(table: np.ndarray) -> np.ndarray:
        return table[played.there][:, None]

    count = int(lengths.sum())
    return Sessions(
        names=tuple(f"session-{i}" for i in range(size)),
        users=tuple(f"user-{i}" for i in range(size)),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        gaps=np.ones(count, np.int64),
        rewards=played.rewards[played.there],
        raw=rows(played.raw),
        executed=rows(played.executed),
        means=rows(played.means),
        sigmas=np.full((count, 1), SIGMA),
        thetas=np.full((count, 1), THETA),
        low=np.array([LOW]),
        high=np.array([HIGH]),
    )

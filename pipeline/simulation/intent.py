"""How likely a session is a buyer's, judged from what the agent sees, and views: features of a page to decide by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.params import Params, World
from pipeline.simulation.rollout import Policy, Step, play

_SESSION = ("page_index", "clicks", "idle_pages", "last_clicks", "last_dwell_s", "shown_lean", "first_page")
_NEWTON_STEPS = 12


class Intent(NamedTuple):
    """Log odds, linear in visible columns."""

    weights: Array

    def probability(self, seen: Array, page: Array) -> Array:
        return _logistic(_columns(seen, page) @ self.weights)


def fit_intent(world: World, seed: int, sessions: int) -> Intent:
    """Logistic regression by Newton's method, on every page of sessions with random actions; a unit normal prior."""
    steps: list[Step] = []
    play(world, anything(world, np.random.default_rng(seed)), seed, np.arange(sessions), watch=steps)
    seen = [observing.vector(world.params, step.before).astype(np.float64) for step in steps]
    x = np.concatenate([_columns(v, step.before.page) for v, step in zip(seen, steps, strict=True)])
    y = np.concatenate([step.before.visitors.buyer for step in steps]).astype(np.float64)
    weights = np.zeros(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _logistic(x @ weights)
        curvature = (x * (p * (1.0 - p))[:, None]).T @ x + np.eye(x.shape[1])
        weights = weights + np.linalg.solve(curvature, x.T @ (y - p) - weights)
    return Intent(weights)


class View(Protocol):
    def __call__(self, sessions: Sessions) -> Array:
        """Features [n, width] of the present page of each session."""

    @property
    def width(self) -> int: ...


class Seen(NamedTuple):
    """What the agent sees: products of the session columns, alone and times the probability of a buyer."""

    params: Params
    intent: Intent

    def __call__(self, sessions: Sessions) -> Array:
        seen = observing.vector(self.params, sessions).astype(np.float64)
        session = np.column_stack([np.ones(len(seen)), seen[:, _at(self.params, _SESSION)]])
        return _mixed(session, self.intent.probability(seen, sessions.page))

    @property
    def width(self) -> int:
        return _width(1 + len(_SESSION))


class Everything(NamedTuple):
    """The same of someone who also knows intents, moods and patience, though not the future."""

    params: Params

    def __call__(self, sessions: Sessions) -> Array:
        seen = observing.vector(self.params, sessions).astype(np.float64)
        moods = (sessions.trust, sessions.goodwill, sessions.saturation, sessions.visitors.patience)
        session = np.column_stack([np.ones(len(seen)), seen[:, _at(self.params, _SESSION)], *moods])
        return _mixed(session, sessions.visitors.buyer.astype(np.float64))

    @property
    def width(self) -> int:
        return _width(1 + len(_SESSION) + 4)


def anything(world: World, random: np.random.Generator) -> Policy:
    """Uniform actions."""
    return lambda sessions: random.uniform(world.objective.low, world.objective.high, sessions.size)


def _mixed(session: Array, buyer: Array) -> Array:
    """Products of two columns, each pair once; all columns again times the probability; its square."""
    first, second = np.triu_indices(session.shape[1])
    return np.column_stack([session[:, first] * session[:, second], buyer[:, None] * session, buyer**2])


def _width(columns: int) -> int:
    return columns * (columns + 1) // 2 + columns + 1


def _at(params: Params, wanted: Sequence[str]) -> list[int]:
    names = observing.names(params)
    return [names.index(name) for name in wanted]


def _columns(seen: Array, page: Array) -> Array:
    """The visible columns, and again times how far the session is: habits tell less and less."""
    late = (page / (page + 2.0))[:, None]
    return np.column_stack([np.ones(len(seen)), seen, late * seen])


def _logistic(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))

"""Policies on what the agent sees, by fitted Q iteration (Ernst, Geurts and Wehenkel 2005) with a linear model.

Q(o, a) = (1, a, a^2) x basis(o) . weights, where the basis holds every visible column, and the products of the session
columns with each other, alone and times the probability that the user is a buyer: a mixture of a buyer's and a
browser's quadratic values. That probability is itself fitted, by logistic regression, from visible columns only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.params import Params, World
from pipeline.simulation.rollout import Policy, Step, play

_SESSION = ("page_index", "clicks", "idle_pages", "last_clicks", "last_dwell_s", "shown_lean", "first_page")
_ACTIONS = 21  # of the grid on which Q is maximised
_EXPLORATION = 0.5  # in action units, around the policy that gathers data
_RIDGE = 1e-6


class Intent(NamedTuple):
    """Fitted log odds that a session is a buyer's."""

    weights: Array

    def probability(self, seen: Array, page: Array) -> Array:
        odds = _intent_columns(seen, page) @ self.weights
        return 1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0)))


class Fit(NamedTuple):
    """A greedy policy, as data."""

    params: Params
    intent: Intent
    weights: Array  # [3, basis]: of 1, a, a^2
    actions: Array  # the grid
    hidden: bool = False

    def __call__(self, sessions: Sessions) -> Array:
        values = self.values(basis(self.params, self.intent, sessions, hidden=self.hidden))
        return self.actions[np.argmax(values, axis=1)]

    def values(self, columns: Array) -> Array:
        """Q of each action of the grid, [n, actions]."""
        powers = np.stack([np.ones_like(self.actions), self.actions, self.actions**2])
        return np.asarray((columns @ self.weights.T) @ powers)


class Table(NamedTuple):
    """Steps of many sessions as rows."""

    columns: Array  # [rows, basis]
    action: Array
    reward: Array
    next_row: Array  # its own row where the session ended
    goes_on: Array  # 1.0 or 0.0


def best(world: World, seed: int, sessions: int, *, rounds: int = 3, sweeps: int = 80, hidden: bool = False) -> Fit:
    """Greedy on the fitted Q; each round gathers fresh sessions around the policy of the one before."""
    random = np.random.default_rng(seed)
    intent: Intent | None = None
    policy: Policy = _anything(world, random)
    fit: Fit | None = None
    kept: list[Table] = []
    for number in range(rounds):
        users = np.arange(number * sessions, (number + 1) * sessions)
        steps: list[Step] = []
        play(world, policy, seed, users, watch=steps)
        intent = intent or fit_intent(world.params, steps)
        kept.append(_table(world, intent, steps, hidden=hidden))
        fit = _iterate(world, intent, _joined(kept), sweeps if world.objective.gamma else 1, hidden=hidden)
        policy = _around(world, fit, random)
    assert fit is not None
    return fit


def basis(params: Params, intent: Intent, sessions: Sessions, *, hidden: bool = False) -> Array:
    """[n, basis]. With `hidden`, of someone who sees the users' intents and moods as well."""
    seen = observing.vector(params, sessions).astype(np.float64)
    session = seen[:, _columns(params)]
    buyer = intent.probability(seen, sessions.page)
    if hidden:
        buyer = sessions.visitors.buyer.astype(np.float64)
        moods = (sessions.trust, sessions.goodwill, sessions.saturation, sessions.visitors.patience)
        session = np.column_stack([session, *moods])
    ones = np.ones((len(seen), 1))
    pairs = _pairs(np.column_stack([ones, session]))
    return np.column_stack([pairs, buyer[:, None] * pairs, buyer**2, seen[:, len(_SESSION) :]])


def fit_intent(params: Params, steps: list[Step], iterations: int = 12) -> Intent:
    """Logistic regression by Newton's method, on every page of every session."""
    columns = [_intent_columns(observing.vector(params, s.before).astype(np.float64), s.before.page) for s in steps]
    x = np.concatenate(columns)
    y = np.concatenate([s.before.visitors.buyer for s in steps]).astype(np.float64)
    weights = np.zeros(x.shape[1])
    for _ in range(iterations):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -30.0, 30.0)))
        curvature = (x * (p * (1.0 - p))[:, None]).T @ x + 1e-3 * len(x) * _RIDGE * np.eye(x.shape[1]) + np.eye(
            x.shape[1]
        )
        weights = weights + np.linalg.solve(curvature, x.T @ (y - p) - weights)
    return Intent(weights)


def _iterate(world: World, intent: Intent, table: Table, sweeps: int, *, hidden: bool) -> Fit:
    """Sweeps of value iteration; the normal equations are the same in each, only their targets change."""
    objective = world.objective
    powers = np.stack([np.ones_like(table.action), table.action, table.action**2], axis=1)
    x = (powers[:, :, None] * table.columns[:, None, :]).reshape(len(powers), -1)
    gram = x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1])
    solve = np.linalg.inv(gram)
    actions = np.linspace(objective.low, objective.high, _ACTIONS)
    fit = Fit(world.params, intent, np.zeros((3, table.columns.shape[1])), actions, hidden)
    for _ in range(sweeps):
        ahead = fit.values(table.columns).max(axis=1)[table.next_row]
        target = table.reward + objective.gamma * table.goes_on * ahead
        fit = fit._replace(weights=(solve @ (x.T @ target)).reshape(3, -1))
    return fit


def _table(world: World, intent: Intent, steps: list[Step], *, hidden: bool) -> Table:
    """Rows in the order of the steps. A session that is cut goes on from its last state (as truncation asks)."""
    offsets = np.cumsum([0, *(len(s.index) for s in steps)])
    next_row = []
    for number, step in enumerate(steps):
        own = offsets[number] + np.arange(len(step.index))
        if number + 1 < len(steps):
            own[~step.left] = offsets[number + 1] + np.arange(len(steps[number + 1].index))
        next_row.append(own)
    return Table(
        columns=np.concatenate([basis(world.params, intent, s.before, hidden=hidden) for s in steps]),
        action=np.concatenate([s.action for s in steps]),
        reward=np.concatenate([s.reward for s in steps]),
        next_row=np.concatenate(next_row),
        goes_on=np.concatenate([~s.left for s in steps]).astype(np.float64),
    )


def _joined(tables: list[Table]) -> Table:
    offsets = np.cumsum([0, *(len(t.action) for t in tables)])
    shifted = [t._replace(next_row=t.next_row + offset) for t, offset in zip(tables, offsets[:-1], strict=True)]
    return Table(*(np.concatenate(columns) for columns in zip(*shifted, strict=True)))


def _anything(world: World, random: np.random.Generator) -> Policy:
    return lambda sessions: random.uniform(world.objective.low, world.objective.high, sessions.count)


def _around(world: World, policy: Policy, random: np.random.Generator) -> Policy:
    return lambda sessions: policy(sessions) + _EXPLORATION * random.standard_normal(sessions.count)


def _columns(params: Params) -> list[int]:
    return [observing.names(params).index(name) for name in _SESSION]


def _intent_columns(seen: Array, page: Array) -> Array:
    """The visible columns, and again times how far the session is: habits tell less and less."""
    late = (page / (page + 2.0))[:, None]
    return np.column_stack([np.ones(len(seen)), seen, late * seen])


def _pairs(x: Array) -> Array:
    first, second = np.triu_indices(x.shape[1])
    return np.asarray(x[:, first] * x[:, second])

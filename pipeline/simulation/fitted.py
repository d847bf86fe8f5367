"""A second road to the best policy on what the agent sees: fitted Q iteration (Ernst, Geurts and Wehenkel 2005).

Q(o, a) = (1, a, a^2) x columns(o) . weights; the greedy policy of a linear model may jump where the searched one is
smooth, and it bootstraps where the search uses whole returns. Their errors have little in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.intent import View, anything
from pipeline.simulation.params import World
from pipeline.simulation.rollout import Policy, Step, play

_NOISE = 0.5  # around the policy that gathers data, in action units
_RIDGE = 1e-5
_ROUNDS = 4
_SWEEPS = 100  # at most
_SETTLED = 1e-3  # mean change of a value in a sweep at which sweeping ends


@dataclass(frozen=True)
class Greedy:
    world: World
    view: View
    weights: Array  # [3, columns]: of 1, a and a^2

    def __call__(self, sessions: Sessions) -> Array:
        return self.best(self.view(sessions))[0]

    def values(self, columns: Array, actions: Array) -> Array:
        """Q(o, a), [n]."""
        return np.asarray((_powers(actions) * (columns @ self.weights.T)).sum(axis=1))

    def best(self, columns: Array) -> tuple[Array, Array]:
        """The action in the range with the highest Q, and that value: a parabola's top or one of the ends."""
        low, high = self.world.objective.low, self.world.objective.high
        _, slope, bend = terms = (columns @ self.weights.T).T
        inside = np.clip(-slope / np.where(bend == 0.0, 1.0, 2.0 * bend), low, high)
        actions = np.stack([np.full_like(slope, low), inside, np.full_like(slope, high)])
        values = terms[0] + actions * (terms[1] + actions * terms[2])
        top = np.argmax(values, axis=0)[None]
        return np.take_along_axis(actions, top, 0)[0], np.take_along_axis(values, top, 0)[0]


class Table(NamedTuple):
    """Pages of many sessions as rows."""

    columns: Array
    action: Array
    reward: Array
    goes_on: Array  # 1.0, or 0.0 after a leave
    next_row: Array  # where the session's next page is; its own row after the last


def fit(world: World, view: View, seed: int, *, sessions: int) -> Greedy:
    """Each round adds sessions played around the policy of the round before; the first plays any action."""
    random = np.random.default_rng(seed)
    policy: Policy = anything(world, random)
    tables: list[Table] = []
    greedy = Greedy(world, view, np.zeros((3, view.width)))
    for number in range(_ROUNDS):
        steps: list[Step] = []
        play(world, policy, seed, np.arange(number * sessions, (number + 1) * sessions), watch=steps)
        tables.append(_table(view, steps))
        greedy = _iterate(greedy, _joined(tables))
        policy = _around(greedy, random)
    return greedy


def _iterate(greedy: Greedy, table: Table) -> Greedy:
    """Value iteration from the last round's values on, until they settle. Each sweep solves the same normal equations
    (those of the actions taken) for other targets."""
    gamma = greedy.world.objective.gamma
    x = (_powers(table.action)[:, :, None] * table.columns[:, None, :]).reshape(len(table.action), -1)
    inverse = np.linalg.inv(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]))
    ahead = greedy.best(table.columns)[1]
    for _ in range(_SWEEPS):
        target = table.reward + gamma * table.goes_on * ahead[table.next_row]
        greedy = replace(greedy, weights=(inverse @ (x.T @ target)).reshape(3, -1))
        before, ahead = ahead, greedy.best(table.columns)[1]
        if gamma * float(np.mean(np.abs(ahead - before))) < _SETTLED:
            break
    return greedy


def _table(view: View, steps: list[Step]) -> Table:
    """A session that is cut looks ahead to its own last page, which values going on about right."""
    offsets = np.cumsum([0, *(len(step.at) for step in steps)])
    next_row = [offset + np.arange(len(step.at)) for offset, step in zip(offsets[:-1], steps, strict=True)]
    for number, step in enumerate(steps[:-1]):
        next_row[number][~step.left] = offsets[number + 1] + np.arange(len(steps[number + 1].at))
    return Table(
        columns=np.concatenate([view(step.before) for step in steps]),
        action=np.concatenate([step.action for step in steps]),
        reward=np.concatenate([step.reward for step in steps]),
        goes_on=np.concatenate([~step.left for step in steps]).astype(np.float64),
        next_row=np.concatenate(next_row),
    )


def _joined(tables: list[Table]) -> Table:
    offsets = np.cumsum([0, *(len(table.action) for table in tables)])[:-1]
    shifted = [t._replace(next_row=t.next_row + offset) for t, offset in zip(tables, offsets, strict=True)]
    return Table(*(np.concatenate(columns) for columns in zip(*shifted, strict=True)))


def _around(policy: Policy, random: np.random.Generator) -> Policy:
    return lambda sessions: policy(sessions) + _NOISE * random.standard_normal(sessions.size)


def _powers(actions: Array) -> Array:
    return np.stack([np.ones_like(actions), actions, actions**2], axis=1)

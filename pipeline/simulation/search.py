"""Policy search: a natural policy gradient over policies that are linear in features of what the agent sees.

a = baseline + features(o) . weights, clipped to the range by whoever plays it. Each iteration plays fresh sessions with
Gaussian noise on the action and regresses the return that followed on (value features, noise x features); the second
half of the coefficients is the natural gradient (compatible function approximation; Peters and Schaal 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.intent import Intent, features
from pipeline.simulation.params import World
from pipeline.simulation.rollout import Policy, Step, play

_NOISE = 0.5  # standard deviation of the exploration, in action units
_FIRST_STEP, _LAST_STEP = 0.3, 0.02  # how far the action moves, root mean square over the pages
_AVERAGED = 0.4  # the share of the iterations, at the end, whose weights are averaged


class Linear(NamedTuple):
    world: World
    intent: Intent
    weights: Array

    def __call__(self, sessions: Sessions) -> Array:
        return self.world.objective.baseline + features(self.world.params, self.intent, sessions) @ self.weights


def search(world: World, intent: Intent, seed: int, *, sessions: int, iterations: int) -> Linear:
    """The mean of the last iterations' policies. Every iteration has users of its own: nothing to overfit."""
    random = np.random.default_rng(seed)
    policy = Linear(world, intent, np.zeros(0))
    visited: list[Array] = []
    for number in range(iterations):
        users = np.arange(number * sessions, (number + 1) * sessions)
        steps: list[Step] = []
        policy = _sized(policy, seed, users)
        noise: list[Array] = []
        play(world, _noisy(policy, random, noise), seed, users, watch=steps)
        gradient, spread = _natural_gradient(world, intent, steps, noise)
        size = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (number / max(iterations - 1, 1))
        policy = policy._replace(weights=policy.weights + size * gradient / max(spread, 1e-9))
        visited.append(policy.weights)
    last = visited[-max(1, round(_AVERAGED * iterations)) :]
    return policy._replace(weights=np.mean(last, axis=0))


def _natural_gradient(world: World, intent: Intent, steps: list[Step], noise: list[Array]) -> tuple[Array, float]:
    """The direction, and how far (root mean square) a step of size 1 would move the actions."""
    columns = [features(world.params, intent, step.before) for step in steps]
    x, eps = np.concatenate(columns), np.concatenate(noise)
    returns = np.concatenate(returns_to_go(world.objective.gamma, steps))
    weight = np.concatenate([np.full(len(s.index), world.objective.gamma**t) for t, s in enumerate(steps)])
    design = np.column_stack([x, x * eps[:, None]]) * np.sqrt(weight)[:, None]
    gram = design.T @ design + 1e-3 * len(x) * 1e-2 * np.eye(design.shape[1])
    solution = np.linalg.solve(gram, design.T @ (returns * np.sqrt(weight)))
    gradient = solution[x.shape[1] :]
    return gradient, float(np.sqrt(np.average((x @ gradient) ** 2, weights=weight)))


def returns_to_go(gamma: float, steps: list[Step]) -> list[Array]:
    """Discounted reward from each page on, to the end of its session or to where it was cut."""
    ahead = np.zeros(1 + max(int(step.index.max()) for step in steps))
    found = []
    for step in reversed(steps):
        ahead[step.index] = step.reward + gamma * np.where(step.left, 0.0, ahead[step.index])
        found.append(ahead[step.index])
    return found[::-1]


def _noisy(policy: Policy, random: np.random.Generator, noise: list[Array]) -> Policy:
    def act(sessions: Sessions) -> Array:
        noise.append(random.standard_normal(sessions.count))
        return policy(sessions) + _NOISE * noise[-1]

    return act


def _sized(policy: Linear, seed: int, users: Array) -> Linear:
    if len(policy.weights):
        return policy
    from pipeline.simulation.feed import begin

    first = begin(policy.world.params, seed, users[:1], np.zeros(1, np.int64))
    width = features(policy.world.params, policy.intent, first).shape[1]
    return policy._replace(weights=np.zeros(width))

"""Policy search: a natural policy gradient over policies that are linear in features of what the agent sees.

a = baseline + features(o) . weights, clipped to the range by whoever plays it. Each iteration plays fresh sessions with
Gaussian noise on the action and regresses the return that followed on (value features, noise x features); the second
half of the coefficients is the natural gradient (compatible function approximation; Peters and Schaal 2008).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.intent import View
from pipeline.simulation.params import World
from pipeline.simulation.rollout import Policy, Step, play

_NOISE = 0.5  # standard deviation of the exploration, in action units
_RIDGE = 1e-5
_AVERAGED = 0.4  # the share of the iterations, at the end, whose weights are averaged


@dataclass(frozen=True)
class Linear:
    world: World
    view: View
    weights: Array

    def __call__(self, sessions: Sessions) -> Array:
        return self.world.objective.baseline + self.view(sessions) @ self.weights


class Schedule(NamedTuple):
    sessions: int  # per iteration
    iterations: int
    first_step: float = 0.3  # how far the actions move, root mean square over the pages
    last_step: float = 0.03


def baseline(world: World, view: View) -> Linear:
    return Linear(world, view, np.zeros(view.width))


def distilled(policy: Policy, world: World, view: View, seed: int, sessions: int) -> Linear:
    """The linear policy nearest to `policy` on the pages that `policy` visits."""
    steps: list[Step] = []
    play(world, policy, seed, np.arange(sessions), watch=steps)
    x = np.concatenate([view(step.before) for step in steps])
    y = np.concatenate([step.action for step in steps]) - world.objective.baseline
    return Linear(world, view, np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(view.width), x.T @ y))


def search(start: Linear, seed: int, schedule: Schedule) -> Linear:
    """The mean of the last iterations' policies. Every iteration has users of its own: nothing to overfit."""
    random = np.random.default_rng(seed)
    policy = start
    visited: list[Array] = []
    for number in range(schedule.iterations):
        users = np.arange(number * schedule.sessions, (number + 1) * schedule.sessions)
        steps: list[Step] = []
        noise: list[Array] = []
        play(policy.world, _noisy(policy, random, noise), seed, users, watch=steps)
        gradient, spread = _natural_gradient(policy, steps, noise)
        done = number / max(schedule.iterations - 1, 1)
        size = schedule.first_step * (schedule.last_step / schedule.first_step) ** done
        policy = replace(policy, weights=policy.weights + size * gradient / max(spread, 1e-9))
        visited.append(policy.weights)
    last = visited[-max(1, round(_AVERAGED * schedule.iterations)) :]
    return replace(policy, weights=np.mean(last, axis=0))


def _natural_gradient(policy: Linear, steps: list[Step], noise: list[Array]) -> tuple[Array, float]:
    """The direction, and how far (root mean square) a step of size 1 would move the actions."""
    gamma = policy.world.objective.gamma
    x = np.concatenate([policy.view(step.before) for step in steps])
    returns = np.concatenate(returns_to_go(gamma, steps))
    weight = np.concatenate([np.full(len(step.at), gamma**t) for t, step in enumerate(steps)])
    design = np.column_stack([x, x * np.concatenate(noise)[:, None]]) * np.sqrt(weight)[:, None]
    gram = design.T @ design + _RIDGE * len(x) * np.eye(2 * policy.view.width)
    gradient = np.linalg.solve(gram, design.T @ (returns * np.sqrt(weight)))[policy.view.width :]
    return gradient, float(np.sqrt(np.average((x @ gradient) ** 2, weights=weight)))


def returns_to_go(gamma: float, steps: list[Step]) -> list[Array]:
    """Discounted reward from each page on, to the end of its session or to where it was cut."""
    ahead = np.zeros(1 + max(int(step.at.max()) for step in steps))
    found = []
    for step in reversed(steps):
        ahead[step.at] = step.reward + gamma * np.where(step.left, 0.0, ahead[step.at])
        found.append(ahead[step.at])
    return found[::-1]


def _noisy(policy: Policy, random: np.random.Generator, noise: list[Array]) -> Policy:
    def act(sessions: Sessions) -> Array:
        noise.append(random.standard_normal(sessions.size))
        return policy(sessions) + _NOISE * noise[-1]

    return act

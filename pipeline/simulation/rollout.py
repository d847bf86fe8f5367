"""Many sessions under a policy, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react, rewards, select
from pipeline.simulation.params import World

Policy = Callable[[Sessions], Array]  # actions [n]; a policy of the agent's reads nothing that is hidden


class Sums(NamedTuple):
    """Per session, [n]."""

    reward: Array
    discounted: Array
    clicks: Array
    orders: Array
    pages: Array
    dwell_s: Array
    buyer: Array

    def mean(self, name: str, chosen: Array | None = None) -> float:
        values: Array = getattr(self, name)
        return float(np.mean(values if chosen is None else values[chosen]))


class Step(NamedTuple):
    """One page of every session that was still there."""

    at: Array  # which sessions
    before: Sessions
    action: Array
    reward: Array
    left: Array


def constant(action: float) -> Policy:
    return lambda sessions: np.full(sessions.size, action)


def play(
    world: World, policy: Policy, seed: int, users: Array, visits: Array | None = None, watch: list[Step] | None = None
) -> Sums:
    """Each user's visit (the first, by default) to its end, or to `max_pages`. Actions are clipped to the range."""
    sessions = begin(world.params, seed, users, np.zeros_like(users) if visits is None else visits)
    n = sessions.size
    total = {name: np.zeros(n) for name in ("reward", "discounted", "clicks", "orders", "pages", "dwell_s")}
    buyer, index, weight = sessions.visitors.buyer, np.arange(n), 1.0
    for _ in range(world.params.max_pages):
        action = np.clip(policy(sessions), world.objective.low, world.objective.high)
        page = offer(world.params, sessions)
        reaction = react(world.params, sessions, page, arrange(world, page, action))
        reward = rewards(world.objective, reaction)
        one = np.ones(len(index))
        gains = (reward, weight * reward, reaction.clicks, reaction.orders, one, reaction.dwell_s)
        for sums, gain in zip(total.values(), gains, strict=True):
            sums[index] += gain
        if watch is not None:
            watch.append(Step(index, sessions, action, reward, reaction.left))
        stays = ~reaction.left
        index, weight = index[stays], weight * world.objective.gamma
        sessions = select(advance(world.params, sessions, reaction), stays)
        if not len(index):
            break
    return Sums(**total, buyer=buyer)

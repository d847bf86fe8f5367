"""Many sessions under a policy, and what became of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react, rewards, select
from pipeline.simulation.params import World
from pipeline.simulation.people import exposed, next_loyalty

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


def digest(world: World) -> str:
    """SHA-256 of all that happens to 128 users on two visits each, bit for bit, under a policy that tries everything.

    `World.sha256` is of the parameters; this is of what the code makes of them. The same on any machine: draws, and
    the arithmetic on them, are exact.
    """
    found = hashlib.sha256()
    for array in _happenings(world):
        exact = array.astype("<f8" if array.dtype.kind == "f" else "<u8" if array.dtype.kind == "u" else "<i8")
        found.update(np.ascontiguousarray(exact).tobytes())
    return found.hexdigest()


def _happenings(world: World) -> Iterator[Array]:
    users, low, high = np.arange(128), world.objective.low, world.objective.high
    loyalty = np.full(128, world.params.loyalty_start)

    def policy(sessions: Sessions) -> Array:
        return np.asarray(low + (high - low) * ((sessions.visitors.user + sessions.page) % 9) / 8)

    for visit in range(2):
        steps: list[Step] = []
        visits = np.full(128, visit)
        played = play(world, policy, 1, users, visits, steps)
        for step in steps:
            yield from (step.at, *step.before.visitors, *step.before[1:], step.action, step.reward, step.left)
        yield from played
        yield exposed(world.params, 1, users, visits, loyalty)
        loyalty = next_loyalty(world.params, loyalty, played.buyer, (played.clicks > 0).astype(np.float64))
        yield loyalty

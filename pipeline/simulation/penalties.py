"""The failure that Meituan reported, on purpose: what is optimal without the two penalties prolongs sessions.

    python -m pipeline.simulation.penalties

The simple policies are the constants. Without penalties the best of them shows more of what amuses: deeper sessions
and longer dwell, paid for by those who came with a strong intent, who click less often and no longer look at the feed
on later visits. With penalties on pages and on leaves without conversion, the best constant turns the other way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, structs

from pipeline.simulation.draws import Array
from pipeline.simulation.outcomes import Estimate, clustered
from pipeline.simulation.params import World
from pipeline.simulation.people import exposed, meet, next_loyalty
from pipeline.simulation.rollout import Policy, constant, play
from pipeline.simulation.yardstick import choose, constants


class Effect(Struct, frozen=True):
    """Of a policy on users who come again and again. Intervals take a user as one draw."""

    policy: str
    depth: Estimate  # pages per session
    dwell_s: Estimate  # per session
    exposure: Estimate  # share of visits that look at the feed
    buyers_exposure: Estimate
    buyers_clicking: Estimate  # share of buyers' sessions with a click


class Experiment(Struct, frozen=True):
    world: str
    baseline: Effect
    without_penalties: Effect
    with_penalties: Effect


def experiment(world: World | None = None, *, seed: int = 1, users: int = 10_000, visits: int = 8) -> Experiment:
    """Choose the best constant under either reward on first visits, then measure it on visit after visit."""
    world = world or World()
    bare = structs.replace(world, objective=world.objective.without_penalties())
    found = constants(world)
    without, with_ = (choose(w, found, seed, users) for w in (bare, world))

    def effect(name: str, policy: Policy) -> Effect:
        return follow(world, name, policy, seed + 1, users, visits)

    return Experiment(
        world=str(world),
        baseline=effect("baseline", constant(world.objective.baseline)),
        without_penalties=effect(without, found[without]),
        with_penalties=effect(with_, found[with_]),
    )


def follow(world: World, name: str, policy: Policy, seed: int, users: int, visits: int) -> Effect:
    who = np.arange(users)
    loyalty = np.full(users, world.params.loyalty_start)
    found: list[tuple[Array, ...]] = []
    users_of: list[tuple[Array, ...]] = []
    for visit in range(visits):
        when = np.full(users, visit)
        buyer = meet(world.params, seed, who, when)[0].buyer
        seen = exposed(world.params, seed, who, when, loyalty)
        played = play(world, policy, seed, who[seen], when[seen])
        clicking = (played.clicks > 0).astype(np.float64)
        loyalty[seen] = next_loyalty(world.params, loyalty[seen], buyer[seen], clicking)
        found.append((played.pages, played.dwell_s, seen, seen[buyer], clicking[played.buyer]))
        users_of.append((who[seen], who[seen], who, who[buyer], who[seen][played.buyer]))
    columns = zip(zip(*found, strict=True), zip(*users_of, strict=True), strict=True)
    return Effect(name, *(clustered(np.concatenate(values), np.concatenate(users)) for values, users in columns))


def table(found: Experiment) -> str:
    rows = (("baseline", found.baseline), ("penalties off", found.without_penalties), ("on", found.with_penalties))
    columns = ("depth", "dwell_s", "exposure", "buyers_exposure", "buyers_clicking")
    return "\n".join(
        [found.world, _line("", "policy", columns), *(_line(n, e.policy, _cells(e, columns)) for n, e in rows)]
    )


def _cells(effect: Effect, columns: Sequence[str]) -> list[str]:
    return [str(getattr(effect, column)) for column in columns]


def _line(name: str, policy: str, cells: Sequence[str]) -> str:
    return f"{name:14} {policy:9} " + " ".join(f"{cell:>23}" for cell in cells)


if __name__ == "__main__":
    print(table(experiment()))

"""What the very same visits would have brought under the baseline: a comparison that only a simulator allows.

A simulated visit's draws depend on its seed, its user and its number alone, so it can be lived again under another
policy. That takes the luck of which users a bucket has out of the comparison, and half of the width off its interval.
It compares the visits that looked at the feed: what a policy does to coming back is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from pageturn.measuring.buckets import PER_SESSION, SECOND_HALF, WHOLE, Lift
from pageturn.traffic_log import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import FeatureConfig
from pipeline.simulation.draws import Array
from pipeline.simulation.outcomes import Outcome, clustered, relative_within
from pipeline.simulation.params import World
from pipeline.simulation.reactions import user_number
from pipeline.simulation.rollout import constant, play

_ROUNDING = 1e-6  # of a visit's reward: sums in another order


class Twins(Struct, frozen=True):
    lifts: tuple[Lift, ...]  # of all learned policies first; whole run and second half of each
    checked: int  # visits of the baseline's buckets: each should be its own twin
    odd: int  # of them whose reward is not their twin's: then the other figures are off, too


def against_twins(config: FeatureConfig, visits: Sequence[Visit]) -> Twins | None:
    """Reward per session of visits under learned policies, minus that of the same visits under the baseline.

    Both end where the feed cuts a session. None without sessions. Raises SimulationError for a config that the
    simulated feed does not have.
    """
    world, seen = World.of(config), [visit for visit in visits if visit.outcome.exposed]
    if not seen or config.buckets.unit != "user_id":
        return None
    twins = _rewards_of_twins(world, seen)
    table, learned = bucket_table(config.buckets), config.learned_policies()
    policies = np.array([table[slot_of(config.buckets, visit.outcome.user_id)].policy for visit in seen])
    times = np.array([visit.time_ms for visit in seen])
    middle_ms = (min(v.time_ms for v in visits) + max(v.time_ms for v in visits)) / 2
    lifts = []
    for policy in (None, *learned):
        ours = np.isin(policies, learned if policy is None else (policy,))
        for period, since in ((WHOLE, 0.0), (SECOND_HALF, middle_ms)):
            chosen = np.flatnonzero(ours & (times >= since))
            if len(chosen):
                lifts.append(_lift(policy, period, [seen[i].outcome for i in chosen], twins[chosen]))
    off = np.abs(np.array([visit.outcome.reward for visit in seen]) - twins)[~np.isin(policies, learned)]
    return Twins(tuple(lifts), len(off), int((off > _ROUNDING).sum()))


def _lift(policy: str | None, period: str, outcomes: Sequence[Outcome], twins: Array) -> Lift:
    rewards, users = np.array([o.reward for o in outcomes]), [o.user_id for o in outcomes]
    more = clustered(rewards - twins, users)
    return Lift(policy, period, PER_SESSION, len(set(users)), more, relative_within(rewards, twins, users))


def _rewards_of_twins(world: World, visits: Sequence[Visit]) -> Array:
    baseline, rewards = constant(world.objective.baseline), np.zeros(len(visits))
    seeds = np.array([visit.seed for visit in visits])
    users = np.array([user_number(visit.outcome.user_id) for visit in visits])
    numbers = np.array([visit.outcome.visit for visit in visits])
    for seed in np.unique(seeds):
        chosen = seeds == seed
        rewards[chosen] = play(world, baseline, int(seed), users[chosen], numbers[chosen]).reward
    return rewards

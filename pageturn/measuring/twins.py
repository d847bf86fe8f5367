"""What the very same visits would have brought under the baseline: a comparison that only a simulator allows.

A simulated visit's draws depend on its seed, its user and its number alone, so it can be lived again under another
policy. That takes the luck of which users a bucket has out of the comparison, and half of the width off its interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pageturn.measuring.buckets import SECOND_HALF, WHOLE, Lift
from pageturn.simulating import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import FeatureConfig
from pipeline.simulation.draws import Array
from pipeline.simulation.outcomes import Estimate, clustered
from pipeline.simulation.params import World
from pipeline.simulation.reactions import user_number
from pipeline.simulation.rollout import constant, play


def against_twins(config: FeatureConfig, visits: Sequence[Visit]) -> tuple[Lift, ...]:
    """Reward per session of visits, minus that of the same visits under the baseline, relative to that.

    Of the policies that had visits, the baseline too: its lift is 0 but for sessions cut short where the run ended.

    Raises SimulationError for a config that the simulated feed does not have.
    """
    world, seen = World.of(config), [visit for visit in visits if visit.outcome.exposed]
    if not seen or config.buckets.unit != "user_id":
        return ()
    twins = _rewards_of_twins(world, seen)
    table, learned = bucket_table(config.buckets), config.learned_policies()
    policies = np.array([table[slot_of(config.buckets, visit.outcome.user_id)].policy for visit in seen])
    times = np.array([visit.time_ms for visit in seen])
    middle_ms = (min(v.time_ms for v in visits) + max(v.time_ms for v in visits)) / 2
    lifts = []
    for policy in (None, *(p.name for p in config.policies)):
        ours = np.isin(policies, learned) if policy is None else policies == policy
        for period, since in ((WHOLE, 0.0), (SECOND_HALF, middle_ms)):
            chosen = np.flatnonzero(ours & (times >= since))
            if len(chosen):
                lifts.append(_lift(policy, period, [seen[i] for i in chosen], twins[chosen]))
    return tuple(lifts)


def _lift(policy: str | None, period: str, visits: Sequence[Visit], twins: Array) -> Lift:
    outcomes = [visit.outcome for visit in visits]
    more = np.array([outcome.reward for outcome in outcomes]) - twins
    found, base = clustered(more, [outcome.user_id for outcome in outcomes]), float(twins.mean())
    shares = Estimate(found.mean / base, found.low / base, found.high / base) if base > 0 else None
    return Lift(policy, period, found, shares)


def _rewards_of_twins(world: World, visits: Sequence[Visit]) -> Array:
    baseline, rewards = constant(world.objective.baseline), np.zeros(len(visits))
    seeds = np.array([visit.seed for visit in visits])
    users = np.array([user_number(visit.outcome.user_id) for visit in visits])
    numbers = np.array([visit.outcome.visit for visit in visits])
    for seed in np.unique(seeds):
        chosen = seeds == seed
        rewards[chosen] = play(world, baseline, int(seed), users[chosen], numbers[chosen]).reward
    return rewards

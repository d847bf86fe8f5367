"""Buckets of users compared: what visits brought under each policy, and whether learning is ahead of the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from pageturn.measuring.series import Bins
from pageturn.simulating import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import Bucket, FeatureConfig
from pipeline.simulation.outcomes import Estimate, Summary, clustered, difference, relative, summarise

WHOLE, SECOND_HALF = "whole run", "second half"
_POINTS = 30


class RewardOverTime(Struct, frozen=True):
    """Reward per session, of visits that ended in each bin; NaN where there were none."""

    bins: Bins
    reward: tuple[Estimate, ...]


class BucketFigures(Struct, frozen=True):
    bucket: str
    policy: str
    learned: bool
    users: int
    whole: Summary
    second_half: Summary  # visits whose last page came in the second half of the time between the first and the last
    over_time: RewardOverTime


class Lift(Struct, frozen=True):
    """Reward per session: a learned policy's buckets minus the baseline's. A run's interval holds for its policies as
    they were served; what another seed would have learned it does not know."""

    policy: str | None  # None: all learned policies together
    period: str
    absolute: Estimate
    relative: Estimate | None  # None: the baseline's reward may be zero or less

    @property
    def finding(self) -> Literal["better", "worse", "not shown", "unknown"]:
        if not np.isfinite((self.absolute.low, self.absolute.high)).all():
            return "unknown"
        if self.absolute.low > 0:
            return "better"
        return "worse" if self.absolute.high < 0 else "not shown"

    @property
    def conclusion(self) -> str:
        return _CONCLUSIONS[self.finding]


_CONCLUSIONS = {
    "better": "better: the interval leaves zero out",
    "worse": "worse: the interval leaves zero out",
    "not shown": "not shown yet: the interval covers zero",
    "unknown": "too few users to tell",
}


class Comparison(Struct, frozen=True):
    buckets: tuple[BucketFigures, ...]
    lifts: tuple[Lift, ...]  # of all learned policies first; whole run and second half of each


def compare(config: FeatureConfig, visits: Sequence[Visit]) -> Comparison | None:
    """None where there is nothing to compare: no visits, or a unit that visits do not name."""
    if not visits or config.buckets.unit != "user_id":
        return None
    times = [visit.time_ms for visit in visits]
    bins, middle_ms = Bins.over(min(times), max(times), _POINTS), (min(times) + max(times)) / 2
    by_bucket = _by_bucket(config, visits)
    learned = config.learned_policies()
    figures = tuple(
        _figures(bucket, by_bucket[bucket.name], bucket.policy in learned, bins, middle_ms)
        for bucket in config.buckets.assign
    )
    baseline = [v for b in config.buckets.assign if b.policy not in learned for v in by_bucket[b.name]]
    lifts = [
        lift
        for policy in (None, *learned)
        for lift in _lifts(policy, _visits_under(config, policy, by_bucket), baseline, middle_ms)
    ]
    return Comparison(figures, tuple(lifts))


def _by_bucket(config: FeatureConfig, visits: Iterable[Visit]) -> dict[str, list[Visit]]:
    table = bucket_table(config.buckets)
    found: dict[str, list[Visit]] = {bucket.name: [] for bucket in config.buckets.assign}
    for visit in visits:
        found[table[slot_of(config.buckets, visit.outcome.user_id)].name].append(visit)
    return found


def _visits_under(config: FeatureConfig, policy: str | None, by_bucket: dict[str, list[Visit]]) -> list[Visit]:
    wanted = config.learned_policies() if policy is None else (policy,)
    return [visit for b in config.buckets.assign if b.policy in wanted for visit in by_bucket[b.name]]


def _figures(bucket: Bucket, visits: list[Visit], learned: bool, bins: Bins, middle_ms: float) -> BucketFigures:
    return BucketFigures(
        bucket=bucket.name,
        policy=bucket.policy,
        learned=learned,
        users=len({visit.outcome.user_id for visit in visits}),
        whole=summarise([visit.outcome for visit in visits]),
        second_half=summarise([visit.outcome for visit in visits if visit.time_ms >= middle_ms]),
        over_time=_over_time(visits, bins),
    )


def _over_time(visits: Iterable[Visit], bins: Bins) -> RewardOverTime:
    seen = [visit for visit in visits if visit.outcome.exposed]
    where = bins.of([visit.time_ms for visit in seen])
    parts: list[list[Visit]] = [[] for _ in range(bins.count)]
    for visit, index in zip(seen, where, strict=True):
        parts[index].append(visit)
    return RewardOverTime(bins, tuple(_reward(part) for part in parts))


def _reward(visits: Iterable[Visit]) -> Estimate:
    seen = [visit.outcome for visit in visits if visit.outcome.exposed]
    return clustered([outcome.reward for outcome in seen], [outcome.user_id for outcome in seen])


def _lifts(policy: str | None, ours: list[Visit], baseline: list[Visit], middle_ms: float) -> list[Lift]:
    """Empty where one side has no sessions."""
    found = []
    for period, since in ((WHOLE, 0.0), (SECOND_HALF, middle_ms)):
        a, b = (_reward(v for v in side if v.time_ms >= since) for side in (ours, baseline))
        if np.isfinite((a.mean, b.mean)).all():
            found.append(Lift(policy, period, difference(a, b), relative(a, b)))
    return found

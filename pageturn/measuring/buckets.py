"""Buckets of users compared: what visits brought under each policy, and whether learning is ahead of the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from pageturn.measuring.series import Bins
from pageturn.traffic_log import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import Bucket, FeatureConfig
from pipeline.simulation.outcomes import Estimate, Outcome, Summary, clustered, difference, relative, summarise

WHOLE, SECOND_HALF = "whole run", "second half"
PER_VISIT, PER_SESSION = "reward per visit", "reward per session"
FEW = 30  # users on a side, below which nothing is concluded
_POINTS = 30


class RewardOverTime(Struct, frozen=True):
    """Reward per visit, of those that ended in each bin; NaN where there were none."""

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
    """A learned policy's buckets minus the baseline's. A run's interval holds for its policies as they were served;
    what another seed would have learned it does not know."""

    policy: str | None  # None: all learned policies together
    period: str
    measure: str  # PER_VISIT, PER_SESSION
    users: int  # of the smaller side
    absolute: Estimate
    relative: Estimate | None  # None: the baseline's reward may be zero or less

    @property
    def primary(self) -> bool:
        """The one comparison that a conclusion is drawn from, named before any run: of many, one in twenty leaves
        zero out by chance. Per visit, for whether users look at the feed again is the policy's doing: per session, a
        policy gains by losing those who bring little."""
        return (self.policy, self.period, self.measure) == (None, WHOLE, PER_VISIT)

    @property
    def finding(self) -> Literal["better", "worse", "not shown", "unknown"]:
        if self.users < FEW or not np.isfinite((self.absolute.low, self.absolute.high)).all():
            return "unknown"
        if self.absolute.low > 0:
            return "better"
        return "worse" if self.absolute.high < 0 else "not shown"

    @property
    def conclusion(self) -> str:
        return _CONCLUSIONS[self.finding] if self.primary else ""


_CONCLUSIONS = {
    "better": "better: the interval leaves zero out",
    "worse": "worse: the interval leaves zero out",
    "not shown": "not shown yet: the interval covers zero",
    "unknown": "too few users to tell",
}


class Comparison(Struct, frozen=True):
    buckets: tuple[BucketFigures, ...]
    lifts: tuple[Lift, ...]  # the primary one first; whole run and second half of each

    @property
    def primary(self) -> Lift | None:
        return next((lift for lift in self.lifts if lift.primary), None)


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
        for measure in (PER_VISIT, PER_SESSION)
        for policy in (None, *learned)
        for lift in _lifts(policy, measure, _visits_under(config, policy, by_bucket), baseline, middle_ms)
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


def _over_time(visits: Sequence[Visit], bins: Bins) -> RewardOverTime:
    where = bins.of([visit.time_ms for visit in visits])
    parts: list[list[Outcome]] = [[] for _ in range(bins.count)]
    for visit, index in zip(visits, where, strict=True):
        parts[index].append(visit.outcome)
    return RewardOverTime(bins, tuple(_reward(part) for part in parts))


def _reward(outcomes: Sequence[Outcome]) -> Estimate:
    return clustered([outcome.reward for outcome in outcomes], [outcome.user_id for outcome in outcomes])


def _lifts(policy: str | None, measure: str, ours: list[Visit], baseline: list[Visit], middle_ms: float) -> list[Lift]:
    """Empty where one side has nothing to count."""
    found = []
    for period, since in ((WHOLE, 0.0), (SECOND_HALF, middle_ms)):
        sides = [_counted(side, measure, since) for side in (ours, baseline)]
        if all(sides):
            users = min(len({outcome.user_id for outcome in side}) for side in sides)
            a, b = map(_reward, sides)
            found.append(Lift(policy, period, measure, users, difference(a, b), relative(a, b)))
    return found


def _counted(visits: Iterable[Visit], measure: str, since_ms: float) -> list[Outcome]:
    """A visit that did not look at the feed is worth nothing to a mean per visit, and is no session."""
    counted = (visit.outcome for visit in visits if visit.time_ms >= since_ms)
    return [outcome for outcome in counted if outcome.exposed or measure == PER_VISIT]

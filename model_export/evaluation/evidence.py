"""What the units of an epoch say about a policy's bucket as a process: the second tier's decision, with its numbers.

The pages of a fallback belong to the bucket as it is served, so they count here; in the share of pages they must be
few, or the comparison is not of the policy. (Off-policy evaluation leaves their sessions out: `logged.gather`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
import xxhash
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from model_export.evaluation.contrast import Terms, bounds, mismatch, observe
from model_export.evaluation.sequences import Array, Sums, alpha_of_epoch
from model_export.evaluation.units import CLICKS, EXPOSURE, Unit, rate_of
from pipeline.config.schema import Certification, FeatureConfig
from pipeline.transitions.rewards import reward_version

Conclusion = Literal["certified", "ended", "not_enough"]

_MISMATCH = math.log(1000)  # found by chance in at most one epoch of a thousand
_LATE = 0.01  # of the pages
_METHOD = "where served before: totals, and means while filled as hashed"  # other ways to compare are other rules


class Side(Struct, frozen=True):
    """A bucket's units, plainly."""

    units: int
    mean: float | None  # reward per unit, cut to the range; None of no units
    pages: int
    fallbacks: int
    cut: int  # units whose reward lay outside the range


class Interval(Struct, frozen=True):
    """Confidence sequence of mean(policy) - (1 + lift) mean(baseline) at the present look. None: infinite."""

    lift: float
    mean: float | None
    low: float | None
    high: float | None


class Totals(Struct, frozen=True):
    """What the slots of either side bring in all, for each unit of both, in place of the means of those who come: see
    `contrast`."""

    difference: Interval  # lift 0
    gain: Interval
    budget: Interval


class Rate(Struct, frozen=True):
    """Of units that click (clicks), or of a unit's pages that are shown (exposure)."""

    name: str
    policy: float | None  # mean over units; None of no units
    baseline: float | None
    difference: Interval  # lift 0
    budget: Interval  # ended when this is below zero, too
    totals: Totals | None = None  # of units that click


class Evidence(Struct, frozen=True):
    conclusion: Conclusion
    reason: str  # what decided, or what is missing
    epoch: int
    started_ms: int
    alpha: float  # that each of the intervals may spend in this epoch
    policy: Side
    baseline: Side
    difference: Interval  # lift 0
    gain: Interval  # certified when this is above zero, too
    budget: Interval  # ended when this is below zero, too
    mismatch: float  # log of the evidence that the buckets are not filled as hashed
    late: int  # pages that came too late to count
    rates: tuple[Rate, ...] = ()
    totals: Totals | None = None  # where who comes is the policy's doing, too


class Epoch(Struct, frozen=True, omit_defaults=True):
    """From when on a bucket is judged, and the how manieth time it is judged anew."""

    number: int = 1
    started_ms: int = 0
    assigned: str | None = None  # see `assigned`; None: of before that was kept
    rules: str | None = None  # see `ruled`; None: of before that was kept
    served_before: bool = False  # learned versions were there before it began: who comes again is their doing, too


class Plan(Struct, frozen=True):
    """What a policy is compared with, and how: settled before an epoch begins."""

    rules: Certification
    ours: frozenset[str]  # buckets
    theirs: frozenset[str]
    share: float  # of the policy's slots in those of both
    by_user: bool = True  # else by session, and every session is drawn anew: no policy decides which of them there are

    @classmethod
    def of(cls, config: FeatureConfig, policy: str, rules: Certification) -> Plan:
        learned = config.learned_policies()
        ours = [bucket for bucket in config.buckets.assign if bucket.policy == policy]
        theirs = [bucket for bucket in config.buckets.assign if bucket.policy not in learned]
        a, b = (sum(last - first + 1 for first, last in (bucket.slots for bucket in side)) for side in (ours, theirs))
        return cls(
            rules,
            frozenset(x.name for x in ours),
            frozenset(x.name for x in theirs),
            a / (a + b),
            config.buckets.unit == "user_id",
        )

    def totals(self, epoch: Epoch) -> bool:
        """Whether means of those who come can mislead, and totals have to be looked at, too."""
        return self.by_user and epoch.served_before


def assigned(config: FeatureConfig, policy: str) -> str:
    """Who is compared with whom, as a name: with other slots the share of the units is another, and what was weighed by
    the one before is wrong."""
    plan, buckets = Plan.of(config, policy, Certification(unit_reward=(0.0, 1.0))), config.buckets
    slots = sorted((b.name, *b.slots) for b in buckets.assign if b.name in plan.ours | plan.theirs)
    sides = sorted(plan.ours), sorted(plan.theirs)
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode((buckets.salt, buckets.unit, buckets.slots, slots, sides)))


def ruled(config: FeatureConfig) -> str:
    """What an epoch is judged by, as a name. Bounds hold for rules, and a reward, that were settled before the data
    came: under others the same data would be looked at again, with the same alpha."""
    rules = msgspec.to_builtins(config.publish.certification)
    found = {name: value for name, value in rules.items() if value is not None}, reward_version(config.reward), _METHOD
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(found, order="sorted"))


def budgets(rules: Certification) -> dict[str, float]:
    """Of the rates that are judged beside the reward."""
    asked = {CLICKS: rules.click_budget, EXPOSURE: rules.exposure_budget}
    return {name: budget for name, budget in asked.items() if budget is not None}


def evidence(
    plan: Plan, epoch: Epoch, units: Sequence[Unit], late: int = 0, rated: Mapping[str, Sequence[Unit]] | None = None
) -> Evidence:
    """Of all units that have settled since the epoch began, in the order in which they did. `rated`: the same for each
    of the plan's rates."""
    rules, judged, totals = plan.rules, budgets(plan.rules), plan.totals(epoch)
    alpha = alpha_of_epoch(rules.alpha, epoch.number) / (1 + len(judged)) / (2 if totals else 1)
    rewards, treated = np.array([unit.reward for unit in units], np.float64), _treated(plan, units)
    lifts = (0.0, rules.certify_above, -rules.budget)
    difference, gain, budget = _intervals(Terms(plan.share, *rules.unit_reward), lifts, rewards, treated, alpha)
    rates = tuple(_rate(plan, name, each, (rated or {}).get(name, ()), alpha, totals) for name, each in judged.items())
    ours, theirs = (_side(rules, [u for u in units if (u.bucket in plan.ours) is side]) for side in (True, False))
    odd = mismatch(plan.share, ours.units, theirs.units)
    found = Evidence(
        conclusion="not_enough",
        reason="interval",
        epoch=epoch.number,
        started_ms=epoch.started_ms,
        alpha=alpha,
        policy=ours,
        baseline=theirs,
        difference=difference,
        gain=gain,
        budget=budget,
        mismatch=odd,
        late=late,
        rates=rates,
        totals=Totals(*_intervals(Terms(plan.share, *rules.unit_reward, totals=True), lifts, rewards, treated, alpha))
        if totals
        else None,
    )
    conclusion, reason = _concluded(rules, found)
    return replace(found, conclusion=conclusion, reason=reason)


def _rate(plan: Plan, name: str, budget: float, units: Sequence[Unit], alpha: float, totals: bool) -> Rate:
    """Users who click are something to have more of; of the share of a user's pages that is shown there is no total."""
    values, treated = np.array([rate_of(name, unit) for unit in units], np.float64), _treated(plan, units)
    ours, theirs = (float(side.mean()) if len(side) else None for side in (values[treated], values[~treated]))
    terms, lifts = Terms(plan.share, 0.0, 1.0), (0.0, 0.0, -budget)
    difference, _, cost = _intervals(terms, lifts, values, treated, alpha)
    if not totals or name != CLICKS:
        return Rate(name, ours, theirs, difference, cost)
    in_all = Totals(*_intervals(replace(terms, totals=True), lifts, values, treated, alpha))
    return Rate(name, ours, theirs, difference, cost, in_all)


def _treated(plan: Plan, units: Sequence[Unit]) -> NDArray[np.bool_]:
    return np.array([unit.bucket in plan.ours for unit in units], np.bool_)


def _concluded(rules: Certification, found: Evidence) -> tuple[Conclusion, str]:
    """A lift of a baseline that earns nothing or less means nothing: hence the difference must say so in any case.

    Where who comes is the policy's doing, too, totals say it, or means do while the buckets are filled as hashed and
    totals are for it as far as they go. Means alone are misled by users that a policy keeps or loses, which shows in
    how the buckets are filled: where it loses some and means say worse, totals do hardly later. Totals alone take many
    more units.

    Trouble with the measurement stands in the way of a certificate, not of an end; but of nobody nothing is concluded.
    """
    as_hashed = filled_as_hashed(found)
    if _worse(found, as_hashed):
        return "ended", "worse"
    fallen = next((rate.name for rate in found.rates if _worse(rate, as_hashed)), None)
    if fallen is not None:
        return "ended", fallen
    trouble = _trouble(rules, found)
    if trouble:
        return "not_enough", trouble
    totals = found.totals
    if totals is not None and _above(totals.difference) and _above(totals.gain):
        return "certified", "better"
    if not as_hashed:
        return "not_enough", "sample_ratio"
    agreed = totals is None or (_mean(totals.difference) > 0 and _mean(totals.gain) > 0)
    if agreed and _above(found.difference) and _above(found.gain):
        return "certified", "better"
    return "not_enough", "interval"


def _worse(found: Evidence | Rate, as_hashed: bool) -> bool:
    if not (_is_known(found.policy) and _is_known(found.baseline)):
        return False
    totals = found.totals
    if totals is not None and _below(totals.difference) and _below(totals.budget):
        return True
    agreed = totals is None or (as_hashed and _mean(totals.difference) < 0 and _mean(totals.budget) < 0)
    return agreed and _below(found.difference) and _below(found.budget)


def _is_known(side: Side | float | None) -> bool:
    """Where nobody was seen, that is no reward of 0: such a side is far below any other, or above it."""
    return side.units > 0 if isinstance(side, Side) else side is not None


def _trouble(rules: Certification, found: Evidence) -> str:
    """With the measurement; empty where there is none."""
    ours, theirs = found.policy, found.baseline
    if ours.units == 0 or theirs.units == 0:
        return "no_units"
    if found.late > _LATE * (ours.pages + theirs.pages):
        return "late_pages"
    if ours.fallbacks > rules.max_fallback_share * ours.pages:
        return "fallbacks"
    return ""


def filled_as_hashed(found: Evidence) -> bool:
    """Where not, events of one side are lost, or a policy keeps or loses users."""
    return found.mismatch <= _MISMATCH


def _above(interval: Interval) -> bool:
    return interval.low is not None and interval.low > 0


def _below(interval: Interval) -> bool:
    return interval.high is not None and interval.high < 0


def _mean(interval: Interval) -> float:
    return 0.0 if interval.mean is None else interval.mean


def _intervals(
    terms: Terms, lifts: Sequence[float], rewards: Array, treated: NDArray[np.bool_], alpha: float
) -> list[Interval]:
    return [_interval(replace(terms, lift=lift), rewards, treated, alpha) for lift in lifts]


def _interval(terms: Terms, rewards: Array, treated: NDArray[np.bool_], alpha: float) -> Interval:
    if not len(rewards):
        return Interval(terms.lift, None, None, None)
    seen = observe(terms, rewards, treated)
    sums = Sums(*(np.asarray(part) for part in (float(len(rewards)), seen.x.sum(), np.square(seen.x - seen.p).sum())))
    low, high = bounds(terms, sums, alpha)
    return Interval(terms.lift, float(seen.x.mean()), float(low), float(high))


def _side(rules: Certification, units: Sequence[Unit]) -> Side:
    low, high = rules.unit_reward
    rewards = [min(max(unit.reward, low), high) for unit in units]
    return Side(
        units=len(units),
        mean=math.fsum(rewards) / len(units) if units else None,
        pages=sum(unit.pages for unit in units),
        fallbacks=sum(unit.fallbacks for unit in units),
        cut=sum(not low <= unit.reward <= high for unit in units),
    )

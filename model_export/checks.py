"""What a candidate has to pass before it is published, and the record of the verdict. Pure.

The checks of the tier "every_version" look at one candidate: they stop what is broken or moves too fast, at the pace
of publishing. They cannot say whether a policy is better: one version's pages are far too few for that. That is the
business of a second tier, evidence from the bucket as a process, of which only the state is kept here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from model_export.candidate import Candidate
from model_export.evaluation.evidence import Evidence as BucketEvidence
from model_export.moves import moves
from pipeline.config.schema import ActionDimension, Feature, FeatureConfig
from pipeline.features.snapshot import Snapshot

Actions = Sequence[Sequence[float]]  # [n probes][n dimensions]
Tier = Literal["bootstrap", "every_version", "live", "bucket"]
Outcome = Literal["accepted", "refused", "kept", "superseded", "promoted", "sent_back", "certified", "ended"]
CANARY = "canary"  # the reason of what is accepted for a share of its buckets, until it is promoted
Evidence = Literal["no_baseline_yet", "not_enough_evidence"]

_INSIDE = 1e-5  # of the range: rounding of float32 at a bound


class Check(Struct, frozen=True):
    """One rule with its numbers. A bound of None: reported, not judged."""

    name: str
    value: float | None  # None: not finite, or nothing to measure
    bound: float | None
    passed: bool
    n: int  # how many numbers are behind the value
    would_pass: str
    note: str = ""


class Trace(Struct, frozen=True):
    """When a version was exported by the trainer, had passed its checks, was asked for (parameters and folder in place)
    and had been loaded and probed on every server."""

    exported_ms: int
    checked_ms: int
    asked_ms: int | None = None
    loaded_ms: int | None = None


class Verdict(Struct, frozen=True):
    """What was decided about a candidate, with every number and reason.

    kept: nothing wrong with the candidate, but the version in use stays (frozen or pinned by an operator, servers out
    of reach); in the tier "live", after a trial during which model servers were away.
    superseded: a newer candidate was there before this one was looked at.
    promoted, sent_back: it was served, and kept within its bounds, or left them; see `model_export/live.py`.
    certified, ended: of an epoch of the policy's buckets, in the tier "bucket"; see `model_export/certifying.py`.
    """

    candidate: str
    policy: str
    tier: Tier
    outcome: Outcome
    reason: str  # name of the failed check or step; "" when accepted (for all of its buckets)
    detail: str
    evidence: Evidence | None = None  # None: the candidate was not looked at
    time_ms: int = 0
    checks: tuple[Check, ...] = ()
    version: int | None = None  # the version it was to become
    accepted_before: int | None = None  # the versions it was compared with
    certified: int | None = None
    last_transition: str | None = None  # id of the newest that was ingested when the candidate was made
    updates: int | None = None  # the trainer's, until then; None: the candidate was not looked at
    moved: float | None = None  # mean |action - baseline| on the probes, in ranges; 0: it is the baseline
    bucket: BucketEvidence | None = None  # of the tier "bucket"
    trace: Trace | None = None  # of a version that went out


def stages(trace: Trace | None, served_ms: int) -> dict[str, int]:
    """Milliseconds from export to service, by what they went to; nothing where not all of it is known."""
    if trace is None or trace.asked_ms is None or trace.loaded_ms is None:
        return {}
    return {
        "check": trace.checked_ms - trace.exported_ms,
        "publish": (trace.asked_ms - trace.checked_ms) + (served_ms - trace.loaded_ms),
        "load": trace.loaded_ms - trace.asked_ms,
    }


class Reference(NamedTuple):
    """A published version, as the candidate is compared with it."""

    version: int
    transitions: int
    actions: Actions  # on the candidate's probes, as the model server answers them
    snapshot: Snapshot  # its parameters


def every_version(
    config: FeatureConfig,
    candidate: Candidate,
    snapshot: Snapshot,
    accepted: Reference | None,
    certified: Reference | None,
) -> tuple[Check, ...]:
    """All checks of the first tier, in the order in which their failure is reported.

    `accepted` and `certified` are None where that version was made for another feature config, so that the probes
    mean nothing to it: then the change in sum is measured against the constant baseline.
    """
    whole, rules, actions = probes(config.action, candidate), config.publish, _actions(candidate)
    if not whole.passed:  # nothing to measure the others by
        return (whole,)
    return (
        whole,
        finite(candidate),
        losses(candidate, rules.max_loss),
        divergence(candidate),
        new_transitions(candidate, accepted, rules.min_transitions),
        inside_range(config.action, actions),
        at_bounds(config.action, actions, rules.max_at_bounds),
        *step_change(config.action, actions, accepted, rules.max_step_change),
        total_change(config.action, actions, certified, rules.max_total_change),
        drift(config.features, snapshot, accepted, rules.max_drift),
        fallback_share(candidate.pages, accepted, rules.max_fallback_share),
    )


def first_failure(checks: Iterable[Check]) -> Check | None:
    return next((check for check in checks if not check.passed), None)


def explain(check: Check) -> str:
    value = "not finite" if check.value is None else f"{check.value:g}"
    note = f"; {check.note}" if check.note else ""
    return f"{check.name}: expected {check.would_pass}, found {value} (n = {check.n}){note}"


def evidence(candidate: Candidate) -> Evidence:
    """Where the second tier stands. Before the baseline's traffic was seen there is nothing to compare with."""
    return "no_baseline_yet" if candidate.value_mean is None else "not_enough_evidence"


def moved(dimensions: Sequence[ActionDimension], candidate: Candidate) -> float | None:
    """For `Verdict.moved`; None where the probes say nothing."""
    if not probes(dimensions, candidate).passed:
        return None
    actions = _actions(candidate)
    return _shown(_mean(_changes(dimensions, actions, _baseline(dimensions, actions))))


# The checks ------------------------------------------------------------------------------------------------------


def probes(dimensions: Sequence[ActionDimension], candidate: Candidate) -> Check:
    """A candidate without probes cannot be judged, so it is not."""
    whole = sum(len(probe.action) == len(dimensions) for probe in candidate.probes)
    passed = bool(candidate.probes) and whole == len(candidate.probes)
    wanted = f"at least one probe, all with {len(dimensions)} action dimension(s)"
    return Check("probes", float(whole), 1.0, passed, len(candidate.probes), wanted)


def finite(candidate: Candidate) -> Check:
    numbers = [*candidate.losses.values(), *(a for probe in candidate.probes for a in probe.answer)]
    odd = sum(number is None or not math.isfinite(number) for number in numbers)
    return at_most("finite", odd, 0, n=len(numbers), note="losses and answers to probes that are not finite")


def losses(candidate: Candidate, bound: float) -> Check:
    sizes = [abs(_number(loss)) for loss in candidate.losses.values()]
    return at_most("loss", _largest(sizes), bound, n=len(sizes))


def divergence(candidate: Candidate) -> Check:
    """The trainer's alarm: mean |Q| beyond twice what the largest reward it saw could add up to, |r| / (1 - gamma)."""
    return at_most("divergence", _number(candidate.losses.get("diverged", 0.0)), 0, n=candidate.updates)


def new_transitions(candidate: Candidate, accepted: Reference | None, bound: int) -> Check:
    """A candidate that has learned from fewer than the version in use is of a trainer that began anew: all are new."""
    before = accepted.transitions if accepted else 0
    anew = candidate.transitions < before
    new = candidate.transitions - (0 if anew else before)
    note = f"of a trainer that began anew; version {accepted.version} had {before}" if accepted and anew else ""
    return Check("new_transitions", float(new), float(bound), new >= bound, new, f">= {bound}", note)


def inside_range(dimensions: Sequence[ActionDimension], actions: Actions) -> Check:
    """Share of actions inside their range: all of them."""
    inside = [_overshoot(x, d) <= _INSIDE for row in actions for x, d in zip(row, dimensions, strict=True)]
    share = _mean(inside)
    return Check("inside_range", share, 1.0, share == 1.0, len(inside), "= 1")


def at_bounds(dimensions: Sequence[ActionDimension], actions: Actions, bound: float) -> Check:
    """Share of actions that sit on a bound: a policy that has run away, or a sigmoid that is stuck.

    A bound that is the baseline itself does not count: every policy starts there.
    """
    sits = [_on_a_bound(x, d) for row in actions for x, d in zip(row, dimensions, strict=True)]
    return at_most("at_bounds", _mean(sits), bound, n=len(sits))


def step_change(
    dimensions: Sequence[ActionDimension], actions: Actions, accepted: Reference | None, bound: float
) -> tuple[Check, Check]:
    """Mean and largest |change of action|, in ranges, against the last accepted version."""
    if accepted is None:
        return _not_comparable("step_change", bound), _not_comparable("step_change_max", None)
    changes = _changes(dimensions, actions, accepted.actions)
    mean = at_most("step_change", _mean(changes), bound, n=len(changes), note=f"against version {accepted.version}")
    worst = Check("step_change_max", _shown(_largest(changes)), None, True, len(changes), "anything", "reported only")
    return mean, worst


def total_change(
    dimensions: Sequence[ActionDimension], actions: Actions, certified: Reference | None, bound: float
) -> Check:
    """The same mean against the last certified version: many small steps are no way around the bound of one."""
    note = "against the constant baseline" if certified is None else f"against version {certified.version}"
    before = _baseline(dimensions, actions) if certified is None else certified.actions
    changes = _changes(dimensions, actions, before)
    return at_most("total_change", _mean(changes), bound, n=len(changes), note=note)


def drift(features: Sequence[Feature], snapshot: Snapshot, accepted: Reference | None, bound: float) -> Check:
    """The largest move of a feature since the last accepted version; see `moves.py`."""
    if accepted is None:
        return _not_comparable("drift", bound)
    known = moves(features, accepted.snapshot, snapshot)
    if not known:
        return Check("drift", None, bound, True, 0, f"<= {bound:g}", "no feature statistics in use yet")
    worst = max(sorted(known), key=lambda name: (math.isnan(known[name]), known[name]))
    return at_most("drift", known[worst], bound, n=len(known), note=f"feature {worst}")


def fallback_share(pages: Mapping[str, int], accepted: Reference | None, bound: float) -> Check:
    """Agents of this config cannot use a version of another one: they fall back until the first of this one is out."""
    if accepted is None:
        return _not_comparable("fallback_share", bound)
    total = sum(pages.values())
    if not total:
        return Check("fallback_share", None, bound, True, 0, f"<= {bound:g}", "no pages since the last candidate")
    return at_most("fallback_share", pages.get("fallback", 0) / total, bound, n=total)


def at_most(name: str, value: float, bound: float, *, n: int, note: str = "") -> Check:
    """NaN is never at most anything."""
    return Check(name, _shown(value), bound, value <= bound, n, f"<= {bound:g}", note)


# Arithmetic ------------------------------------------------------------------------------------------------------


def _not_comparable(name: str, bound: float | None) -> Check:
    wanted = "anything" if bound is None else f"<= {bound:g}"
    return Check(name, None, bound, True, 0, wanted, "the version in use was made for another feature config")


def _actions(candidate: Candidate) -> list[list[float]]:
    return [[_number(a) for a in probe.answer] for probe in candidate.probes]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _shown(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _baseline(dimensions: Sequence[ActionDimension], actions: Actions) -> Actions:
    return [[d.baseline for d in dimensions]] * len(actions)


def _changes(dimensions: Sequence[ActionDimension], new: Actions, old: Actions) -> list[float]:
    return [
        abs(x - y) / (d.range[1] - d.range[0])
        for after, before in zip(new, old, strict=True)
        for x, y, d in zip(after, before, dimensions, strict=True)
    ]


def _overshoot(x: float, dimension: ActionDimension) -> float:
    """How far outside its range an action is, in ranges; infinite for NaN."""
    low, high = dimension.range
    return math.inf if math.isnan(x) else max(low - x, x - high, 0.0) / (high - low)


def _on_a_bound(x: float, dimension: ActionDimension) -> bool:
    reach = _INSIDE * (dimension.range[1] - dimension.range[0])
    return any(abs(x - bound) <= reach and abs(bound - dimension.baseline) > reach for bound in dimension.range)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(x) for x in values) else max(values, default=0.0)

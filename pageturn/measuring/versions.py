"""What was published, what was not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from model_export.checks import Verdict

BASELINE_VERSION = 1
_ROUNDING = 1e-5  # of float32, in ranges
INSUFFICIENT = ("no_baseline_yet", "not_enough_evidence")


class PolicyVersions(Struct, frozen=True):
    """Versions of one policy. The bootstrap, which is the baseline itself, counts as none."""

    policy: str
    accepted: int
    updated: int | None  # of them, with an update of the learner since the one before; None: not known
    moved: int | None  # of them, with a policy that was no longer the baseline
    distance: float | None  # of the last one's policy from the baseline: mean |difference|, in ranges of the action
    evidence: dict[str, int]  # of the accepted, by what was known of being better
    refused: dict[str, int]  # by reason
    kept: dict[str, int]  # by reason
    superseded: int

    @property
    def on_insufficient_evidence(self) -> int:
        return sum(self.evidence.get(name, 0) for name in INSUFFICIENT)


def versions(policies: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[PolicyVersions, ...]:
    return tuple(_versions(policy, [v for v in verdicts if v.policy == policy]) for policy in policies)


def _versions(policy: str, verdicts: Sequence[Verdict]) -> PolicyVersions:
    accepted = learned_versions(verdicts)
    return PolicyVersions(
        policy=policy,
        accepted=len(accepted),
        updated=_updated(accepted),
        moved=_moved(accepted),
        distance=next((d for d in map(_distance, reversed(accepted)) if d is not None), None),
        evidence=dict(Counter(verdict.evidence or "not_looked_at" for verdict in accepted)),
        refused=_reasons(verdicts, "refused"),
        kept=_reasons(verdicts, "kept"),
        superseded=sum(verdict.outcome == "superseded" for verdict in verdicts),
    )


def _updated(accepted: Sequence[Verdict]) -> int | None:
    """A trainer that began anew counts from nothing, so fewer are new ones, too."""
    counts = [verdict.updates for verdict in accepted]
    if None in counts:
        return None
    return sum(count != before for before, count in pairwise([0, *counts]))


def _moved(accepted: Sequence[Verdict]) -> int | None:
    distances = [_distance(verdict) for verdict in accepted]
    return None if None in distances else sum(d is not None and d > _ROUNDING for d in distances)


def _distance(verdict: Verdict) -> float | None:
    """Verdicts did not always say it. Then it is the change from the certified version where that is the first one,
    which is the baseline."""
    if verdict.moved is not None or verdict.certified not in (None, BASELINE_VERSION):
        return verdict.moved
    return next((check.value for check in verdict.checks if check.name == "total_change"), None)


def learned_versions(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if is_learned(v)]


def is_learned(verdict: Verdict) -> bool:
    return verdict.outcome == "accepted" and verdict.tier != "bootstrap"


def _reasons(verdicts: Sequence[Verdict], outcome: str) -> dict[str, int]:
    return dict(Counter(verdict.reason for verdict in verdicts if verdict.outcome == outcome))

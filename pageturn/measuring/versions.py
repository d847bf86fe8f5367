"""What was published, what was not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from model_export.checks import Verdict

INSUFFICIENT = ("no_baseline_yet", "not_enough_evidence")


class PolicyVersions(Struct, frozen=True):
    """Versions of one policy. The bootstrap, which is the baseline itself, counts as none."""

    policy: str
    accepted: int
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
        evidence=dict(Counter(verdict.evidence or "not_looked_at" for verdict in accepted)),
        refused=_reasons(verdicts, "refused"),
        kept=_reasons(verdicts, "kept"),
        superseded=sum(verdict.outcome == "superseded" for verdict in verdicts),
    )


def learned_versions(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.outcome == "accepted" and v.tier != "bootstrap"]


def _reasons(verdicts: Sequence[Verdict], outcome: str) -> dict[str, int]:
    return dict(Counter(verdict.reason for verdict in verdicts if verdict.outcome == outcome))

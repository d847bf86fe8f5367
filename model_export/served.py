"""What verdicts say was served to all of a policy's buckets, and since when: a version that is tried on a share of them
is not, before it is promoted. Pure. What operators switch is in no verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from model_export.checks import CANARY, Outcome, Verdict


class Out(NamedTuple):
    """A version that went to all."""

    verdict: Verdict  # that accepted it
    since_ms: int
    tried_ms: int | None = None  # before that, on a share; None: it was not tried


class Serving(NamedTuple):
    version: int
    since_ms: int


def to_all(outcome: Outcome, reason: str) -> bool:
    """Whether a version went to all of its policy's buckets with such a verdict."""
    return outcome == "promoted" or (outcome == "accepted" and reason != CANARY)


def went_out(verdicts: Iterable[Verdict]) -> list[Out]:
    """Versions of any policies, oldest first. One whose acceptance is no longer on record is left out."""
    out, tried = [], {}
    for verdict in verdicts:
        key = verdict.policy, verdict.version
        if verdict.outcome == "accepted" and verdict.reason == CANARY:
            tried[key] = verdict
        elif verdict.outcome == "accepted":
            out.append(Out(verdict, verdict.time_ms))
        elif verdict.outcome == "promoted" and key in tried:
            out.append(Out(tried[key], verdict.time_ms, verdict.time_ms - tried[key].time_ms))
    return out


def serving(verdicts: Iterable[Verdict]) -> Serving | None:
    """Of one policy, by the last that was said of it; None where nothing ever went out."""
    now: Serving | None = None
    for verdict in verdicts:
        version = _serves(verdict)
        if version is not None and (now is None or now.version != version):
            now = Serving(version, verdict.time_ms)
    return now


def _serves(verdict: Verdict) -> int | None:
    if to_all(verdict.outcome, verdict.reason):
        return verdict.version
    if verdict.outcome == "sent_back":
        return verdict.accepted_before
    return verdict.certified if verdict.outcome == "ended" else None

"""Does what was interleaved speak for a candidate? The outcome of an update period, from preferences of its pages.

Nearly every page is a tie, for nearly every page has no click. Pages of one user are one piece of evidence. Under
clicks that know nothing of the rankers preferences have mean 0, but not median 0: of marginalised credits more can be
positive than negative, so their *sum* is tested and not their signs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum

from msgspec import Struct

from pipeline.ranking.candidates import Candidate


class Verdict(Enum):
    CANDIDATE = "candidate"
    INCUMBENT = "incumbent"
    TIE = "tie"  # too little evidence, or none; nothing is updated


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """`confidence` 0 is the paper's: whoever is ahead has won."""

    min_decisive: int = 10  # users whose clicks speak for one side
    confidence: float = 1.0  # in standard errors of the sum under equal rankers


class Comparison(Struct, frozen=True):
    """One page: against which candidate it was interleaved, whose page it was, and its preference."""

    candidate: Candidate
    user_id: str
    preference: float


class Outcome(Struct, frozen=True):
    candidate: Candidate
    verdict: Verdict
    pages: int
    decisive: int  # users with a preference
    mean: float  # preference per decisive user
    z: float  # sum of preferences over the root of the sum of their squares: standard normal under equal rankers
    foreign: int = 0  # pages that were interleaved with another candidate, and count for nothing


def outcome(candidate: Candidate, comparisons: Iterable[Comparison], rule: Rule) -> Outcome:
    """Of one candidate. Late pages of an earlier one, or of the same weights with another seed, do not count."""
    preferences: dict[str, float] = defaultdict(float)
    pages = foreign = 0
    for comparison in comparisons:
        if comparison.candidate != candidate:
            foreign += 1
            continue
        pages += 1
        preferences[comparison.user_id] += comparison.preference
    decisive = [x for _, x in sorted(preferences.items()) if x != 0]
    total, size = math.fsum(decisive), math.sqrt(math.fsum(x * x for x in decisive))
    z = total / size if size else 0.0
    mean = total / len(decisive) if decisive else 0.0
    return Outcome(candidate, _verdict(rule, len(decisive), z), pages, len(decisive), mean, z, foreign)


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Of several candidates that were multileaved the one that won most clearly; None where none did."""
    won = [each for each in outcomes if each.verdict is Verdict.CANDIDATE]
    return max(won, key=lambda each: each.z, default=None)


def _verdict(rule: Rule, decisive: int, z: float) -> Verdict:
    if decisive < rule.min_decisive or z == 0 or abs(z) < rule.confidence:
        return Verdict.TIE
    return Verdict.CANDIDATE if z > 0 else Verdict.INCUMBENT

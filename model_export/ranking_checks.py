"""The checks of the first tier for weights that rank items: there is no action whose size could be bounded, but there
are pages, and how many of their items are others than before. Pure.

Whether such weights are better is decided before: by interleaving, in the trainer, whose evidence is in the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from model_export.candidate import Candidate
from model_export.checks import (
    Check,
    Reference,
    at_most,
    divergence,
    drift,
    fallback_share,
    finite,
    losses,
    new_transitions,
)
from pipeline.config.schema import FeatureConfig
from pipeline.features.snapshot import Snapshot
from pipeline.ranking.pages import best_first

Scores = Sequence[Sequence[float | None]]  # [n probes][n candidates]


def every_ranking(
    config: FeatureConfig, candidate: Candidate, snapshot: Snapshot, accepted: Reference | None
) -> tuple[Check, ...]:
    """In the order in which their failure is reported; `accepted` as for `checks.every_version`."""
    assert config.ranking is not None
    whole, rules = probes(candidate), config.publish
    if not whole.passed:
        return (whole,)
    numbers = finite(candidate)
    if not numbers.passed:
        return whole, numbers
    return (
        whole,
        numbers,
        losses(candidate, rules.max_loss),
        divergence(candidate),
        new_transitions(candidate, accepted, rules.min_transitions),
        page_change(config.ranking.page_size, candidate, accepted, config.ranking.max_page_change),
        drift(config.features, snapshot, accepted, rules.max_drift),
        fallback_share(candidate.pages, accepted, rules.max_fallback_share),
    )


def probes(candidate: Candidate) -> Check:
    whole = sum(bool(probe.items) and len(probe.items) == len(probe.q) for probe in candidate.probes)
    passed = bool(candidate.probes) and whole == len(candidate.probes)
    wanted = "at least one probe, all with a Q of every candidate"
    return Check("probes", float(whole), 1.0, passed, len(candidate.probes), wanted)


def page_change(page_size: int, candidate: Candidate, accepted: Reference | None, bound: float) -> Check:
    """Mean share of a page's items that the version in use would not have shown. Not judged where that is the baseline:
    the first weights that rank at all change nearly every page."""
    n = len(candidate.probes)
    if accepted is None or accepted.transitions == 0:
        why = "the baseline is in use" if accepted else "the version in use was made for another feature config"
        return Check("page_change", moved_pages(page_size, candidate), None, True, n, "anything", why)
    change = _change(page_size, [probe.q for probe in candidate.probes], accepted.actions)
    return at_most("page_change", change, bound, n=n, note=f"against version {accepted.version}")


def moved_pages(page_size: int, candidate: Candidate) -> float | None:
    """The same against the order in which candidates came; None where the probes say nothing."""
    if not (probes(candidate).passed and finite(candidate).passed):
        return None
    q = [probe.q for probe in candidate.probes]
    return _change(page_size, q, [[0.0] * len(of_probe) for of_probe in q])


def _change(page_size: int, new: Scores, old: Scores) -> float:
    shares = [_others(page_size, a, b) for a, b in zip(new, old, strict=True)]
    return math.fsum(shares) / len(shares) if shares else 0.0


def _others(page_size: int, new: Sequence[float | None], old: Sequence[float | None]) -> float:
    pages = [set(best_first([math.nan if x is None else x for x in q])[:page_size]) for q in (new, old)]
    return len(pages[0] - pages[1]) / len(pages[0])

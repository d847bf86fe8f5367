"""How long it takes until what users did is in a version that is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from model_export.checks import Verdict
from pageturn.measuring.series import Quantiles
from pageturn.measuring.topics import Seen
from pageturn.measuring.versions import learned_versions

_BINS = 40


class Histogram(Struct, frozen=True):
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Freshness(Struct, frozen=True):
    """Seconds until the first accepted version that learned from it had passed its checks and was pointed to."""

    policy: str
    page_s: Quantiles  # since a page closed
    click_s: Quantiles  # since a click on it
    waiting: int  # transitions that no accepted version has learned from yet: they are in no quantile
    pages: Histogram  # of page_s, up to its 99 % quantile


def freshness(
    policies: Sequence[str],
    verdicts: Sequence[Verdict],
    transitions: Iterable[tuple[str, str]],
    pages: Mapping[str, Seen],
) -> tuple[Freshness, ...]:
    """Of each policy with versions. `transitions`: id and request id in the order of the trainer, each once or more."""
    places: dict[str, int] = {}
    requests = [request_id for identity, request_id in transitions if _first(places, identity)]
    found = []
    for policy in policies:
        theirs = [v for v in learned_versions(verdicts) if v.policy == policy and v.last_transition in places]
        if theirs:
            found.append(_freshness(policy, sorted(theirs, key=lambda v: v.time_ms), places, requests, pages))
    return tuple(found)


def _first(places: dict[str, int], identity: str) -> bool:
    new = identity not in places
    if new:
        places[identity] = len(places)
    return new


def _freshness(
    policy: str, verdicts: Sequence[Verdict], places: dict[str, int], requests: list[str], pages: Mapping[str, Seen]
) -> Freshness:
    """A trainer that began anew may be behind: what an earlier version has learned from stays learned from."""
    reached = np.maximum.accumulate([places[str(verdict.last_transition)] for verdict in verdicts])
    learned = requests[: int(reached[-1]) + 1]
    version = np.searchsorted(reached, np.arange(len(learned)))
    page_s, click_s = [], []
    for request_id, number in zip(learned, version.tolist(), strict=True):
        page, served_ms = pages.get(request_id), verdicts[number].time_ms
        if page is not None:
            page_s.append((served_ms - page.closed_ms) / 1000)
            click_s += [(served_ms - clicked_ms) / 1000 for clicked_ms in page.clicks_ms]
    return Freshness(
        policy, Quantiles.of(page_s), Quantiles.of(click_s), len(requests) - len(learned), _histogram(page_s)
    )


def _histogram(values: Sequence[float]) -> Histogram:
    if not values:
        return Histogram((), ())
    top = max(float(np.quantile(values, 0.99)), 1.0)
    counts, edges = np.histogram(values, _BINS, (min(0.0, min(values)), top))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))

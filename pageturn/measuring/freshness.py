"""How long it takes until what users did is in a version that is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from model_export.checks import Verdict, stages
from model_export.served import Out, went_out
from pageturn.measuring.series import Quantiles
from pageturn.measuring.topics import Seen
from pageturn.measuring.versions import is_learned

_BINS = 40
# window: from a click to the close of its page. join: until the page's transition is in the log. train: until a version
# that learned from it is exported. check, publish, load: of that version (`model_export.checks.stages`). canary: while
# it is on a share of its buckets.
STAGES = ("window", "join", "train", "check", "publish", "load", "canary")


class Histogram(Struct, frozen=True):
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Freshness(Struct, frozen=True):
    """Seconds until the first version that learned from it was served to all of its policy's buckets.

    A version has learned from what was ingested before its last update: the learner ingests one by one, but updates in
    rounds, after so many of them, and not before it can fill a batch.
    """

    policy: str
    page_s: Quantiles  # since a page closed
    click_s: Quantiles  # since a click on it
    stages_s: dict[str, Quantiles]  # what these go to, each by itself, in order: see STAGES
    waiting: int  # transitions that no version that is out has learned from yet: they are in no quantile
    pages: Histogram  # of page_s, up to its 99 % quantile


def freshness(
    policies: Sequence[str],
    verdicts: Sequence[Verdict],
    transitions: Iterable[tuple[str, str, int]],
    pages: Mapping[str, Seen],
    rounds: Sequence[Mapping[str, Any]],
) -> tuple[Freshness, ...]:
    """Of each policy with versions that learned from anything.

    `transitions`: id, request id and stamp in the order of the trainer, each once or more. `rounds`: rows of its
    metrics.
    """
    places: dict[str, int] = {}
    learnable = [_Learnable(request_id, ms) for identity, request_id, ms in transitions if _first(places, identity)]
    history = _Rounds(rounds)
    found = []
    for policy in policies:
        out = [each for each in went_out(verdicts) if each.verdict.policy == policy and is_learned(each.verdict)]
        reached = [(each, history.learned_by(each.verdict, places[each.verdict.last_transition] + 1))
                   for each in sorted(out, key=lambda each: each.since_ms)
                   if each.verdict.last_transition in places]  # fmt: skip
        served = [(each, count) for each, count in reached if count]
        if served:
            found.append(_freshness(policy, served, learnable, pages))
    return tuple(found)


class _Learnable(NamedTuple):
    """A transition."""

    request_id: str
    stamp_ms: int


class _Rounds:
    """How many updates there had been after how many transitions."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._transitions = np.array([row["transitions"] for row in rows], np.int64)
        self._updates = np.array([int(row.get("updates", 0)) for row in rows], np.int64)

    def learned_by(self, version: Verdict, ingested: int) -> int:
        """How many of the transitions were there at the version's last update; 0 where nothing is known of it."""
        updates = self._until(ingested) if version.updates is None else version.updates
        place = int(np.searchsorted(self._updates, updates))
        return min(int(self._transitions[place]), ingested) if updates > 0 and place < len(self._updates) else 0

    def _until(self, ingested: int) -> int:
        place = int(np.searchsorted(self._transitions, ingested, side="right"))
        return int(self._updates[place - 1]) if place else 0


def _first(places: dict[str, int], identity: str) -> bool:
    new = identity not in places
    if new:
        places[identity] = len(places)
    return new


def _freshness(
    policy: str, served: Sequence[tuple[Out, int]], learnable: list[_Learnable], pages: Mapping[str, Seen]
) -> Freshness:
    """`served`: versions, and how many of the transitions each had learned from. A trainer that began anew may be
    behind: what an earlier version has learned from stays learned from."""
    reached = np.maximum.accumulate([count for _, count in served])
    learned = learnable[: int(reached[-1])]
    version = np.searchsorted(reached, np.arange(len(learned)), side="right")
    page_s, click_s = [], []
    stages_ms: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for transition, number in zip(learned, version.tolist(), strict=True):
        page, out = pages.get(transition.request_id), served[number][0]
        if page is not None:
            page_s.append((out.since_ms - page.closed_ms) / 1000)
            click_s += [(out.since_ms - clicked_ms) / 1000 for clicked_ms in page.clicks_ms]
            for stage, duration_ms in _spent(page, transition.stamp_ms, out):
                stages_ms[stage].append(duration_ms)
    tried = any(out.tried_ms is not None for out, _ in served)
    stages_s = {s: Quantiles.of(np.array(spent) / 1000) for s, spent in stages_ms.items() if tried or s != "canary"}
    waiting = len(learnable) - len(learned)
    return Freshness(policy, Quantiles.of(page_s), Quantiles.of(click_s), stages_s, waiting, _histogram(page_s))


def _spent(page: Seen, stamp_ms: int, out: Out) -> Iterator[tuple[str, int]]:
    """(stage, ms) of one page, and of each click on it."""
    yield from (("window", page.closed_ms - clicked_ms) for clicked_ms in page.clicks_ms)
    yield "join", stamp_ms - page.closed_ms
    if out.verdict.trace is not None:
        yield "train", out.verdict.trace.exported_ms - stamp_ms
        yield from stages(out.verdict.trace, out.verdict.time_ms).items()
    if out.tried_ms is not None:
        yield "canary", out.tried_ms


def _histogram(values: Sequence[float]) -> Histogram:
    if not values:
        return Histogram((), ())
    top = max(float(np.quantile(values, 0.99)), 1.0)
    counts, edges = np.histogram(values, _BINS, (min(0.0, min(values)), top))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))

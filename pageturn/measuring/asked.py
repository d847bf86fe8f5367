"""Pages as the feed asked for them: who decided, how long it took, what went unanswered."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from msgspec import Struct

from pageturn.measuring.series import Bins, Quantiles
from pageturn.traffic_log import AskedPage
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import Bucket, FeatureConfig
from pipeline.simulation.reactions import begins_session, user_of_request

UNANSWERED = "no answer"
_BINS = 400


class Deciders(Struct, frozen=True):
    """Pages per bin, by who decided: policy, baseline, "fallback: <reason>", `UNANSWERED`."""

    bins: Bins
    pages: dict[str, tuple[int, ...]]
    p50_ms: tuple[float | None, ...]  # of the answers of the bin
    p99_ms: tuple[float | None, ...]


class Asked(Struct, frozen=True):
    pages: int
    answered: int
    decided_by: dict[str, int]  # answered pages
    reasons: dict[str, int]  # of fallbacks
    troubles: dict[str, int]  # of pages without an answer
    learned: int  # pages of buckets of a learned policy, answered or not
    learned_by_policy: int  # of them
    sessions: dict[str, int]  # that have begun, of simulated users, by their bucket
    wait_ms: Quantiles  # of answered pages, as the caller saw it
    deciders: Deciders

    @property
    def unanswered(self) -> int:
        return self.pages - self.answered

    @property
    def policy_share(self) -> float | None:
        return self.learned_by_policy / self.learned if self.learned else None


def asked(config: FeatureConfig, pages: Iterable[AskedPage]) -> Asked | None:
    """None of no pages."""
    learns = Learning(config)
    times, waits, who, names = array("q"), array("d"), array("l"), {UNANSWERED: 0}
    troubles: Counter[str] = Counter()
    theirs: Counter[str | None] = Counter()
    sessions: Counter[str] = Counter()
    for page in pages:
        times.append(page.time_ms)
        waits.append(page.wait_ms)
        who.append(names.setdefault(_who(page), len(names)))
        if page.decided_by is None:
            troubles[page.trouble or "unknown"] += 1
        if learns.of(page):
            theirs[page.decided_by] += 1
        if begins_session(page.request_id):
            sessions[learns.bucket_of(user_of(page) or "").name] += 1
    if not times:
        return None
    when, wait, index = np.array(times), np.array(waits), np.array(who)
    totals = {name: int((index == number).sum()) for name, number in names.items()}
    answered = index != 0
    return Asked(
        pages=len(when),
        answered=int(answered.sum()),
        decided_by=_summed(totals),
        reasons={name.removeprefix("fallback: "): n for name, n in totals.items() if name.startswith("fallback: ")},
        troubles=dict(troubles),
        learned=theirs.total(),
        learned_by_policy=theirs["policy"],
        sessions=dict(sessions),
        wait_ms=Quantiles.of(wait[answered]),
        deciders=_deciders(names, when, wait, index),
    )


class Learning:
    """Whether a page is of a learned policy's bucket."""

    def __init__(self, config: FeatureConfig) -> None:
        self._config, self._table = config.buckets, bucket_table(config.buckets)
        self._learned = frozenset(config.learned_policies())
        self._names = {b.name for b in config.buckets.assign if b.policy in self._learned}

    def of(self, page: AskedPage) -> bool:
        """Of a page that nobody answered: by its user; where that is not known it counts, for an outage shall show."""
        if page.bucket is not None:
            return page.bucket in self._names
        user_id = user_of(page)
        return user_id is None or self._config.unit != "user_id" or self.of_user(user_id)

    def of_user(self, user_id: str) -> bool:
        return self.bucket_of(user_id).policy in self._learned

    def bucket_of(self, user_id: str) -> Bucket:
        return self._table[slot_of(self._config, user_id)]


def user_of(page: AskedPage) -> str | None:
    """Records did not always name the user; of a simulated one the request id does."""
    return page.user_id or user_of_request(page.request_id)


def _who(page: AskedPage) -> str:
    if page.decided_by is None:
        return UNANSWERED
    return f"{page.decided_by}: {page.reason or 'unknown'}" if page.decided_by == "fallback" else page.decided_by


def _summed(totals: dict[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in totals.items():
        if name != UNANSWERED:
            found[name.split(":")[0]] += count
    return dict(found)


def _deciders(names: dict[str, int], when: np.ndarray, wait: np.ndarray, index: np.ndarray) -> Deciders:
    bins = Bins.over(int(when.min()), int(when.max()), _BINS)
    where = bins.of(when)
    pages = {
        name: tuple(np.bincount(where[index == number], minlength=bins.count).tolist())
        for name, number in names.items()
        if (index == number).any()
    }
    waits = [Quantiles.of(part) for part in _parts(where[index != 0], wait[index != 0], bins.count)]
    return Deciders(bins, pages, tuple(q.p50 for q in waits), tuple(q.p99 for q in waits))


def _parts(where: np.ndarray, values: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(where, kind="stable")
    return np.split(values[order], np.searchsorted(where[order], np.arange(1, count)))

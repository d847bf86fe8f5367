"""From transitions as they come to the units that buckets are compared by. Pure but for its memory.

A unit is what the buckets are hashed by: a user, or a session. It counts once in an epoch, with all that it earned
within a horizon of its first page there. So it is independent of the others, users who come back less earn less, and
no session is longer because it had not ended when somebody looked. A unit is settled, and then never changes, once
everything within its horizon must have been seen; units settle in the order of their first pages.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from heapq import heappop, heappush

import xxhash
from msgspec import Struct

from pipeline.config.schema import FeatureConfig
from pipeline.records import DecidedBy, Ending

CLICKS, EXPOSURE = "clicks", "exposure"
_FEW = 64  # pages of a unit: among so many one is found as soon by looking at all of them


class SeenDecision(Struct, frozen=True, gc=False):
    decided_by: DecidedBy
    bucket: str


class SeenPage(Struct, frozen=True, gc=False):
    """As much of a `Transition` as is needed."""

    request_id: str
    user_id: str
    session_id: str
    time_ms: int
    decision: SeenDecision
    reward: float
    ending: Ending | None = None


class SeenImpression(Struct, frozen=True, gc=False):
    request_id: str
    user_id: str
    session_id: str
    time_ms: int
    decision: SeenDecision


class SeenLabels(Struct, frozen=True, gc=False):
    clicks: int = 0


class SeenSample(Struct, frozen=True, gc=False):
    """As much of a closed `Page` as is needed. Unlike transitions there are also those that were never shown."""

    impression: SeenImpression
    labels: tuple[SeenLabels, ...]
    shown: bool = True

    def rated(self, rate: str) -> SeenPage:
        """The page with 1 for a reward where it was clicked on (clicks), or shown (exposure)."""
        page = self.impression
        counts = self.shown and (rate == EXPOSURE or any(each.clicks for each in self.labels))
        return SeenPage(page.request_id, page.user_id, page.session_id, page.time_ms, page.decision, float(counts))


class Unit(Struct, frozen=True, gc=False):
    """Settled."""

    first_ms: int
    bucket: str
    reward: float
    pages: int
    fallbacks: int  # of the pages


def rate_of(name: str, unit: Unit) -> float:
    """Of a unit of rated pages, from 0 to 1: whether it clicked on any; the share that was shown."""
    return min(unit.reward, 1.0) if name == CLICKS else unit.reward / unit.pages


class Window(Struct, frozen=True):
    """What counts, in milliseconds of event time."""

    start_ms: int  # of the epoch
    horizon_ms: int
    delay_ms: int  # by which a transition may come after one of a later page
    by_user: bool
    buckets: frozenset[str]

    @classmethod
    def of(cls, config: FeatureConfig, start_ms: int, horizon_ms: int, buckets: Iterable[str]) -> Window:
        stream = config.stream
        longest = max(stream.attribution.click, stream.attribution.order)
        # the last page of a visit comes out a session gap after its page has settled, others as soon as they have
        delay_ms = longest + stream.session_gap + stream.lateness + 2 * stream.clock_skew
        return cls(start_ms, horizon_ms, delay_ms, config.buckets.unit == "user_id", frozenset(buckets))


class _Open:
    """A unit that has not settled: its pages, whichever of them is the first. Of many users for a day there are
    millions, so they are kept as numbers."""

    __slots__ = ("bucket", "fallbacks", "first_ms", "requests", "rewards", "times")

    def __init__(self, page: SeenPage) -> None:
        self.bucket, self.first_ms = page.decision.bucket, page.time_ms
        self.requests: array[int] | set[int] = array("Q")
        self.times, self.rewards = array("q"), array("d")
        self.fallbacks = bytearray()

    def take(self, page: SeenPage) -> None:
        request = _hash(page.request_id)
        if request in self.requests:
            return
        if isinstance(self.requests, set):
            self.requests.add(request)
        else:
            self.requests.append(request)
            if len(self.requests) == _FEW:
                self.requests = set(self.requests)
        self.times.append(page.time_ms)
        self.rewards.append(page.reward)
        self.fallbacks.append(page.decision.decided_by is DecidedBy.FALLBACK)
        if page.time_ms < self.first_ms:
            self.first_ms, self.bucket = page.time_ms, page.decision.bucket

    def settled(self, horizon_ms: int) -> Unit:
        counted = [i for i, time_ms in enumerate(self.times) if time_ms < self.first_ms + horizon_ms]
        reward = math.fsum(self.rewards[i] for i in counted)
        return Unit(self.first_ms, self.bucket, reward, len(counted), sum(self.fallbacks[i] for i in counted))


class Units:
    """Of one epoch."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.late = 0  # pages that came after their unit had settled, or would have
        self._open: dict[str, _Open] = {}
        self._due: list[tuple[int, str]] = []  # a heap of open units by their first page; what has changed is in twice
        self._settled: dict[int, int] = {}  # hash of the unit -> its first page's time
        self._newest_ms: dict[int, int] = {}  # by partition of the log
        self._upto_ms = -1  # units with a first page up to here have settled

    def take(self, partition: int, page: SeenPage) -> None:
        """A transition, as the log has it. One that comes again changes nothing while its unit is open; once that has
        settled it is late, since which ones the unit had is no longer known."""
        self._newest_ms[partition] = max(self._newest_ms.get(partition, 0), page.time_ms)
        window = self.window
        if page.time_ms < window.start_ms or page.decision.bucket not in window.buckets:
            return
        unit = page.user_id if window.by_user else page.session_id
        first_ms = self._settled.get(_hash(unit))
        if first_ms is not None:
            self.late += first_ms <= page.time_ms < first_ms + window.horizon_ms
        elif unit not in self._open and page.time_ms <= self._upto_ms:
            self.late += 1
        else:
            self._add(unit, page)

    def _add(self, unit: str, page: SeenPage) -> None:
        seen = self._open.get(unit)
        if seen is None:
            seen = self._open[unit] = _Open(page)
            heappush(self._due, (page.time_ms, unit))
        elif page.time_ms < seen.first_ms:
            heappush(self._due, (page.time_ms, unit))
        seen.take(page)

    def settle(self) -> list[Unit]:
        """The units that have settled since the last call, in the order of their first pages."""
        if not self._newest_ms:
            return []
        upto_ms = min(self._newest_ms.values()) - self.window.delay_ms - self.window.horizon_ms
        self._upto_ms = max(self._upto_ms, upto_ms)
        settled: list[Unit] = []
        while self._due and self._due[0][0] <= upto_ms:
            _, unit = heappop(self._due)
            seen = self._open.pop(unit, None)
            if seen is not None:
                self._settled[_hash(unit)] = seen.first_ms
                settled.append(seen.settled(self.window.horizon_ms))
        return settled


def _hash(unit: str) -> int:
    return xxhash.xxh3_64_intdigest(unit.encode())

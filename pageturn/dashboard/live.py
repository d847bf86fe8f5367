"""What a run has come to by now, read from its files as they grow: what the page shows, as one value."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from msgspec import Struct

from model_export.checks import Verdict
from model_export.served import serving
from model_export.verdicts import VERDICTS
from pageturn.lines import Tail
from pageturn.measuring.asked import Learning
from pageturn.measuring.learning import METRICS
from pageturn.measuring.series import Bins
from pageturn.run import Run
from pageturn.supervisor import PartEvent
from pageturn.traffic_log import PAGES, VISITS, AskedPage, Visit
from pipeline.simulation.outcomes import clustered

_RECENT_S = 10.0  # over which rates are taken
_POINTS = 120  # of a curve
_BINS = 40
_VERDICTS = 12
_ROUNDS = 20_000  # rows of the trainer's metrics that are kept
_LEAST_S = 0.5  # between two looks at the files, however many watch
_LEAST_EARNING_S = 3.0  # between two estimates, which take every visit so far


class Part(Struct, frozen=True):
    name: str
    up: bool
    starts: int


class Rates(Struct, frozen=True):
    """Per second, over the last seconds."""

    pages: float = 0.0
    answered: float = 0.0
    transitions: float = 0.0
    updates: float = 0.0


class Served(Struct, frozen=True):
    policy: str
    version: int
    since_ms: int | None  # None: the bootstrap, which has no verdict
    accepted: int
    refused: int
    by_policy: float | None  # share of the learned bucket's recent pages


class Earning(Struct, frozen=True):
    """Reward per visit of a bucket; `half` of the 95 % interval, None where there are too few users for one."""

    bucket: str
    policy: str
    learned: bool
    visits: int
    reward: float | None
    half: float | None
    over_time: tuple[float | None, ...]  # by the bins of `Curves.reward_ms`


class Curves(Struct, frozen=True):
    transitions: tuple[int, ...]
    learning: dict[str, tuple[float | None, ...]]  # by quantity, as the trainer names it
    reward_ms: tuple[int, ...]  # middles of the bins


class State(Struct, frozen=True):
    name: str
    config: str
    up: bool
    created_ms: int
    now_ms: int
    parts: tuple[Part, ...]
    rates: Rates
    pages: int
    ingested: int
    updates: int
    policies: tuple[Served, ...]
    buckets: tuple[Earning, ...]
    curves: Curves
    verdicts: tuple[Verdict, ...]  # the newest first


class _Visits:
    """Of a bucket, in the order in which they ended."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.users: list[str] = []
        self.times_ms: list[int] = []

    def add(self, visit: Visit) -> None:
        self.rewards.append(visit.outcome.reward)
        self.users.append(visit.outcome.user_id)
        self.times_ms.append(visit.time_ms)

    def means(self, bins: Bins) -> tuple[float | None, ...]:
        where = np.clip(bins.of(self.times_ms), 0, bins.count - 1)
        counts = np.bincount(where, minlength=bins.count)
        counts[-1] = 0  # it has only begun
        totals = np.bincount(where, self.rewards, minlength=bins.count)
        return tuple(float(total / n) if n else None for total, n in zip(totals, counts, strict=True))


class Live:
    """Reads on from where it was. Safe for threads."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError."""
        self._run, self._clock = run, clock
        self._config = run.config()
        self._buckets = Learning(self._config)
        self._visits, self._pages = Tail(run.traffic / VISITS, Visit), Tail(run.traffic / PAGES, AskedPage)
        self._training = Tail(run.trainer / METRICS, dict[str, Any])
        self._judged = Tail(run.models / VERDICTS, Verdict)
        self._journal = Tail(run.journal, PartEvent)
        self._by_bucket = {bucket.name: _Visits() for bucket in self._config.buckets.assign}
        self._recent: deque[AskedPage] = deque()
        self._rounds: deque[dict[str, Any]] = deque(maxlen=_ROUNDS)
        self._verdicts: list[Verdict] = []
        self._parts: dict[str, list[PartEvent]] = {}
        self._count = 0  # of pages
        self._lock = threading.Lock()
        self._state: State | None = None
        self._at_s, self._estimated_s = 0.0, -_LEAST_EARNING_S
        self._bins: Bins | None = None
        self._earnings: tuple[Earning, ...] = ()

    def state(self) -> State:
        with self._lock:
            if self._state is None or self._clock() - self._at_s >= _LEAST_S:
                self._at_s = self._clock()
                self._read()
                self._state = self._now(int(self._at_s * 1000))
            return self._state

    def _read(self) -> None:
        for page in self._pages.lines():
            self._count += 1
            self._recent.append(page)
        oldest_ms = (self._at_s - _RECENT_S) * 1000
        while self._recent and self._recent[0].time_ms < oldest_ms:
            self._recent.popleft()
        for visit in self._visits.lines():
            self._by_bucket[self._buckets.bucket_of(visit.outcome.user_id).name].add(visit)
        self._rounds.extend(row for row in self._training.lines() if isinstance(row.get("transitions"), int))
        self._verdicts.extend(self._judged.lines())
        for event in self._journal.lines():
            self._parts.setdefault(event.part, []).append(event)

    def _now(self, now_ms: int) -> State:
        record, last = self._run.record, self._rounds[-1] if self._rounds else {}
        if self._at_s - self._estimated_s >= _LEAST_EARNING_S:
            self._estimate()
        return State(
            name=record.name,
            config=self._config.name,
            up=self._run.holder is not None,
            created_ms=record.created_ms,
            now_ms=now_ms,
            parts=tuple(_part(name, events) for name, events in self._parts.items()),
            rates=self._rates(now_ms),
            pages=self._count,
            ingested=last.get("transitions", 0),
            updates=last.get("updates", 0),
            policies=tuple(self._served(policy) for policy in self._config.learned_policies()),
            buckets=self._earnings,
            curves=self._curves(),
            verdicts=tuple(reversed(self._verdicts[-_VERDICTS:])),
        )

    def _rates(self, now_ms: int) -> Rates:
        answered = sum(page.decided_by is not None for page in self._recent)
        rounds = [row for row in self._rounds if row["time_ms"] >= now_ms - _RECENT_S * 1000]
        grown = {name: _grown(rounds, name) for name in ("transitions", "updates")}
        return Rates(len(self._recent) / _RECENT_S, answered / _RECENT_S, grown["transitions"], grown["updates"])

    def _served(self, policy: str) -> Served:
        verdicts = [verdict for verdict in self._verdicts if verdict.policy == policy]
        now = serving(verdicts)
        buckets = {bucket.name for bucket in self._config.buckets.assign if bucket.policy == policy}
        recent = [page for page in self._recent if page.bucket in buckets]
        return Served(
            policy=policy,
            version=now.version if now else 1,
            since_ms=now.since_ms if now else None,
            accepted=sum(verdict.outcome == "accepted" for verdict in verdicts),
            refused=sum(verdict.outcome == "refused" for verdict in verdicts),
            by_policy=sum(page.decided_by == "policy" for page in recent) / len(recent) if recent else None,
        )

    def _estimate(self) -> None:
        self._estimated_s = self._at_s
        times = [visits.times_ms[i] for visits in self._by_bucket.values() if visits.times_ms for i in (0, -1)]
        self._bins = Bins.over(min(times), max(times), _BINS) if times else None
        self._earnings = tuple(self._earning(bucket.name, bucket.policy) for bucket in self._config.buckets.assign)

    def _earning(self, bucket: str, policy: str) -> Earning:
        visits = self._by_bucket[bucket]
        found = clustered(visits.rewards, visits.users)
        return Earning(
            bucket=bucket,
            policy=policy,
            learned=policy in self._config.learned_policies(),
            visits=len(visits.rewards),
            reward=_number(found.mean),
            half=_number(found.half),
            over_time=visits.means(self._bins) if self._bins else (),
        )

    def _curves(self) -> Curves:
        rows = _thinned(self._rounds)
        names = [name for name, value in rows[-1].items() if isinstance(value, float)] if rows else []
        return Curves(
            transitions=tuple(row["transitions"] for row in rows),
            learning={name: tuple(_number(row.get(name)) for row in rows) for name in names},
            reward_ms=self._bins.middles_ms if self._bins else (),
        )


def _part(name: str, events: list[PartEvent]) -> Part:
    return Part(name, events[-1].event == "started", sum(event.event == "started" for event in events))


def _grown(rows: list[dict[str, Any]], name: str) -> float:
    """Per second, between the first and the last of the rows; a trainer that was set back counts from there."""
    if len(rows) < 2:
        return 0.0
    seconds = (rows[-1]["time_ms"] - rows[0]["time_ms"]) / 1000
    return max(rows[-1].get(name, 0) - rows[0].get(name, 0), 0) / seconds if seconds > 0 else 0.0


def _thinned(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evenly, with the last."""
    every = list(rows)
    step = max(len(every) // _POINTS, 1)
    return every[::-step][::-1]


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and value - value == 0 else None

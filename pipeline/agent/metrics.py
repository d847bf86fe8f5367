"""Counts and latencies of one process, plain numbers under (name, labels); an exporter reads them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]

BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Histogram(NamedTuple):
    counts: tuple[int, ...]  # counts[i]: above BOUNDS_S[i - 1], at most BOUNDS_S[i]; the last: above all
    sum_s: float


class Reading(NamedTuple):
    counts: dict[Key, int]
    gauges: dict[Key, float]
    latencies: dict[Key, Histogram]


class Metrics:
    """Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Key, int] = {}
        self._gauges: dict[Key, float] = {}
        self._latencies: dict[Key, tuple[list[int], float]] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        key = _key(name, labels)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._gauges[_key(name, labels)] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        key = _key(name, labels)
        with self._lock:
            counts, total = self._latencies.get(key) or ([0] * (len(BOUNDS_S) + 1), 0.0)
            counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._latencies[key] = counts, total + seconds

    def total(self, name: str, **labels: str) -> int:
        """The sum of a count over all labels that are not given."""
        wanted = set(labels.items())
        with self._lock:
            return sum(n for (its_name, its), n in self._counts.items() if its_name == name and wanted <= set(its))

    def read(self) -> Reading:
        with self._lock:
            latencies = {key: Histogram(tuple(counts), total) for key, (counts, total) in self._latencies.items()}
            return Reading(dict(self._counts), dict(self._gauges), latencies)


def _key(name: str, labels: dict[str, str]) -> Key:
    return name, tuple(sorted(labels.items()))

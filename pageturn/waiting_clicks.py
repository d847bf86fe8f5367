"""Clicks of pages that have closed, until the page's transition is in the log: how long what users did takes to there.

A page's transition comes after the user's next page, or when the session is over. Remembered are clicks only, by hash,
and the oldest are given up: memory is bounded.
"""

from __future__ import annotations

import xxhash

_KEPT = 100_000  # pages with a click


class WaitingClicks:
    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._times_ms: dict[int, tuple[int, ...]] = {}

    def closed(self, request_id: str, clicks_ms: tuple[int, ...]) -> None:
        if clicks_ms:
            self._times_ms[_hash(request_id)] = clicks_ms
            if len(self._times_ms) > self._kept:
                del self._times_ms[next(iter(self._times_ms))]

    def arrived(self, request_id: str) -> tuple[int, ...]:
        """The times of its clicks, once."""
        return self._times_ms.pop(_hash(request_id), ())


def _hash(request_id: str) -> int:
    return xxhash.xxh3_64_intdigest(request_id.encode())

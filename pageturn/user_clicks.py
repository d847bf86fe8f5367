"""The share of a bucket's users who click, by the hour: of those with a page shown in it.

Users are counted once, so they have to be remembered: by hash, and once there are many only every second of them, every
fourth and so on (adaptive sampling). The share is unbiased, and memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import xxhash

HOUR_MS = 3_600_000
_KEPT = 50_000  # users of a bucket; the share is then known to a quarter of a per cent or so


class _Sample:
    def __init__(self, kept: int) -> None:
        self._kept, self._mask = kept, 0
        self._clicked: dict[int, bool] = {}

    def add(self, user: int, clicked: bool) -> None:
        if user & self._mask:
            return
        self._clicked[user] = clicked or self._clicked.get(user, False)
        while len(self._clicked) > self._kept:
            self._mask = 2 * self._mask + 1
            self._clicked = {each: was for each, was in self._clicked.items() if not each & self._mask}

    @property
    def share(self) -> float:
        return sum(self._clicked.values()) / len(self._clicked)


class UserClicks:
    """Pages come in the order of their closing, give or take: an hour is over when a page of the next one comes."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept, self._hour = kept, -1
        self._samples: dict[str, _Sample] = {}

    def add(self, time_ms: int, bucket: str, user_id: str, clicked: bool) -> Iterator[tuple[str, float]]:
        """Yields the buckets' shares of an hour that is over. A page of an hour that was given out is left out."""
        hour = time_ms // HOUR_MS
        if hour > self._hour:
            yield from ((name, sample.share) for name, sample in self._samples.items())
            self._hour, self._samples = hour, {}
        if hour == self._hour:
            sample = self._samples.setdefault(bucket, _Sample(self._kept))
            sample.add(xxhash.xxh3_64_intdigest(user_id.encode()), clicked)

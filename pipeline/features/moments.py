"""Count, mean and squared deviations of a stream of numbers: Welford's update, Chan's merge. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct


class Moments(Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of squared deviations from the mean

    def add(self, values: Iterable[float]) -> Moments:
        """One value after another, so that chunks of any size give the same bits. NaN is a missing value: skipped."""
        count, mean, m2 = self.count, self.mean, self.m2
        for x in values:
            if x == x:
                count += 1
                delta = x - mean
                mean += delta / count
                m2 += delta * (x - mean)
        return Moments(count, mean, m2)

    def merge(self, other: Moments) -> Moments:
        """The moments of both streams together (Chan, Golub, LeVeque 1979)."""
        if not other.count:
            return self
        if not self.count:
            return other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + delta * delta * (self.count * other.count / count))

    @property
    def std(self) -> float:
        """Biased: the root of M2 / count; 0 for no values."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0

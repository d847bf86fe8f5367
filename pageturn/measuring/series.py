"""Bins of time, and other summaries that more than one part needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

_WIDTHS_MS = tuple(1000 * s for s in (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 24 * 3600))


class Bins(Struct, frozen=True):
    """Times from `start_ms` on, in `count` bins; what lies outside belongs to none."""

    start_ms: int
    width_ms: int
    count: int

    @classmethod
    def over(cls, first_ms: int, last_ms: int, at_most: int) -> Bins:
        """As fine as a round width allows."""
        span = max(last_ms - first_ms, 1)
        width = next((w for w in _WIDTHS_MS if span < w * at_most), _WIDTHS_MS[-1])
        return cls(first_ms, width, span // width + 1)

    def of(self, times_ms: Sequence[int] | np.ndarray) -> np.ndarray:
        """The bin of each time."""
        return (np.asarray(times_ms, np.int64) - self.start_ms) // self.width_ms

    @property
    def middles_ms(self) -> tuple[int, ...]:
        return tuple(self.start_ms + self.width_ms * i + self.width_ms // 2 for i in range(self.count))


class Quantiles(Struct, frozen=True):
    """None of nothing."""

    n: int
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Quantiles:
        if not len(values):
            return cls(0, None, None, None)
        return cls(len(values), *(float(q) for q in np.quantile(values, (0.5, 0.9, 0.99))))

"""What became of visits, and the figures by which buckets are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from pipeline.simulation.draws import Array


class Outcome(Struct, frozen=True):
    """One visit to the app. One that did not look at the feed has no pages."""

    user_id: str
    buyer: bool
    exposed: bool
    pages: int = 0
    clicks: int = 0
    orders: int = 0
    dwell_s: float = 0.0
    reward: float = 0.0


class Estimate(Struct, frozen=True):
    """A mean with its 95 % interval; NaN of nothing."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Summary(Struct, frozen=True):
    visits: int
    sessions: int  # visits that looked at the feed
    reward: Estimate  # per session, as are the others without a word
    depth: Estimate  # pages
    dwell_s: Estimate
    clicks: Estimate
    orders: Estimate
    exposure: Estimate  # sessions per visit
    user_clicks: Estimate  # share of sessions with a click


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    seen = [o for o in outcomes if o.exposed]
    return Summary(
        visits=len(outcomes),
        sessions=len(seen),
        reward=estimate([o.reward for o in seen]),
        depth=estimate([o.pages for o in seen]),
        dwell_s=estimate([o.dwell_s for o in seen]),
        clicks=estimate([o.clicks for o in seen]),
        orders=estimate([o.orders for o in seen]),
        exposure=estimate([o.exposed for o in outcomes]),
        user_clicks=estimate([o.clicks > 0 for o in seen]),
    )


def estimate(values: Sequence[float] | Array) -> Estimate:
    x = np.asarray(values, np.float64)
    if not len(x):
        return Estimate(float("nan"), float("nan"), float("nan"))
    half = 1.96 * float(np.std(x)) / len(x) ** 0.5
    return Estimate(float(np.mean(x)), float(np.mean(x)) - half, float(np.mean(x)) + half)


def ratio(values: Array, base: Array) -> Estimate:
    """Of two means over the same users: paired, by the delta method."""
    r = float(np.mean(values) / np.mean(base))
    half = 1.96 * float(np.std(values - r * base)) / (abs(float(np.mean(base))) * len(base) ** 0.5)
    return Estimate(r, r - half, r + half)

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
    visit: int = 0  # how many this user had before


class Estimate(Struct, frozen=True):
    """A mean with its 95 % interval; NaN of nothing."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return self.high - self.mean

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


_NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


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
    """Intervals take a user as one draw: what happened to them decides whether and in which mood they come back."""
    seen = [o for o in outcomes if o.exposed]
    return Summary(
        visits=len(outcomes),
        sessions=len(seen),
        reward=_per(seen, [o.reward for o in seen]),
        depth=_per(seen, [o.pages for o in seen]),
        dwell_s=_per(seen, [o.dwell_s for o in seen]),
        clicks=_per(seen, [o.clicks for o in seen]),
        orders=_per(seen, [o.orders for o in seen]),
        exposure=_per(outcomes, [o.exposed for o in outcomes]),
        user_clicks=_per(seen, [o.clicks > 0 for o in seen]),
    )


def _per(outcomes: Sequence[Outcome], values: Sequence[float]) -> Estimate:
    return clustered(values, [o.user_id for o in outcomes])


def clustered(values: Sequence[float] | Array, clusters: Sequence[str] | Array) -> Estimate:
    """The mean of values of which only those of different clusters are independent; no interval from one cluster.

    A ratio of two sums over clusters, total / size, linearised: half = 1.96 sqrt(m / (m - 1) sum_c e_c^2) / n with
    e_c = total_c - mean size_c, for m clusters and n values (Cochran, Sampling Techniques, 3rd ed., 9A.2).
    """
    if not len(values):
        return _NOTHING
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sizes, totals = np.bincount(index), np.bincount(index, np.asarray(values, np.float64))
    n, m = len(values), len(sizes)
    mean = float(totals.sum() / n)
    scale = m / (m - 1) if m > 1 else float("nan")
    half = 1.96 * float(np.sqrt(scale * np.square(totals - mean * sizes).sum())) / n
    return Estimate(mean, mean - half, mean + half)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, of means that are independent of each other."""
    return _around(a.mean - b.mean, np.hypot(a.half, b.half))


def relative(a: Estimate, b: Estimate) -> Estimate | None:
    """a / b - 1, of means that are independent of each other; None where b may be zero or less.

    Fieller's interval, the ratios r for which that of a - r b covers zero: so it says no other thing about "no
    difference" than `difference` does.
    """
    if not b.low > 0:
        return None
    square = b.mean**2 - b.half**2
    middle = a.mean * b.mean / square
    half = float(np.sqrt(a.half**2 * square + a.mean**2 * b.half**2)) / square
    return Estimate(a.mean / b.mean - 1, middle - half - 1, middle + half - 1)


def _around(mean: float, half: float) -> Estimate:
    return Estimate(mean, mean - float(half), mean + float(half))


def estimate(values: Sequence[float] | Array) -> Estimate:
    x = np.asarray(values, np.float64)
    if not len(x):
        return _NOTHING
    half = 1.96 * float(np.std(x)) / len(x) ** 0.5
    return Estimate(float(np.mean(x)), float(np.mean(x)) - half, float(np.mean(x)) + half)


def ratio(values: Array, base: Array) -> Estimate:
    """Of two means over the same users: paired, by the delta method."""
    r = float(np.mean(values) / np.mean(base))
    half = 1.96 * float(np.std(values - r * base)) / (abs(float(np.mean(base))) * len(base) ** 0.5)
    return Estimate(r, r - half, r + half)

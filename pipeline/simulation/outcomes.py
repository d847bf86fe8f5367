"""What became of visits, and the figures by which buckets are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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
    visit_reward: Estimate  # per visit: 0 where it did not look at the feed, which is a policy's doing, too
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
        visit_reward=_per(outcomes, [o.reward for o in outcomes]),
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

    A ratio of two sums over clusters, total / size, linearised: half = t sqrt(m / (m - 1) sum_c e_c^2) / n with
    e_c = total_c - mean size_c, for m clusters and n values (Cochran, Sampling Techniques, 3rd ed., 9A.2), and with
    Student's t of m - 1 degrees of freedom.
    """
    if not len(values):
        return _NOTHING
    found = _Clusters.of(clusters)
    mean, errors = found.deviations(np.asarray(values, np.float64))
    return _around(mean, found.scale * float(np.sqrt(np.square(errors).sum())))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, of means that are independent of each other.

    With t quantiles in both halves it is never narrower than the interval of Cochran and Cox (Experimental Designs,
    2nd ed., 4.14), which weighs the quantiles by the variances, not their squares.
    """
    return _around(a.mean - b.mean, np.hypot(a.half, b.half))


def relative(a: Estimate, b: Estimate) -> Estimate | None:
    """a / b - 1, of means that are independent of each other; None where b may be zero or less.

    Fieller's interval, the ratios r for which that of a - r b covers zero: so it says no other thing about "no
    difference" than `difference` does.
    """
    return _fieller(a.mean, b.mean, a.half**2, b.half**2, 0.0)


def relative_within(values: Array, base: Array, clusters: Sequence[str] | Array) -> Estimate | None:
    """mean / mean of the base - 1, of pairs of which only those of different clusters are independent; None where the
    mean of the base may be zero or less.

    Fieller's interval as in `relative`, with the covariance of the two: so it says no other thing about "no
    difference" than `clustered` does of the differences.
    """
    if not len(values):
        return None
    found = _Clusters.of(clusters)
    (a, ours), (b, theirs) = found.deviations(values), found.deviations(base)
    squares = [found.scale**2 * float((x * y).sum()) for x, y in ((ours, ours), (theirs, theirs), (ours, theirs))]
    return _fieller(a, b, *squares)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t.

    From five degrees on the expansion of Abramowitz and Stegun, 26.7.5, of four terms: too small by less than 3e-4.
    """
    if degrees <= len(_T):
        return _T[degrees - 1] if degrees > 0 else math.nan
    return _Z + sum(term / float(degrees) ** power for power, term in enumerate(_TERMS, start=1))


_Z = 1.959963984540054
_T = (12.706205, 4.302653, 3.182446, 2.776445)
_TERMS = (
    (_Z**3 + _Z) / 4,
    (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
    (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
    (79 * _Z**9 + 776 * _Z**7 + 1482 * _Z**5 - 1920 * _Z**3 - 945 * _Z) / 92160,
)


class _Clusters(NamedTuple):
    members: Array  # the cluster of each value
    sizes: Array

    @classmethod
    def of(cls, clusters: Sequence[str] | Array) -> _Clusters:
        members = np.unique(np.asarray(clusters), return_inverse=True)[1]
        return cls(members, np.bincount(members))

    @property
    def scale(self) -> float:
        """From the root of a sum of squared deviations to half of an interval; NaN for one cluster."""
        m = len(self.sizes)
        return t_quantile(m - 1) * math.sqrt(m / (m - 1)) / len(self.members) if m > 1 else math.nan

    def deviations(self, values: Array) -> tuple[float, Array]:
        """The mean, and each cluster's total minus what it would be with that mean."""
        totals = np.bincount(self.members, values)
        mean = float(totals.sum() / len(values))
        return mean, totals - mean * self.sizes


def _fieller(a: float, b: float, aa: float, bb: float, ab: float) -> Estimate | None:
    """a / b - 1; `aa`, `bb`: squared halves of their intervals; `ab`: their covariance, on the same scale."""
    square = b**2 - bb
    if not (b > 0 and square > 0):
        return None
    middle = (a * b - ab) / square
    half = math.sqrt(max(aa * square + a**2 * bb - 2 * a * b * ab + ab**2, 0.0)) / square
    return Estimate(a / b - 1, middle - half - 1, middle + half - 1)


def _around(mean: float, half: float) -> Estimate:
    return Estimate(mean, mean - float(half), mean + float(half))


# Of thousands of values that are all independent, as a yardstick's are --------------------------------------------


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

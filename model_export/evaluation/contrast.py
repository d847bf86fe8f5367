"""A policy's bucket against the baseline's: a confidence sequence of the difference of their means. Pure.

Users (or sessions, whichever the buckets are hashed by) are in the policy's bucket with probability q of its slots in
both, by a hash that knows nothing else about them. So each of them, in the order of their first pages, gives

    x = m1 - (1 + lift) m0 + Z / q (r - m1) - (1 + lift) (1 - Z) / (1 - q) (r - m0)

for its reward r, with Z = 1 in the policy's bucket and m1, m0 the means of either bucket's rewards before it. Whatever
m1 and m0 are, the expectation of x is that of the policy's rewards minus (1 + lift) times that of the baseline's: above
zero means a lift of more than `lift`. The mean of x differs from that of the plain bucket means by what the m had to
learn, and has their variance (the augmented estimator with a known propensity; as a sequence in Waudby-Smith et al.,
Time-uniform central limit theory and asymptotic confidence sequences, Annals of Statistics 52(6), 2024, section 3, and
for designs in Ham, Bojinov, Lindon and Tingley, Design-based confidence sequences, 2022). Here it is bounded by
`sequences.lower`, for rewards in [low, high] have an x that can be no further from its prediction than `reach`.

That takes for granted that those who come are in the policy's bucket with probability q. Where the policy served users
before, who comes again is its doing, too, and a mean over those who do would count against a policy that it keeps
users who bring little. What the slots bring in all (`Terms.totals`) is not misled by that: each who comes gives

    x = Z / q r - (1 + lift) (1 - Z) / (1 - q) r

of which the expectation, given that somebody comes, has the sign of what the policy would bring of all users minus
(1 + lift) times what the baseline would: one who stays away adds nothing to either (Horvitz and Thompson, A
generalization of sampling without replacement from a finite universe, JASA 47(260), 1952). The price: the variance
has the rewards' mean in it, for how many come is part of what is compared.

One user is one observation. Pages, or sessions, of a user taken for independent draws make the bounds wrong.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from model_export.evaluation.sequences import Array, Sums, deviation, past_means


class Terms(Struct, frozen=True):
    """What is settled beforehand."""

    share: float  # q
    low: float
    high: float
    lift: float = 0.0
    totals: bool = False  # what the slots bring is compared, and not what each who comes brings on average

    def reach(self) -> float:
        """The furthest that an x can be from its prediction."""
        if self.totals:
            least, most = self.ends()
            return most - least
        return (self.high - self.low) * max(1 / self.share, abs(1 + self.lift) / (1 - self.share))

    def ends(self) -> tuple[float, float]:
        """Between which every x of totals lies."""
        ours, theirs = 1 / self.share, -(1 + self.lift) / (1 - self.share)
        found = [weight * reward for weight in (ours, theirs) for reward in (self.low, self.high)]
        return min(found), max(found)


class Seen(NamedTuple):
    """Observations of a contrast: `x`, and what each was predicted to be; time is the last axis."""

    x: Array
    p: Array


def observe(terms: Terms, rewards: Array, treated: NDArray[np.bool_]) -> Seen:
    """Rewards are cut to [low, high]: the contrast is of the cut ones."""
    r = np.clip(rewards, terms.low, terms.high)
    ours, theirs = treated / terms.share, (1 + terms.lift) * ~treated / (1 - terms.share)
    if terms.totals:
        x = ours * r - theirs * r
        return Seen(x, np.clip(past_means(x, 0.0), *terms.ends()))
    m1, m0 = _earlier_mean(terms, r, treated), _earlier_mean(terms, r, ~treated)
    p = m1 - (1 + terms.lift) * m0
    return Seen(p + ours * (r - m1) - theirs * (r - m0), p)


def _earlier_mean(terms: Terms, r: Array, chosen: NDArray[np.bool_]) -> Array:
    """Of the chosen before each, and of one more that earned nothing."""
    counted = chosen.astype(np.float64)
    total, count = np.cumsum(r * counted, -1) - r * counted, np.cumsum(counted, -1) - counted
    return np.clip(total / (count + 1), terms.low, terms.high)


def bounds(terms: Terms, sums: Sums, alpha: float) -> tuple[Array, Array]:
    """Lower and upper confidence sequence of the mean contrast; each is wrong at any time with probability alpha / 2.

    Infinite before the first observation.
    """
    n, total, squares = (np.asarray(part, np.float64) for part in sums)
    reach = terms.reach()
    far = reach * deviation(squares / reach**2, alpha / 2)
    some, count = n > 0, np.maximum(n, 1)
    return np.where(some, (total - far) / count, -np.inf), np.where(some, (total + far) / count, np.inf)


def mismatch(share: float, ours: int, theirs: int) -> float:
    """log of the evidence that units do not come to the two buckets as the slots say; a chance of exp(-value) at most
    that it ever gets this high where they do.

    The likelihood ratio of a share that is drawn uniformly against `share`: a martingale under the latter (Lindon and
    Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022).
    """
    uniform = math.lgamma(ours + 1) + math.lgamma(theirs + 1) - math.lgamma(ours + theirs + 2)
    return uniform - ours * math.log(share) - theirs * math.log1p(-share)

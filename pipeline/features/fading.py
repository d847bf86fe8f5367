"""Mean and spread of a stream of numbers that fade: a value counts half after so many transitions. Pure.

Time is counted in transitions, with those that have no value, as for ids (`decaying.py`).

  weights     w = 2^(-age / half_life)
  mean        sum of w x / sum of w
  variance    sum of w (x - mean)^2 / sum of w, or if that is larger the mean of (x - mean of then)^2, of which a value
              counts half after 16 half-lives

The second is for a feature that stays as it is for longer than is remembered (a season, a price list, the day of a
campaign). Its variance fades to 0, and its next value would be any number of standard deviations away. What it moved by
before is remembered longer, so such a step is a few standard deviations. It does not grow with a trend, as the variance
of all values ever would, and it is forgotten in the end, as an outlier has to be. So a spread that grows is followed at
once, and one that shrinks more slowly than the mean.
Source of the update and of the merge: Chan, Golub & LeVeque (1979) with weights in the place of counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pipeline.features.moments import Moments

_LONGER = 16  # half-lives, for the moves


class Fading(Struct, frozen=True, forbid_unknown_fields=True):
    """Sums are as of the last value."""

    half_life: int
    count: int = 0  # values ever
    since: int = 0  # transitions without a value since the last one
    weight: float = 0.0
    mean: float = 0.0
    m2: float = 0.0  # weighted sum of squared deviations from the mean
    moves: float = 0.0  # weight of the moves, which fades slower
    moved2: float = 0.0  # weighted sum of their squares

    def add(self, values: Iterable[float]) -> Fading:
        """One value per transition, one after another, so that chunks of any size give the same bits.

        NaN is a missing value: time passes.
        """
        half_life = self.half_life
        count, since, weight, mean, m2 = self.count, self.since, self.weight, self.mean, self.m2
        moves, moved2 = self.moves, self.moved2
        for x in values:
            since += 1
            if x == x:
                faded, slowly = _left(since, half_life), _left(since, _LONGER * half_life)
                since, before, move = 0, faded * weight, x - mean
                weight = before + 1.0
                mean += move / weight
                m2 = faded * m2 + move * move * (before / weight)
                if count:
                    moves, moved2 = slowly * moves + 1.0, slowly * moved2 + move * move
                count += 1
        return Fading(half_life, count, since, weight, mean, m2, moves, moved2)

    def merge(self, other: Fading) -> Fading:
        """Of two streams that went on side by side until now, of the same half-life."""
        assert self.half_life == other.half_life
        if not other.count:
            return self
        if not self.count:
            return other
        x, y = self._now(), other._now()
        weight, delta = x.weight + y.weight, y.mean - x.mean
        share = _ratio(y.weight, weight)
        return Fading(
            self.half_life,
            x.count + y.count,
            0,
            weight,
            x.mean + delta * share,
            x.m2 + y.m2 + delta * delta * (x.weight * share),
            x.moves + y.moves,
            x.moved2 + y.moved2,
        )

    def _now(self) -> Fading:
        faded, slowly = _left(self.since, self.half_life), _left(self.since, _LONGER * self.half_life)
        sums = faded * self.weight, self.mean, faded * self.m2, slowly * self.moves, slowly * self.moved2
        return Fading(self.half_life, self.count, 0, *sums)

    def served(self) -> Moments:
        """What a snapshot carries: as many values as there ever were, with the mean and the variance of now."""
        if not self.count:
            return Moments()
        variance = max(_ratio(self.m2, self.weight), _ratio(self.moved2, self.moves))
        return Moments(self.count, self.mean, self.count * variance)


def _left(age: int, half_life: int) -> float:
    return float(2.0 ** (-age / half_life))


def _ratio(total: float, weight: float) -> float:
    return total / weight if weight else 0.0

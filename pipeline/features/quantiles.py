"""Where a number lies in the distribution of those seen so far: a sketch of the stream, and a map by its quantiles.

The sketch is one of equal buffers, one per power of two (Manku, Rajagopalan & Lindsay, SIGMOD 1998; the compactors of
Karnin, Lang & Liberty, FOCS 2016, without their coins). What is full is sorted, and every other number goes on with
twice the weight: first from the smallest, then from the second, in turn, so that errors do not add up to one side.

Error, for any order of the values: of n numbers the rank of any value is off by at most n (L + 1) / (2 SIZE), where L
is the number of buffers that were ever full, at most log2(n / SIZE) + 1. That is 1.2 % of a million numbers and 2.1 %
of a thousand million; up to SIZE - 1 numbers are known exactly. Memory: L SIZE numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import numpy as np

from pipeline.features.errors import SnapshotError

SIZE = 512  # numbers in a buffer, even
FARTHEST = 7.0  # standard deviations: of ranks that have all left the table no more can be said
_NUMBER = np.dtype("<f8")

Dump = tuple[tuple[bool, bytes], ...]  # per buffer, from weight 1 on: which half is next, and the numbers


class Sketch:
    """One number after another, so that chunks of any size give the same bits."""

    def __init__(self, dump: Dump = ()) -> None:
        """What another had seen, or nothing. Raises: SnapshotError."""
        self._buffers = [_read(data) for _, data in dump] or [[]]
        self._second = [second for second, _ in dump] or [False]

    def add(self, values: Iterable[float]) -> None:
        """NaN is a missing value: skipped."""
        lowest = self._buffers[0]
        for x in values:
            if x == x:
                lowest.append(x)
                if len(lowest) == SIZE:
                    self._collapse()

    def _collapse(self) -> None:
        level = 0
        while len(self._buffers[level]) == SIZE:
            if level + 1 == len(self._buffers):
                self._buffers.append([])
                self._second.append(False)
            self._buffers[level + 1] += sorted(self._buffers[level])[self._second[level] :: 2]
            self._buffers[level].clear()
            self._second[level] = not self._second[level]
            level += 1

    @property
    def count(self) -> int:
        return sum(len(buffer) << level for level, buffer in enumerate(self._buffers))

    def knots(self, bins: int) -> np.ndarray:
        """float64 [bins + 1], rising: the smallest number, then those that end a bin. Of at least one number."""
        numbers = np.concatenate([np.array(buffer, _NUMBER) for buffer in self._buffers])
        weights = np.repeat(1 << np.arange(len(self._buffers)), [len(buffer) for buffer in self._buffers])
        order = np.argsort(numbers, kind="stable")
        up_to = np.cumsum(weights[order])
        at = np.searchsorted(up_to * bins, np.arange(bins + 1) * up_to[-1])
        knots: np.ndarray = numbers[order][at]
        return knots

    def dump(self) -> Dump:
        numbers = (np.array(buffer, _NUMBER).tobytes() for buffer in self._buffers)
        return tuple(zip(self._second, numbers, strict=True))


def _read(data: bytes) -> list[float]:
    if len(data) % _NUMBER.itemsize or len(data) >= SIZE * _NUMBER.itemsize:
        msg = f"expected fewer than {SIZE} whole numbers in a buffer of a sketch, found {len(data)} bytes"
        raise SnapshotError(msg)
    numbers: list[float] = np.frombuffer(data, _NUMBER).tolist()
    return numbers


def positions(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """float64 [n] from -1, at the lowest knot and below, to 1, at the highest and above; linear between two knots.

    A value that several knots share lies in the middle of them; NaN, and any value where there are no knots, at 0.
    Never falls where values rise. Elementwise arithmetic that IEEE 754 rounds exactly.
    """
    if not len(knots):
        return np.zeros(len(values))
    bins = len(knots) - 1
    below, not_above = (np.searchsorted(knots, values, side) for side in ("left", "right"))
    left, right = knots[np.maximum(below, 1) - 1], knots[np.minimum(below, bins)]
    between = (below == not_above) & (left < right)
    inside = (values - left) / np.where(between, right - left, 1.0)
    at = np.where(between, below - 1 + inside, (below + not_above - 1) / 2)
    at = np.minimum(np.maximum(at, 0.0), bins)
    return np.where(np.isnan(values), 0.0, 2 * at / bins - 1)


def shift(before: np.ndarray, now: np.ndarray) -> float:
    """How far a feature has moved between two tables of knots, in standard deviations.

    What was served as rank u from -1 to 1 is served as another now. m is the mean of |difference| over the values of
    then, 0 to 1. A normal distribution that is shifted by s standard deviations has m = 2 Phi(s / sqrt 2) - 1, so the
    answer is that s: of the same unit as the move of a mean, and like ranks without one of the feature. Ranks of what
    only became wider or narrower move too, by less than 1.
    """
    gaps = np.abs(positions(before, now) - positions(before, before))
    m = float((gaps[1:] + gaps[:-1]).mean() / 2)
    return min(FARTHEST, 2**0.5 * NormalDist().inv_cdf((1 + m) / 2)) if m < 1 else FARTHEST

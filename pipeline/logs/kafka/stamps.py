"""Stamps that never decrease, over a log whose own may: the next leader's clock may be behind the last one's."""

from __future__ import annotations

from collections.abc import Callable


def highest_before(offset: int, stamp: int, first_at: Callable[[int], int | None]) -> int:
    """The highest stamp of the records before an offset, or `stamp` if none is higher.

    With it a reader that starts in the middle gives the record there, stamped `stamp`, the same stamp as one that came
    from the start. `first_at(t)` is the first offset with a stamp of at least t: the index that Kafka keeps. One
    question where no clock was ever set back; else some more, by the logarithm of how far.
    """

    def lies_before(at_least_ms: int) -> bool:
        first = first_at(at_least_ms)
        return first is not None and first < offset

    if not lies_before(stamp + 1):
        return stamp
    low, step = stamp + 1, 1  # there is one of at least `low`
    while lies_before(low + step):
        low, step = low + step, step * 2
    high = low + step  # there is none of at least `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lies_before(middle) else (low, middle)
    return low

"""The grid of actions that value-based learners choose from."""

from __future__ import annotations

import math

from pipeline.config.schema import ActionDimension

MOST_ATOMS = 512
_SAME = 1e-6  # of the range: a level that misses the baseline by rounding only


def levels_of(dimension: ActionDimension, count: int) -> tuple[float, ...]:
    """`count` levels evenly over the range, and the baseline to the last bit, lowest first.

    A level that is the baseline but for rounding is the baseline; otherwise the baseline is one level more.
    """
    low, high = dimension.range
    even = (low + (high - low) * i / (count - 1) for i in range(count))
    others = (level for level in even if abs(level - dimension.baseline) > _SAME * abs(high - low))
    return tuple(sorted((*others, dimension.baseline)))


def atoms(dimensions: tuple[ActionDimension, ...], count: int) -> int:
    """How many actions the grid has: all combinations of the dimensions' levels."""
    return math.prod(len(levels_of(dimension, count)) for dimension in dimensions)

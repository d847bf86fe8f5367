"""Random numbers as a function of what they are for: (seed, user, session, page, item), never of when they are drawn.

Hashes of 64 bits (splitmix64's finaliser, Steele, Lea and Flood 2014), and only arithmetic that IEEE 754 rounds
exactly: a session simulated alone and in a batch, on any machine, has the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW_32, _LOW_16 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
_TRIANGLE = 6**0.5 / 2**16  # the sum of two uniform numbers has variance 1/6


def root(seed: int) -> Array:
    """The key [1] of a seed."""
    return _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) ^ _GOLDEN)


def key(parent: Array, index: Array | int) -> Array:
    """The key of child `index` (0 or more) of each parent; the two broadcast."""
    step = (np.atleast_1d(np.asarray(index)).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return _mixed(parent + step)


def uniform(keys: Array) -> Array:
    """One number in [0, 1) per key, of 53 bits."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def two_uniforms(keys: Array) -> tuple[Array, Array]:
    """Two independent numbers in [0, 1) per key, of 32 bits each."""
    high, low = keys >> np.uint64(32), keys & _LOW_32
    return high.astype(np.float64) * 2.0**-32, low.astype(np.float64) * 2.0**-32


def two_bells(keys: Array) -> tuple[Array, Array]:
    """Two independent numbers per key with mean 0, variance 1 and a triangular density on (-2.45, 2.45)."""
    parts = [((keys >> np.uint64(shift)) & _LOW_16).astype(np.float64) for shift in (0, 16, 32, 48)]
    return (parts[0] + parts[1] - 65535.0) * _TRIANGLE, (parts[2] + parts[3] - 65535.0) * _TRIANGLE


def squash(x: Array) -> Array:
    """An increasing function of the real line onto (0, 1) with value 1/2 and slope 1/2 at 0: turns a leaning into a
    probability. Algebraic, where a logistic function would have other last bits on another machine."""
    return np.asarray(0.5 + 0.5 * x / np.sqrt(1.0 + x * x))


def _mixed(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return np.asarray(z ^ (z >> np.uint64(31)))

"""The last transitions as prepared rows, and which of them an update learns from.

Rows are not checkpointed: they are read again from the log. What is kept is where each came from.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from pipeline.learning.ingestion import Example


class Origins(NamedTuple):
    """Where the rows came from, oldest first."""

    partitions: np.ndarray  # int32
    offsets: np.ndarray  # int64


class Sampled(NamedTuple):
    state: np.ndarray  # [n] prepared
    next_state: np.ndarray  # [n] prepared
    action: np.ndarray  # [n, N]
    reward: np.ndarray
    discount: np.ndarray
    by_baseline: np.ndarray


class Replay:
    """A ring: transition number i of the run lies at i modulo capacity."""

    def __init__(self, capacity: int, row: np.dtype, dimensions: int) -> None:
        self.capacity, self.added = capacity, 0
        self._rows = np.zeros((capacity, 2), row)  # memory is taken as rows are written
        self._action = np.zeros((capacity, dimensions), np.float32)
        self._scalars = np.zeros((capacity, 3), np.float32)  # reward, discount, by baseline
        self._partitions = np.zeros(capacity, np.int32)
        self._offsets = np.zeros(capacity, np.int64)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, example: Example, partition: int, offset: int) -> None:
        at = self.added % self.capacity
        self._rows[at] = example.rows
        self._action[at] = example.action
        transition = example.transition
        self._scalars[at] = transition.reward, transition.discount, example.by_baseline
        self._partitions[at], self._offsets[at] = partition, offset
        self.added += 1

    def sample(self, rng: np.random.Generator, n: int) -> Sampled:
        """n rows, uniformly, with repetition."""
        return self.take(self.draw(rng, n))

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Where n rows lie, uniformly, with repetition."""
        return rng.integers(0, len(self), size=n)

    def take(self, at: np.ndarray) -> Sampled:
        rows, scalars = self._rows.take(at, axis=0), self._scalars[at]
        return Sampled(rows[:, 0], rows[:, 1], self._action[at], *np.ascontiguousarray(scalars.T))

    def origins(self) -> Origins:
        oldest_first = np.arange(self.added - len(self), self.added) % self.capacity
        return Origins(self._partitions[oldest_first], self._offsets[oldest_first])

    def keep_last(self, n: int) -> None:
        """Forget all but the last n rows, or as many as there are, and start over with these."""
        n = min(n, len(self))
        at = np.arange(self.added - n, self.added) % self.capacity
        for column in (self._rows, self._action, self._scalars, self._partitions, self._offsets):
            column[:n] = column[at]
        self.added = n

    def start_at(self, number: int) -> None:
        """The next row is that of transition number `number`: before rows are put back where they lay."""
        self.added = number


class RecentIds:
    """Which transitions were seen of late: an engine that restarts may deliver some again. Keeps 64-bit hashes."""

    def __init__(self, capacity: int, hashes: np.ndarray | None = None) -> None:
        self._capacity = capacity
        self._seen = OrderedDict.fromkeys([] if hashes is None else hashes.tolist())

    def __contains__(self, digest: int) -> bool:
        return digest in self._seen

    def add(self, digest: int) -> None:
        self._seen[digest] = None
        if len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def hashes(self) -> np.ndarray:
        """uint64, oldest first."""
        return np.fromiter(self._seen, np.uint64, len(self._seen))

"""The last pages as prepared rows: a replay that ends by number and by age, and what came since the last update.

Rows are not checkpointed: they are read again from the log. What is kept is where each came from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.features.candidates import item_inputs, places
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.examples import Encoders, PageExample
from pipeline.learning.drn.learner import Pages
from pipeline.learning.replay import Origins


class History:
    """A ring: page number i of the run lies at i modulo capacity."""

    def __init__(self, capacity: int, encoders: Encoders) -> None:
        self.capacity, self.added = capacity, 0
        self._encoders = encoders
        self._pages: dict[int, PageExample] = {}  # by place
        self._partitions, self._offsets = np.zeros(capacity, np.int32), np.zeros(capacity, np.int64)

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, page: PageExample, partition: int, offset: int) -> None:
        at = self.added % self.capacity
        self._pages[at] = page
        self._partitions[at], self._offsets[at] = partition, offset
        self.added += 1

    def since(self, number: int) -> np.ndarray:
        """Numbers of the pages from that one on that are still there."""
        return np.arange(max(number, self.added - len(self)), self.added)

    def younger(self, oldest_ms: int) -> np.ndarray:
        """Numbers of the pages that were complete at that moment or later; times increase with numbers."""
        numbers = self.since(0)
        times = np.array([self._pages[number % self.capacity].time_ms for number in numbers.tolist()], np.int64)
        return numbers[np.searchsorted(times, oldest_ms) :]

    def batches(self, numbers: np.ndarray, snapshot: Snapshot) -> Pages:
        """[n, B] numbers -> inputs [n, 1, B, ...]: of one seed, encoded together, padded to the longest page."""
        pages = [self._pages[number % self.capacity] for number in numbers.ravel().tolist()]
        user, following = (self._states([getattr(p, name) for p in pages], snapshot) for name in ("user", "next_user"))
        items, ahead = [p.items for p in pages], [p.next_items for p in pages]
        shown, exists = places(items), _some(places(ahead))
        reward = np.zeros(shown.shape, np.float32)
        reward[shown] = np.concatenate([p.reward for p in pages])
        discount = np.array([p.discount for p in pages], np.float32)
        inputs = item_inputs(self._encoders.item, items, snapshot)
        next_inputs = {name: _some(x) for name, x in item_inputs(self._encoders.item, ahead, snapshot).items()}
        flat = Pages(user, inputs, shown, reward, discount, following, next_inputs, exists)
        return Pages(*(_shaped(column, numbers.shape) for column in flat))

    def _states(self, rows: Sequence[np.ndarray], snapshot: Snapshot) -> dict[str, np.ndarray]:
        encoder = self._encoders.state
        return encoder.finish(np.concatenate(rows, dtype=encoder.prepared_dtype), snapshot)

    def origins(self) -> Origins:
        oldest_first = self.since(0) % self.capacity
        return Origins(self._partitions[oldest_first], self._offsets[oldest_first])

    def start_at(self, number: int) -> None:
        """The next page is number `number`: before pages are put back where they lay."""
        self.added = number


def _some(x: np.ndarray) -> np.ndarray:
    """With room for a candidate where no page has one: the maximum over none is not defined."""
    return np.pad(x, [(0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)]) if x.shape[1] == 0 else x


def _shaped(column: np.ndarray | dict[str, np.ndarray], shape: tuple[int, ...]) -> object:
    """[n B, ...] -> [n, 1, B, ...]."""
    if isinstance(column, dict):
        return {name: _shaped(x, shape) for name, x in column.items()}
    n, size = shape
    return column.reshape(n, 1, size, *column.shape[1:])

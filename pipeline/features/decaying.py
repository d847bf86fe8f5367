"""A vocabulary that follows what is frequent now: counts fade, and a row may pass from one id to another.

Time is counted in transitions, not by a clock: a backlog that is read in an hour, a night without traffic and a replay
of the log give the same rows.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.config.schema import DynamicVocabulary
from pipeline.features.errors import SnapshotError
from pipeline.features.inputs import first_id_row
from pipeline.features.vocabulary import most_candidates

_TIMES = 2  # as frequent as the id that has a row is who takes it: what was learned of that one is given up


class Counted(NamedTuple):
    """Little-endian: ids uint64, counts float64."""

    transitions: int
    ids: bytes  # by row
    counts: bytes
    candidates: bytes
    candidate_counts: bytes


class DecayingVocabulary:
    """Ids are 64-bit hashes; 0 is a missing id and not counted.

    A sight of an id counts 1, and half of that after `half_life` transitions. What is kept is the count in units of the
    last multiple of the half-life, when all were halved: exactly, so it does not matter when it is looked at. An id
    gets a free row once its count, rounded, is `min_count`. Where there is none it takes that of the least count,
    if its own is more than twice as high.
    """

    def __init__(self, config: DynamicVocabulary, dump: Counted | None = None) -> None:
        """With what another had counted, or nothing. Raises: SnapshotError."""
        assert config.half_life is not None
        self._room = config.capacity - first_id_row(config)
        self._enough, self._half_life = config.min_count - 0.5, config.half_life
        self._limit = most_candidates(config)
        self._transitions = dump.transitions if dump else 0
        # Of ids that have a row, by row: what is looked at as a whole, every round and with every checkpoint.
        self._ids = array("Q", _numbers(dump.ids, "<u8") if dump else [])
        self._counts = array("d", _paired(dump.ids, dump.counts).values() if dump else [])
        self._row = {h: row for row, h in enumerate(self._ids)}
        self._candidates = _paired(dump.candidates, dump.candidate_counts) if dump else {}
        self._rarest: list[tuple[float, int]] = []  # a heap: counts of ids that have a row, or what they once were
        self._order()

    def count(self, ids: Iterable[int]) -> None:
        """Of one transition."""
        weight = self._weight
        for h in ids:
            row = self._row.get(h)
            if row is not None:
                self._counts[row] += weight
            elif h:
                self._seen(h, weight)
        self._transitions += 1
        if self._transitions % self._half_life == 0:
            self._counts = array("d", (np.array(self._counts) / 2).tobytes())
            self._candidates = {h: count / 2 for h, count in self._candidates.items()}
            self._order()

    @property
    def _weight(self) -> float:
        """Of a sight, now."""
        return float(2.0 ** (self._transitions % self._half_life / self._half_life))

    def _seen(self, h: int, weight: float) -> None:
        count = self._candidates.get(h, 0.0) + weight
        self._candidates[h] = count
        if count >= self._enough * weight:
            if len(self._ids) < self._room:
                self._admit(h, len(self._ids))
            elif count > _TIMES * self._counts[row := self._least()]:
                self._evict(row)
                self._admit(h, row)
        if len(self._candidates) > self._limit:
            self._forget_rare()

    def _admit(self, h: int, row: int) -> None:
        count = self._candidates.pop(h)
        self._ids[row : row + 1] = array("Q", [h])
        self._counts[row : row + 1] = array("d", [count])
        self._row[h] = row
        heapq.heappush(self._rarest, (count, h))

    def _evict(self, row: int) -> None:
        """It may come back: its count goes on."""
        _, h = heapq.heappop(self._rarest)
        del self._row[h]
        self._candidates[h] = self._counts[row]

    def _least(self) -> int:
        """The row of the least count (of equal ones that of the smaller hash). What lies on the heap may have grown."""
        while (entry := self._rarest[0])[0] != (now := self._counts[row := self._row[entry[1]]]):
            heapq.heapreplace(self._rarest, (now, entry[1]))
        return row

    def _order(self) -> None:
        self._rarest = list(zip(self._counts, self._ids, strict=True))
        heapq.heapify(self._rarest)

    def _forget_rare(self) -> None:
        """The rarer half; of equal ones those that came first."""
        rarest_first = sorted(self._candidates, key=self._candidates.__getitem__)
        for h in rarest_first[: len(rarest_first) // 2]:
            del self._candidates[h]

    def hashes(self) -> np.ndarray:
        """uint64, by row."""
        return np.array(self._ids, "<u8")

    def dump(self) -> Counted:
        candidates = len(self._candidates)
        return Counted(
            self._transitions,
            self.hashes().tobytes(),
            np.array(self._counts, "<f8").tobytes(),
            np.fromiter(self._candidates, "<u8", candidates).tobytes(),
            np.fromiter(self._candidates.values(), "<f8", candidates).tobytes(),
        )


def _numbers(data: bytes, dtype: str) -> list[int]:
    numbers: list[int] = np.frombuffer(data, dtype).tolist()
    return numbers


def _paired(ids: bytes, counts: bytes) -> dict[int, float]:
    if len(ids) != len(counts) or len(ids) % 8:
        msg = f"expected a count per id of a vocabulary, found {len(counts)} bytes for {len(ids)}"
        raise SnapshotError(msg)
    return dict(zip(_numbers(ids, "<u8"), np.frombuffer(counts, "<f8").tolist(), strict=True))

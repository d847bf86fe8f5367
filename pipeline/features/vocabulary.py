"""A vocabulary that grows: an id gets the next free row once it was seen `min_count` times, and keeps it for good."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.config.schema import DynamicVocabulary
from pipeline.features.inputs import first_id_row

_CANDIDATES_PER_ROW = 4
_LEAST_CANDIDATES = 1024


def most_candidates(config: DynamicVocabulary) -> int:
    """How many ids without a row are counted."""
    return max(_CANDIDATES_PER_ROW * config.capacity, _LEAST_CANDIDATES)


class Vocabulary:
    """Ids are 64-bit hashes; 0 is a missing id and not counted.

    Counts of candidates take bounded memory: past the limit the rarer half is forgotten (ties: the one that came
    first), so an id that comes less often than about once per `limit` new ids may never be admitted.
    """

    def __init__(self, config: DynamicVocabulary) -> None:
        self._room = config.capacity - first_id_row(config)
        self._min_count = config.min_count
        self._limit = most_candidates(config)
        self._admitted: dict[int, None] = {}  # in order of admission
        self._candidates: dict[int, int] = {}  # counts, in order of first appearance

    def count(self, hashes: Iterable[int]) -> None:
        admitted = self._admitted
        for h in hashes:
            if h and h not in admitted and len(admitted) < self._room:
                self._seen(h)

    def _seen(self, h: int) -> None:
        count = self._candidates.get(h, 0) + 1
        if count < self._min_count:
            self._candidates[h] = count
            if len(self._candidates) > self._limit:
                self._forget_rare()
            return
        self._candidates.pop(h, None)
        self._admitted[h] = None
        if len(self._admitted) == self._room:
            self._candidates.clear()

    def _forget_rare(self) -> None:
        oldest_first = list(self._candidates.items())
        by_count = sorted(range(len(oldest_first)), key=lambda i: (oldest_first[i][1], i))
        kept = sorted(by_count[len(by_count) // 2 :])
        self._candidates = dict(oldest_first[i] for i in kept)

    def hashes(self) -> np.ndarray:
        """uint64, in order of admission."""
        return np.fromiter(self._admitted, "<u8", len(self._admitted))

    def dump(self) -> tuple[bytes, bytes, bytes]:
        """Admitted, candidates, and the candidates' counts, as little-endian 64-bit integers."""
        candidates = np.fromiter(self._candidates.keys(), "<u8", len(self._candidates))
        counts = np.fromiter(self._candidates.values(), "<u8", len(self._candidates))
        return self.hashes().tobytes(), candidates.tobytes(), counts.tobytes()

    def load(self, admitted: list[int], candidates: list[int], counts: list[int]) -> None:
        self._admitted = dict.fromkeys(admitted)
        self._candidates = dict(zip(candidates, counts, strict=True))

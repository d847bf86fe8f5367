"""The head of ingestion, whatever is learned: a record of the transitions topic is news, known already, or refused."""

from __future__ import annotations

import numpy as np
import xxhash

from pipeline.learning.ingestion import Unusable, read_transition
from pipeline.learning.merging import Told
from pipeline.learning.progress import Progress
from pipeline.learning.replay import RecentIds
from pipeline.logs.log import TRANSITIONS, Record
from pipeline.records import DeadLetter, Transition

RECENT_IDS = 131_072


class Intake:
    """Owns what was seen of late. What is read is counted in the progress that it is given."""

    def __init__(self, hashes: bytes = b"") -> None:
        """With what another had seen: its `hashes`."""
        self._recent = RecentIds(RECENT_IDS, np.frombuffer(hashes, "<u8"))

    def read(self, record: Record | Told, progress: Progress) -> Transition | DeadLetter | None:
        """None: it is known already."""
        progress.positions[record.partition] = record.offset + 1
        transition = read_transition(record.payload)
        if isinstance(transition, Unusable):
            return refused(record, transition, progress)
        if _digest(transition) in self._recent:
            progress.duplicates += 1
            return None
        return transition

    def know(self, transition: Transition) -> None:
        self._recent.add(_digest(transition))

    def hashes(self) -> bytes:
        return self._recent.hashes().astype("<u8").tobytes()


def refused(record: Record | Told, why: Unusable, progress: Progress, topic: str = TRANSITIONS) -> DeadLetter:
    progress.refuse(why.reason)
    where = f"{topic}/{record.partition}:{record.offset}"
    return DeadLetter(where, why.reason, why.detail, record.appended_at_ms, record.key, record.payload)


def _digest(transition: Transition) -> int:
    return xxhash.xxh3_64_intdigest(transition.id.encode())

"""The event log seam: topics of partitions of records that only grow.

A record has an offset (0, 1, 2 ... in its partition) and a stamp, `appended_at_ms`, that never decreases within a
partition. Records of one key stay in one partition, in the order in which they were appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipeline.errors import PageturnError

EVENTS = "events"  # raw, as producers wrote them
SAMPLES = "samples"  # closed pages with their point-wise labels
TRANSITIONS = "transitions"
EPISODES = "episodes"
LATE, ORPHANS, DUPLICATES, DEAD_LETTERS = "late", "orphans", "duplicates", "dead_letters"
OUTPUTS = (SAMPLES, TRANSITIONS, EPISODES, LATE, ORPHANS, DUPLICATES, DEAD_LETTERS)


class LogError(PageturnError):
    """The log cannot be opened, read or written; says which one and what to do."""


class Record(NamedTuple):
    partition: int
    offset: int
    appended_at_ms: int
    key: str
    payload: bytes


class Entry(NamedTuple):
    """What a producer hands over. Importers give the stamp; otherwise the log takes the clock."""

    key: str
    payload: bytes
    appended_at_ms: int | None = None


class EventLog(Protocol):
    def create(self, topic: str, partitions: int) -> None:
        """Make the topic. Harmless when it is there with as many partitions; LogError when with another number."""

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; LogError when there is no such topic."""

    def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Durable when it returns (as far as the engine's settings go). All entries or, with LogError, none or some."""

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """At most `limit` records from `offset` on; empty when there is nothing yet. Never blocks."""

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset that the next record will get."""

    def sync(self) -> None:
        """Force to the disk what a snapshot may now rely on, whatever the engine's settings: what was appended here,
        and what others appended before the end offsets that were asked for."""

    def close(self) -> None: ...


def has_topic(log: EventLog, topic: str) -> bool:
    try:
        log.partitions(topic)
    except LogError:
        return False
    return True


def ensure_topic(log: EventLog, topic: str, partitions: int) -> None:
    """Make the topic if it is not there; the number of partitions of one that is there stays what it is."""
    if not has_topic(log, topic):
        log.create(topic, partitions)

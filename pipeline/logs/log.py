"""The event log seam: topics of partitions of records that grow at the end, and may be cut at the start (retention).

A record has an offset, which increases within its partition (with gaps, on some engines), and a stamp,
`appended_at_ms`, which never decreases within it. Records of one key stay in one partition, in the order in which they
were appended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from pipeline.errors import PageturnError

EVENTS = "events"  # raw, as producers wrote them
SAMPLES = "samples"  # closed pages with their point-wise labels
TRANSITIONS = "transitions"
EPISODES = "episodes"
LATE, ORPHANS, DUPLICATES, DEAD_LETTERS = "late", "orphans", "duplicates", "dead_letters"
OUTPUTS = (SAMPLES, TRANSITIONS, EPISODES, LATE, ORPHANS, DUPLICATES, DEAD_LETTERS)


_TOPIC = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_MAX_PARTITIONS = 10_000


class LogError(PageturnError):
    """The log cannot be opened, read or written; says which one and what to do."""


class NoTopic(LogError):
    """The log can be used, but has no such topic: create it, or wait for it."""


class TooLarge(LogError):
    """Some entries are larger than the topic takes, now and at every other try. All the others were appended."""

    def __init__(self, message: str, places: Iterable[int]) -> None:
        super().__init__(message)
        self.places = frozenset(places)  # of those entries, among the ones that were to be appended


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
        """Durable when it returns (as far as the engine's settings go). All entries or, with LogError, none or some;
        with TooLarge all but the ones that it names."""

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """At most `limit` records from `offset` on; empty when there is nothing yet. Never waits for what may come.

        LogError for an offset before the first one or past the end: never a record that was not asked for.
        """

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        """Where to go on when a read from `offset` gave nothing: there, or behind offsets that hold no record."""

    def start_offset(self, topic: str, partition: int) -> int:
        """The first offset that was not deleted."""

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset that the next record will get."""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """By partition, all taken after the call."""

    def sync(self) -> None:
        """Force to the disk what a snapshot may now rely on, whatever the engine's settings: what was appended here,
        and what others appended before the end offsets that were asked for."""

    def close(self) -> None: ...


def has_topic(log: EventLog, topic: str) -> bool:
    try:
        log.partitions(topic)
    except NoTopic:
        return False
    return True


def check_topic(topic: str, partitions: int) -> None:
    """LogError unless every engine can make such a topic."""
    if not _TOPIC.fullmatch(topic) or not 1 <= partitions <= _MAX_PARTITIONS:
        expected = f"a name of lower-case letters, digits, _ . - and 1 to {_MAX_PARTITIONS} partitions"
        message = f"cannot create topic {topic!r} with {partitions} partitions: expected {expected}"
        raise LogError(message)


def ensure_topic(log: EventLog, topic: str, partitions: int) -> None:
    """Make the topic if it is not there; the number of partitions of one that is there stays what it is."""
    if not has_topic(log, topic):
        log.create(topic, partitions)

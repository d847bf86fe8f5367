"""What became of every event, counted by the ids in the output topics; engine counters count attempts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import xxhash
from msgspec import Struct

from pipeline.logs.log import (
    DEAD_LETTERS,
    DUPLICATES,
    EPISODES,
    LATE,
    ORPHANS,
    SAMPLES,
    TRANSITIONS,
    EventLog,
)
from pipeline.streaming.outputs import Identity, identity, page_identity, read_all
from pipeline.streaming.snapshot import SESSION_STATE, SESSIONS_STEP, Snapshot, SnapshotFile, session_state
from pipeline.transitions.session import open_events


class Counts(Struct, frozen=True):
    """Events: read = joined + duplicate + late + orphan + dead + open. `terminal` transitions have discount 0."""

    read: int
    joined: int
    duplicate: int
    late: int
    orphan: int
    dead: int
    open: int  # in a page that has not closed yet
    pages: int
    sessions: int
    transitions: int
    terminal: int
    episodes: int

    def rows(self) -> list[tuple[str, int]]:
        return list(msgspec.structs.asdict(self).items())


class _Discount(Struct):
    discount: float


def _is_raw(dead_letter: bytes) -> bool:
    """Whether it was an event; the trainer's dead letters are transitions, `transitions/partition:offset`."""
    return "/" not in msgspec.json.decode(dead_letter, type=Identity).id


def count(log: EventLog, state_dir: Path) -> Counts:
    """Counts as of the last snapshot (the outputs of a running stream are a little ahead of it)."""
    snapshot = SnapshotFile(state_dir).load()
    joined, pages, sessions = _pages(log)
    transitions, terminal = _transitions(log)
    return Counts(
        read=sum(snapshot.progress.positions.values()) if snapshot else 0,
        joined=joined,
        duplicate=_size(log, DUPLICATES),
        late=_size(log, LATE),
        orphan=_size(log, ORPHANS),
        dead=sum(_is_raw(payload) for payload in _distinct(log, DEAD_LETTERS)),
        open=_open(snapshot) if snapshot else 0,
        pages=pages,
        sessions=sessions,
        transitions=transitions,
        terminal=terminal,
        episodes=_size(log, EPISODES),
    )


def _pages(log: EventLog) -> tuple[int, int, int]:
    """Events joined, pages, sessions."""
    joined, pages, sessions = 0, 0, set()
    for payload in _distinct(log, SAMPLES):
        page = page_identity(payload)
        joined += 1 + len(page.feedback)
        pages += 1
        sessions.add(page.impression.session_id)
    return joined, pages, len(sessions)


def _transitions(log: EventLog) -> tuple[int, int]:
    """All, and the terminal ones."""
    discounts = Counter(
        msgspec.json.decode(payload, type=_Discount).discount for payload in _distinct(log, TRANSITIONS)
    )
    return discounts.total(), discounts[0.0]


def _size(log: EventLog, topic: str) -> int:
    return sum(1 for _ in _distinct(log, topic))


def _distinct(log: EventLog, topic: str) -> Iterator[bytes]:
    """One payload per record; a record that a log took twice has the same id and the same bytes."""
    seen: set[bytes] = set()
    for record in read_all(log, topic):
        digest = xxhash.xxh3_128_digest(record.payload)
        if digest not in seen and identity(topic, record.payload) is not None:
            seen.add(digest)
            yield record.payload


def _open(snapshot: Snapshot) -> int:
    states = snapshot.progress.steps[SESSIONS_STEP].cells[SESSION_STATE].values()
    return sum(len(open_events(session_state(value))) for values in states for value in values)

"""What became of every event, counted by the ids in the output topics; engine counters count attempts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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
    Record,
)
from pipeline.streaming.outputs import Identity, identity, page_identity, read_all
from pipeline.streaming.shards import load_snapshots
from pipeline.streaming.snapshot import SESSION_STATE, SESSIONS_STEP, Snapshot, session_state
from pipeline.transitions.session import SessionState, open_events


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


Each = Callable[[str, Record], None]
_Payloads = Callable[[str], Iterator[bytes]]  # of a topic


def count(log: EventLog, state_dir: Path, each: Each | None = None) -> Counts:
    """Counts as of the last snapshot, of all shards (the outputs of a running stream are a little ahead of it).

    `each` hears of every distinct record with its topic: who wants to know more need not read the log again.
    """
    snapshots = load_snapshots(state_dir)

    def payloads(topic: str) -> Iterator[bytes]:
        for record in _distinct(log, topic):
            if each is not None:
                each(topic, record)
            yield record.payload

    joined, pages, sessions = _pages(payloads)
    transitions, terminal = _transitions(payloads)
    return Counts(
        read=sum(snapshot.progress.read for snapshot in snapshots),
        joined=joined,
        duplicate=_size(payloads, DUPLICATES),
        late=_size(payloads, LATE),
        orphan=_size(payloads, ORPHANS),
        dead=sum(_is_raw(payload) for payload in payloads(DEAD_LETTERS)),
        open=sum(map(_open, snapshots)),
        pages=pages,
        sessions=sessions,
        transitions=transitions,
        terminal=terminal,
        episodes=_size(payloads, EPISODES),
    )


def _pages(payloads: _Payloads) -> tuple[int, int, int]:
    """Events joined, pages, sessions."""
    joined, pages, sessions = 0, 0, set()
    for payload in payloads(SAMPLES):
        page = page_identity(payload)
        joined += 1 + len(page.feedback)
        pages += 1
        sessions.add(page.impression.session_id)
    return joined, pages, len(sessions)


def _transitions(payloads: _Payloads) -> tuple[int, int]:
    """All, and the terminal ones."""
    discounts = Counter(msgspec.json.decode(payload, type=_Discount).discount for payload in payloads(TRANSITIONS))
    return discounts.total(), discounts[0.0]


def _size(payloads: _Payloads, topic: str) -> int:
    return sum(1 for _ in payloads(topic))


def _distinct(log: EventLog, topic: str) -> Iterator[Record]:
    """One record per id; one that a log took twice has the same id and the same bytes."""
    seen: set[bytes] = set()
    for record in read_all(log, topic):
        digest = xxhash.xxh3_128_digest(record.payload)
        if digest not in seen and identity(topic, record.payload) is not None:
            seen.add(digest)
            yield record


def _open(snapshot: Snapshot) -> int:
    return sum(len(open_events(state)) for state in open_sessions(snapshot))


def open_sessions(snapshot: Snapshot) -> Iterator[SessionState]:
    """Raises SnapshotError where another build wrote them."""
    keys = snapshot.progress.steps[SESSIONS_STEP].keys.values()
    return (session_state(value) for key in keys if key is not None for value in key.cells.get(SESSION_STATE, ()))

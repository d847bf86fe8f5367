"""What became of every event, counted by the ids in the output topics; engine counters count attempts."""

from __future__ import annotations

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
    pages = [page_identity(payload) for payload in _distinct(log, SAMPLES)]
    transitions = _distinct(log, TRANSITIONS)
    return Counts(
        read=sum(snapshot.progress.positions.values()) if snapshot else 0,
        joined=sum(1 + len(page.feedback) for page in pages),
        duplicate=len(_distinct(log, DUPLICATES)),
        late=len(_distinct(log, LATE)),
        orphan=len(_distinct(log, ORPHANS)),
        dead=sum(_is_raw(payload) for payload in _distinct(log, DEAD_LETTERS)),
        open=_open(snapshot) if snapshot else 0,
        pages=len(pages),
        sessions=len({page.impression.session_id for page in pages}),
        transitions=len(transitions),
        terminal=sum(msgspec.json.decode(payload, type=_Discount).discount == 0 for payload in transitions),
        episodes=len(_distinct(log, EPISODES)),
    )


def _distinct(log: EventLog, topic: str) -> list[bytes]:
    """One payload per record; a record that a log took twice has the same id and the same bytes."""
    records: dict[tuple[str, bytes], bytes] = {}
    for record in read_all(log, topic):
        name = identity(topic, record.payload)
        if name is not None:
            records.setdefault((name, xxhash.xxh3_128_digest(record.payload)), record.payload)
    return list(records.values())


def _open(snapshot: Snapshot) -> int:
    states = snapshot.progress.steps[SESSIONS_STEP].cells[SESSION_STATE].values()
    return sum(len(open_events(session_state(value))) for values in states for value in values)

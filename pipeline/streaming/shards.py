"""A stream in several processes: each reads the whole log, and keeps the sessions whose ids hash to it.

What becomes of a session is decided from its own events and the log's stamps alone, so its outputs are those of an
unsharded stream, whichever process makes them: pages, transitions and episodes, and also what is set aside, which is
always an event of some session. Bytes in which no session can be read belong to the shard that their place in the log
hashes to. Each shard has a snapshot of its own. How many there are cannot be changed later: shards stop at different
places of the log.

What scales: parsing, joining, encoding and writing. What does not: every shard reads every record, far enough to see
its session.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash
from msgspec import Struct

from pipeline.logs.log import Record
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.segments import ANEW
from pipeline.streaming.snapshot import Snapshot, SnapshotStore

_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


class Shard(NamedTuple):
    index: int = 0
    count: int = 1

    def owns_session(self, session_id: str) -> bool:
        return xxhash.xxh3_64_intdigest(session_id.encode()) % self.count == self.index

    def owns(self, record: Record) -> bool:
        return self.owns_session(_session_of(record))

    def folder(self, state: Path) -> Path:
        """Where it keeps its state. SnapshotError if there is a state of another number of shards."""
        others = {count for _, count in shards_in(state)} - {self.count}
        if (state / "snapshot").exists() and self.count > 1:
            others.add(1)
        if others:
            found = f"{state} holds the state of a stream of {min(others)} shards, not {self.count}"
            message = f"{found}, and sessions cannot move between them: go back to that number, or {ANEW}"
            raise SnapshotError(message)
        return state if self.count == 1 else state / f"shard-{self.index}-of-{self.count}"


class _Head(Struct):
    session_id: str


_head = msgspec.json.Decoder(_Head)


def _session_of(record: Record) -> str:
    """Of any record that is an event, and of some that are not: its session. Of others, its place in the log."""
    try:
        return _head.decode(record.payload).session_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"{record.partition}:{record.offset}"


def shards_in(state: Path) -> list[Shard]:
    """That have begun to keep their state there."""
    names = [path.name for path in state.iterdir()] if state.is_dir() else []
    return sorted(Shard(int(found[1]), int(found[2])) for name in names if (found := _FOLDER.fullmatch(name)))


def load_snapshots(state: Path) -> list[Snapshot]:
    """Of all shards that have one; of a stream that is not sharded its only one."""
    folders = [shard.folder(state) for shard in shards_in(state)] or [state]
    return [snapshot for folder in folders if (snapshot := SnapshotStore(folder).load()) is not None]

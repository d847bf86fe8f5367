"""The stream's state on disk: in <state>/snapshot, saved a change at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from pipeline.streaming import changelog
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.progress import Progress, SavedKey, SavedStep
from pipeline.streaming.segments import ANEW
from pipeline.transitions.session import SessionState, StateError, decode_state

SESSIONS_STEP, SESSION_STATE = "Stream/Sessions", "session"  # where the stream keeps its sessions

_OLD_FILE = "stream.snapshot"  # of formats before the third
_SEGMENT_BYTES = 16 * 1024 * 1024
_DEAD_ALLOWED = 5_000  # records beyond as many dead as alive, before any are swept up


class Snapshot(Struct, frozen=True):
    job: dict[str, Any]  # what the state depends on; a job that differs in any of it cannot use the state
    progress: Progress
    sinks: dict[str, dict[int, int]]  # topic -> partition -> end offset when the snapshot was taken


class SnapshotStore:
    """Reading is for every process at any time; saving for the one that has the folder to itself."""

    def __init__(self, state: Path, *, segment_bytes: int = _SEGMENT_BYTES, dead_allowed: int = _DEAD_ALLOWED) -> None:
        self._state, self._folder = state, state / "snapshot"
        self._segment_bytes, self._dead_allowed = segment_bytes, dead_allowed
        self._writer: changelog.Writer | None = None

    def load(self) -> Snapshot | None:
        """None if there is none; SnapshotError if it is damaged or of another format."""
        found = self._read()
        return None if found is None else self._snapshot(found)

    def save(self, snapshot: Snapshot) -> None:
        """Its steps say what changed since the last one; the first time, everything."""
        try:
            if self._writer is None:
                self._writer = changelog.Writer(self._folder, self._read(), self._segment_bytes, self._dead_allowed)
            self._writer.save(_changes(snapshot.progress), Raw(msgspec.msgpack.encode(_without_keys(snapshot))))
        except OSError as error:
            message = f"cannot write snapshot {self._folder}: {error.strerror}; the last one is still there"
            raise SnapshotError(message) from error

    def check(self, snapshot: Snapshot, job: dict[str, Any]) -> None:
        """SnapshotError that lists all differences if the snapshot was taken by another job."""
        names = sorted(snapshot.job.keys() | job.keys())
        was, now = snapshot.job, job
        differences = [f"{n} was {was.get(n)}, is {now.get(n)}" for n in names if was.get(n) != now.get(n)]
        if differences:
            message = f"snapshot {self._folder} is of another job: {'; '.join(differences)}. Go back to that, or {ANEW}"
            raise SnapshotError(message)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _read(self) -> changelog.Found | None:
        old = self._state / _OLD_FILE
        if old.exists():
            message = f"{old} is a snapshot of another format, of an earlier program: use that one, or {ANEW}"
            raise SnapshotError(message)
        try:
            while True:
                try:
                    return changelog.read(self._folder)
                except FileNotFoundError:  # a stream at work has just deleted a segment
                    continue
        except OSError as error:
            message = f"cannot read snapshot {self._folder}: {error.strerror}"
            raise SnapshotError(message) from error

    def _snapshot(self, found: changelog.Found) -> Snapshot:
        try:
            snapshot = msgspec.msgpack.decode(found.note, type=Snapshot)
            return _with_keys(snapshot, found.table)
        except msgspec.DecodeError as error:
            message = f"{self._folder} is not laid out as expected: {error}; {ANEW}"
            raise SnapshotError(message) from error


def session_state(encoded: bytes) -> SessionState:
    """SnapshotError if another build of the program wrote it."""
    try:
        return decode_state(encoded)
    except StateError as error:
        message = f"a session's saved state cannot be read: {error}; use the program that saved it, or {ANEW}"
        raise SnapshotError(message) from error


def _changes(progress: Progress) -> changelog.Changes:
    encode = msgspec.msgpack.encode
    return {
        label: {key: None if saved is None else Raw(encode(saved)) for key, saved in step.keys.items()}
        for label, step in progress.steps.items()
    }


def _without_keys(snapshot: Snapshot) -> Snapshot:
    return _with_keys(snapshot, {})


def _with_keys(snapshot: Snapshot, table: changelog.Table) -> Snapshot:
    decode = msgspec.msgpack.Decoder(SavedKey).decode
    steps: dict[str, SavedStep] = {}
    for label, step in snapshot.progress.steps.items():
        keys: dict[str, SavedKey | None] = {key: decode(value) for key, value in table.get(label, {}).items()}
        steps[label] = structs.replace(step, keys=keys)
    return structs.replace(snapshot, progress=structs.replace(snapshot.progress, steps=steps))

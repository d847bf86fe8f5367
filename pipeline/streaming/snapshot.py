"""The stream's state on disk: one file, replaced as a whole, msgpack behind a header with format and checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import xxhash
from msgspec import Struct

from pipeline import durable
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.progress import Progress
from pipeline.transitions.session import SessionState, StateError, decode_state

SESSIONS_STEP, SESSION_STATE = "Stream/Sessions", "session"  # where the stream keeps its sessions

_MAGIC = b"pageturn stream snapshot "
_HEADER = _MAGIC + b"2\n"  # raise the number whenever a field below, or of Progress, changes
_DIGEST_BYTES = 16
_ANEW = "start anew with an empty state folder and new output topics (the events are read again from the start)"


class Snapshot(Struct, frozen=True):
    job: dict[str, Any]  # what the state depends on; a job that differs in any of it cannot use the state
    progress: Progress
    sinks: dict[str, dict[int, int]]  # topic -> partition -> end offset when the snapshot was taken


class SnapshotFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "stream.snapshot"

    def load(self) -> Snapshot | None:
        """None if there is none; SnapshotError if it is damaged or of another format."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"cannot read snapshot {self._path}: {error.strerror}"
            raise SnapshotError(message) from error
        return _decode(self._path, data)

    def save(self, snapshot: Snapshot) -> None:
        body = msgspec.msgpack.encode(snapshot)
        try:
            durable.write(self._path, _HEADER + xxhash.xxh3_128_digest(body) + body)
        except OSError as error:
            message = f"cannot write snapshot {self._path}: {error.strerror}; the last one is still there"
            raise SnapshotError(message) from error

    def check(self, snapshot: Snapshot, job: dict[str, Any]) -> None:
        """SnapshotError that lists all differences if the snapshot was taken by another job."""
        names = sorted(snapshot.job.keys() | job.keys())
        was, now = snapshot.job, job
        differences = [f"{n} was {was.get(n)}, is {now.get(n)}" for n in names if was.get(n) != now.get(n)]
        if differences:
            message = f"snapshot {self._path} is of another job: {'; '.join(differences)}. Go back to that, or {_ANEW}"
            raise SnapshotError(message)


def session_state(encoded: bytes) -> SessionState:
    """SnapshotError if another build of the program wrote it."""
    try:
        return decode_state(encoded)
    except StateError as error:
        message = f"a session's saved state cannot be read: {error}; use the program that saved it, or {_ANEW}"
        raise SnapshotError(message) from error


def _decode(path: Path, data: bytes) -> Snapshot:
    if not data.startswith(_HEADER):
        found = data[:40].split(b"\n")[0]
        what = "of another format" if found.startswith(_MAGIC) else "no snapshot"
        message = f"{path} is {what}: expected it to begin with {_HEADER!r}, found {found!r}; {_ANEW}"
        raise SnapshotError(message)
    digest, body = data[len(_HEADER) :][:_DIGEST_BYTES], data[len(_HEADER) + _DIGEST_BYTES :]
    if xxhash.xxh3_128_digest(body) != digest:
        message = f"{path} is damaged: its checksum does not fit its {len(body)} bytes; restore it, or {_ANEW}"
        raise SnapshotError(message)
    try:
        return msgspec.msgpack.decode(body, type=Snapshot)
    except msgspec.DecodeError as error:
        message = f"{path} is not laid out as expected: {error}; {_ANEW}"
        raise SnapshotError(message) from error

"""Topics of the event log as Parquet files, each record exactly once. Needs no Beam.

Files are <dir>/<topic>/date=YYYY-MM-DD/hour=HH/p<partition>-<first offset>-<last offset>.parquet, by event time (raw
events: by stamp), in UTC. Rows go to the files under .staging as they come, and stay there until there is enough for
files that are worth reading. A commit: (1) close these files and force them to the disk; (2) replace .commit.json,
which names them and says how far the log is archived; (3) move each to its place. Whoever starts after a crash
finishes (3) of the last commit and removes what no commit names; readers of <dir>/<topic> never see a file that is not
whole, nor one twice.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from pipeline import durable
from pipeline.durable import StorageError, exclusive
from pipeline.logs.log import EventLog, Record
from pipeline.logs.opening import open_log
from pipeline.logs.reading import read_on
from pipeline.streaming.tables import ARCHIVED, TABLES, Row, rows_of

_VERSION = 1
_STAGING, _COMMIT = ".staging", ".commit.json"


class Place(NamedTuple):
    """Which file a row goes to; the topic is the table's own but for rows of damaged records."""

    table: str
    topic: str
    partition: int  # of the log
    hour: str

    def path(self, first: int, last: int) -> str:
        folder = self.table if self.table == self.topic else f"{self.table}/topic={self.topic}"
        return f"{folder}/{self.hour}/p{self.partition:04d}-{first:020d}-{last:020d}.parquet"


class Limits(NamedTuple):
    records_per_read: int = 1_000  # of one partition
    buffer_bytes: int = 16 * 1024 * 1024  # of payload: about 100 MB as rows, in memory; written as a row group
    commit_bytes: int = 256 * 1024 * 1024  # of payload, over all topics and partitions
    commit_after_s: float = 600.0
    commit_files: int = 256  # that are being written: an import is over many hours
    idle_wait_s: float = 0.5


class Commit(Struct, frozen=True):
    version: int = _VERSION
    number: int = 0  # in the names of its staged files: a later commit's must not be taken for them
    files: tuple[tuple[str, str], ...] = ()  # (under .staging, under the directory)
    positions: dict[str, dict[int, int]] = {}  # topic -> partition -> next offset


def archive(
    log_url: str,
    directory: Path,
    *,
    until_idle: bool,
    stop: threading.Event,
    topics: Sequence[str] = ARCHIVED,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
) -> int:
    """Archive until stopped or, with `until_idle`, until all is archived. Returns how many records it took.

    LogError where a topic is missing; StorageError where the folder cannot be used, or another archiver has it.
    """
    log = open_log(log_url)
    try:
        with exclusive(directory):
            return _Archiver(log, directory, topics, limits).run(until_idle, stop)
    except OSError as error:
        message = f"cannot archive to {directory}: {error.strerror or error}; what was committed is safe"
        raise StorageError(message) from error
    finally:
        log.close()


class _Archiver:
    def __init__(self, log: EventLog, directory: Path, topics: Sequence[str], limits: Limits) -> None:
        self._log, self._directory, self._limits = log, directory, limits
        self._commit = recover(directory)
        counts = {topic: log.partitions(topic) for topic in topics}
        known = self._commit.positions
        self._next = {
            (t, p): known[t][p] if p in known.get(t, {}) else log.start_offset(t, p)
            for t, count in counts.items()
            for p in range(count)
        }
        self._staging = _Staging(directory, self._commit.number + 1, limits.buffer_bytes)
        self._bytes, self._records, self._taken, self._committed_at_s = 0, 0, 0, time.monotonic()

    def run(self, until_idle: bool, stop: threading.Event) -> int:
        while not stop.is_set():
            found = self._read()
            idle = until_idle and not found
            if self._due() or idle:
                self._write()
            if idle:
                break
            if not found:
                stop.wait(self._limits.idle_wait_s)
        self._write()
        return self._taken

    def _read(self) -> bool:
        """Take in a little of every partition; whether there was anything."""
        found = False
        for (topic, partition), offset in self._next.items():
            records, following = read_on(self._log, topic, partition, offset, self._limits.records_per_read)
            for record in records:
                self._staging.add(topic, record)
            self._records += len(records)
            self._bytes += sum(len(record.payload) for record in records)
            self._next[topic, partition] = following
            found = found or bool(records)
        return found

    def _due(self) -> bool:
        waited_s = time.monotonic() - self._committed_at_s
        enough = self._bytes >= self._limits.commit_bytes or self._staging.size >= self._limits.commit_files
        return enough or waited_s >= self._limits.commit_after_s

    def _write(self) -> None:
        if self._records:
            self._commit = self._staging.commit(self._positions())
            self._staging = _Staging(self._directory, self._commit.number + 1, self._limits.buffer_bytes)
        self._taken += self._records
        self._bytes, self._records, self._committed_at_s = 0, 0, time.monotonic()

    def _positions(self) -> dict[str, dict[int, int]]:
        positions = {topic: dict(offsets) for topic, offsets in self._commit.positions.items()}
        for (topic, partition), offset in self._next.items():
            positions.setdefault(topic, {})[partition] = offset
        return positions


class _File:
    """A file that is being written, and the offsets in it."""

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self._schema = TABLES[table].schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self.first, self.last = 2**63, -1

    def add(self, row: Row, offset: int) -> None:
        self._rows.append(row)
        self.first, self.last = min(offset, self.first), max(offset, self.last)

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        self.flush()
        self._writer.close()
        durable.sync(self.path)


class _Staging:
    """The files of the next commit."""

    def __init__(self, directory: Path, number: int, buffer_bytes: int) -> None:
        self._directory, self._number, self._buffer_bytes = directory, number, buffer_bytes
        self._files: dict[Place, _File] = {}
        self._buffered_bytes = 0

    @property
    def size(self) -> int:
        return len(self._files)

    def add(self, topic: str, record: Record) -> None:
        table, timed = rows_of(topic, record)
        for time_ms, row in timed:
            self._file(Place(table, topic, record.partition, _hour(time_ms))).add(row, record.offset)
        self._buffered_bytes += len(record.payload)
        if self._buffered_bytes >= self._buffer_bytes:
            for file in self._files.values():
                file.flush()
            self._buffered_bytes = 0

    def commit(self, positions: dict[str, dict[int, int]]) -> Commit:
        """Archive what was added, all or nothing."""
        for file in self._files.values():
            file.close()
        if self._files:
            durable.sync(self._directory / _STAGING)
        files = [(file.path.name, place.path(file.first, file.last)) for place, file in self._files.items()]
        made = Commit(number=self._number, files=tuple(files), positions=positions)
        durable.write(self._directory / _COMMIT, msgspec.json.encode(made))
        _move(self._directory, made)
        return made

    def _file(self, place: Place) -> _File:
        if place not in self._files:
            folder = self._directory / _STAGING
            if not self._files:
                folder.mkdir(exist_ok=True)
            path = folder / f"{self._number}-{len(self._files):06d}.parquet"
            self._files[place] = _File(path, place.table)
        return self._files[place]


def recover(directory: Path) -> Commit:
    """Finish the last commit and remove what none names."""
    last = _last_commit(directory / _COMMIT)
    _move(directory, last)
    shutil.rmtree(directory / _STAGING, ignore_errors=True)
    return last


def _last_commit(path: Path) -> Commit:
    try:
        last = msgspec.json.decode(path.read_bytes(), type=Commit)
    except FileNotFoundError:
        return Commit()
    except msgspec.DecodeError as error:
        message = f"{path} is damaged ({error}): restore it, or archive to a new folder"
        raise StorageError(message) from error
    if last.version != _VERSION:
        message = f"{path} is of version {last.version}, this program reads {_VERSION}; archive to a new folder"
        raise StorageError(message)
    return last


def _move(directory: Path, made: Commit) -> None:
    """Put a commit's files in their places; those no longer in .staging are there already."""
    for staged, final in made.files:
        source, target = directory / _STAGING / staged, directory / final
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for folder in sorted({folder for _, final in made.files for folder in _folders(directory, final)}):
        if folder.exists():
            durable.sync(folder)


def _folders(directory: Path, final: str) -> list[Path]:
    """From the hour up to the archive: each may be new, so each one's names are forced to the disk."""
    return [directory / parent for parent in Path(final).parents]


def _hour(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("date=%Y-%m-%d/hour=%H")

"""Topics of the event log as Parquet files, each record exactly once. Needs no Beam.

Files are <dir>/<topic>/date=YYYY-MM-DD/hour=HH/p<partition>-<first offset>-<last offset>.parquet, by event time (raw
events: by stamp), in UTC. A commit: (1) write the files under .staging and force them to the disk; (2) replace
.commit.json, which names them and says how far the log is archived; (3) move each to its place. Whoever starts after
a crash finishes (3) of the last commit and removes what no commit names; readers of <dir>/<topic> never see a file
that is not whole, nor one twice.
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
_ROW_GROUP = 65_536


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
    commit_bytes: int = 16 * 1024 * 1024  # of payload: about 100 MB of rows in memory, some MB of Parquet
    commit_after_s: float = 60.0
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
        self._waiting: list[tuple[str, Record]] = []
        self._bytes, self._committed_at_s, self._taken = 0, time.monotonic(), 0

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
            self._waiting += [(topic, record) for record in records]
            self._bytes += sum(len(record.payload) for record in records)
            self._next[topic, partition] = following
            found = found or bool(records)
        return found

    def _due(self) -> bool:
        waited_s = time.monotonic() - self._committed_at_s
        return self._bytes >= self._limits.commit_bytes or waited_s >= self._limits.commit_after_s

    def _write(self) -> None:
        if self._waiting:
            self._commit = commit(self._directory, self._commit, self._waiting, self._positions())
        self._taken += len(self._waiting)
        self._waiting, self._bytes, self._committed_at_s = [], 0, time.monotonic()

    def _positions(self) -> dict[str, dict[int, int]]:
        positions = {topic: dict(offsets) for topic, offsets in self._commit.positions.items()}
        for (topic, partition), offset in self._next.items():
            positions.setdefault(topic, {})[partition] = offset
        return positions


def commit(
    directory: Path, last: Commit, records: Sequence[tuple[str, Record]], positions: dict[str, dict[int, int]]
) -> Commit:
    """Archive records, all or none."""
    staging = directory / ".staging"
    staging.mkdir(exist_ok=True)
    files = []
    for index, (place, rows, offsets) in enumerate(_filed(records)):
        staged = f"{last.number + 1}-{index:06d}.parquet"
        _write_parquet(staging / staged, place.table, rows)
        files.append((staged, place.path(min(offsets), max(offsets))))
    durable.sync(staging)
    made = Commit(number=last.number + 1, files=tuple(files), positions=positions)
    durable.write(directory / ".commit.json", msgspec.json.encode(made))
    _move(directory, made)
    return made


def recover(directory: Path) -> Commit:
    """Finish the last commit and remove what none names."""
    last = _last_commit(directory / ".commit.json")
    _move(directory, last)
    shutil.rmtree(directory / ".staging", ignore_errors=True)
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
        source, target = directory / ".staging" / staged, directory / final
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for folder in sorted({folder for _, final in made.files for folder in _folders(directory, final)}):
        if folder.exists():
            durable.sync(folder)


def _folders(directory: Path, final: str) -> list[Path]:
    """From the hour up to the archive: each may be new, so each one's names are forced to the disk."""
    return [directory / parent for parent in Path(final).parents]


def _filed(records: Sequence[tuple[str, Record]]) -> list[tuple[Place, list[Row], list[int]]]:
    """Rows by the file they go to, with their offsets."""
    files: dict[Place, list[Row]] = {}
    offsets: dict[Place, list[int]] = {}
    for topic, record in records:
        table, timed = rows_of(topic, record)
        for time_ms, row in timed:
            place = Place(table, topic, record.partition, _hour(time_ms))
            files.setdefault(place, []).append(row)
            offsets.setdefault(place, []).append(record.offset)
    return [(place, rows, offsets[place]) for place, rows in files.items()]


def _hour(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("date=%Y-%m-%d/hour=%H")


def _write_parquet(path: Path, table: str, rows: list[Row]) -> None:
    data = pa.Table.from_pylist(rows, schema=TABLES[table].schema)
    pq.write_table(data, path, compression="zstd", row_group_size=_ROW_GROUP)
    durable.sync(path)

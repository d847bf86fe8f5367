"""The event log in a folder: <dir>/<topic>/partition-0000/<20-digit offset of the first line>.jsonl.

Any number of processes may append and read. A writer holds the partition's lock for one append, so stamps never
decrease and a line is never torn by another writer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import xxhash

from pipeline import durable
from pipeline.logs.lines import encode_line
from pipeline.logs.log import Entry, LogError, NoTopic, Record, check_topic
from pipeline.logs.segments import Cursor, Tail, bases, segment_path

_PARTITION = re.compile(r"partition-(\d{4})")
_MAX_CURSORS = 256  # each holds a file open

Fsync = Literal["append", "roll"]
_REMEDIES = {
    errno.EACCES: "give this user the right to it, or choose another folder",
    errno.EPERM: "give this user the right to it, or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a file is where a folder should be; move it away, or choose another folder",
    errno.EEXIST: "a file is where a folder should be; move it away, or choose another folder",
    errno.ENOSPC: "the disk is full; make room and start again, nothing acknowledged was lost",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def partition_of(key: str, partitions: int) -> int:
    """The partition that holds all records of a key: the same on every machine and in every release."""
    return xxhash.xxh3_64_intdigest(key.encode()) % partitions


class FileLog:
    """An EventLog on files. `fsync` says when bytes are forced to the disk: on every append, or when a segment is
    complete and on close (a crash of the machine, unlike one of a process, may then cost the last records)."""

    def __init__(
        self,
        directory: Path,
        *,
        clock_ms: Callable[[], int] = wall_clock_ms,
        segment_bytes: int = 64 * 1024 * 1024,
        fsync: Fsync = "roll",
    ) -> None:
        self._directory, self._clock_ms = directory, clock_ms
        self._segment_bytes, self._fsync = segment_bytes, fsync
        self._mutex = threading.RLock()
        self._partitions: dict[str, int] = {}
        self._writers: dict[tuple[str, int], _Writer] = {}
        self._tails: dict[tuple[str, int], Tail] = {}
        self._cursors: dict[tuple[str, int, int], Cursor] = {}  # by the offset each would read next

    def create(self, topic: str, partitions: int) -> None:
        check_topic(topic, partitions)
        with self._mutex, explained(self._directory):
            if not self._folder(topic).exists():
                self._make(topic, partitions)
            found = self.partitions(topic)
        if found != partitions:
            remedy = f"ask for {found}, or use a new log (records cannot move between partitions)"
            message = f"{self._folder(topic)} has {found} partitions, not {partitions}: {remedy}"
            raise LogError(message)

    def partitions(self, topic: str) -> int:
        with self._mutex, explained(self._folder(topic)):
            if topic not in self._partitions:
                self._partitions[topic] = self._count(topic)
            return self._partitions[topic]

    def append(self, topic: str, entries: Sequence[Entry]) -> None:
        count = self.partitions(topic)
        shares: dict[int, list[Entry]] = {}
        for entry in entries:
            shares.setdefault(partition_of(entry.key, count), []).append(entry)
        with self._mutex:
            for partition, share in shares.items():
                with explained(self._partition_folder(topic, partition)):
                    self._writer(topic, partition).append(share)

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        with self._mutex, explained(self._partition_folder(topic, partition)):
            cursor = self._cursors.pop((topic, partition, offset), None)
            cursor = cursor or Cursor(self._existing(topic, partition), partition, offset)
            records = cursor.read(limit)
            self._keep(topic, cursor)
            return records

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        return offset  # a file has no gaps

    def start_offset(self, topic: str, partition: int) -> int:
        with self._mutex, explained(self._partition_folder(topic, partition)):
            return next(iter(bases(self._existing(topic, partition))), 0)

    def end_offset(self, topic: str, partition: int) -> int:
        with self._mutex, explained(self._partition_folder(topic, partition)):
            return self._tail(topic, partition).catch_up().offset

    def end_offsets(self, topic: str) -> dict[int, int]:
        return {partition: self.end_offset(topic, partition) for partition in range(self.partitions(topic))}

    def sync(self) -> None:
        """By the tails: they are at what was appended here, and at what others did (or died of) up to an end asked."""
        with self._mutex, explained(self._directory):
            for tail in self._tails.values():
                tail.sync()

    def close(self) -> None:
        with self._mutex:
            resources: list[_Writer | Tail | Cursor] = [*self._writers.values(), *self._tails.values()]
            for resource in [*resources, *self._cursors.values()]:
                resource.close()
            self._writers, self._tails, self._cursors = {}, {}, {}

    def _folder(self, topic: str) -> Path:
        return self._directory / topic

    def _partition_folder(self, topic: str, partition: int) -> Path:
        return self._folder(topic) / f"partition-{partition:04d}"

    def _existing(self, topic: str, partition: int) -> Path:
        count = self.partitions(topic)
        if not 0 <= partition < count:
            message = f"{self._folder(topic)} has no partition {partition}: it has {count}"
            raise LogError(message)
        return self._partition_folder(topic, partition)

    def _make(self, topic: str, partitions: int) -> None:
        """All partitions appear at once, by a rename, so that nobody counts them half made."""
        staged = self._directory / f".{topic}.{uuid.uuid4().hex}"
        for partition in range(partitions):
            (staged / f"partition-{partition:04d}").mkdir(parents=True)
        try:
            staged.rename(self._folder(topic))
        except OSError:
            shutil.rmtree(staged)
            if not self._folder(topic).is_dir():  # otherwise another process was first
                raise

    def _count(self, topic: str) -> int:
        folder = self._folder(topic)
        if not folder.exists():
            message = f"no topic {topic!r} in {self._directory}: create it with its number of partitions first"
            raise NoTopic(message)
        found = sorted(name for name in os.listdir(folder) if _PARTITION.fullmatch(name))
        if not found or found != [f"partition-{number:04d}" for number in range(len(found))]:
            expected = "folders partition-0000, partition-0001 and so on"
            message = f"{folder}: expected {expected}, found {found}; restore them, or use a new log"
            raise LogError(message)
        return len(found)

    def _tail(self, topic: str, partition: int) -> Tail:
        tail = self._tails.get((topic, partition))
        if tail is None:
            tail = self._tails[topic, partition] = Tail(self._existing(topic, partition))
        return tail

    def _writer(self, topic: str, partition: int) -> _Writer:
        writer = self._writers.get((topic, partition))
        if writer is None:
            folder, tail = self._existing(topic, partition), self._tail(topic, partition)
            writer = _Writer(folder, tail, self._clock_ms, self._segment_bytes, self._fsync)
            self._writers[topic, partition] = writer
        return writer

    def _keep(self, topic: str, cursor: Cursor) -> None:
        """Readers that went on from the same offset share one cursor; the one unused for longest is closed."""
        replaced = self._cursors.pop((topic, cursor.partition, cursor.offset), None)
        if replaced is not None:
            replaced.close()
        self._cursors[topic, cursor.partition, cursor.offset] = cursor
        if len(self._cursors) > _MAX_CURSORS:
            self._cursors.pop(next(iter(self._cursors))).close()


class _Writer:
    """Appends to one partition, under a lock that all its writers take."""

    def __init__(self, folder: Path, tail: Tail, clock_ms: Callable[[], int], segment_bytes: int, fsync: Fsync) -> None:
        self._folder, self._tail, self._clock_ms = folder, tail, clock_ms
        self._segment_bytes, self._fsync = segment_bytes, fsync
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        self._fd, self._base = -1, -1  # of the segment that is open for appending

    def append(self, entries: Sequence[Entry]) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._tail.catch_up()
            self._write(self._lines(entries))
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def sync(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)

    def close(self) -> None:
        self._leave()
        os.close(self._lock)

    def _lines(self, entries: Sequence[Entry]) -> list[tuple[int, bytes]]:
        """Stamped lines; nothing is written when a stamp goes backwards."""
        last, now = self._tail.stamp, self._clock_ms()
        lines = []
        for entry in entries:
            stamp = max(now, last) if entry.appended_at_ms is None else entry.appended_at_ms
            if stamp < last:
                found = f"stamp {stamp} goes back behind {last}, the one before it"
                message = f"{self._folder}: {found}; append in the order of stamps"
                raise LogError(message)
            last = stamp
            lines.append((stamp, encode_line(stamp, entry.key, entry.payload)))
        return lines

    def _write(self, lines: list[tuple[int, bytes]]) -> None:
        start = 0
        while start < len(lines):
            self._open_segment()
            room, size, end = self._segment_bytes - self._tail.position, 0, start
            while end < len(lines) and (end == start or size < room):
                size += len(lines[end][1])
                end += 1
            self._write_bytes(b"".join(line for _, line in lines[start:end]))
            self._tail.wrote(end - start, size, lines[end - 1][0])
            start = end

    def _write_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._fsync == "append":
            self.sync()

    def _open_segment(self) -> None:
        """Make sure that the last segment is open, has room, and ends in a newline."""
        if self._fd < 0 or self._base != self._tail.base:
            self._enter()
        if os.fstat(self._fd).st_size > self._tail.position:
            os.ftruncate(self._fd, self._tail.position)  # torn by a writer that died, never acknowledged
        if self._tail.position >= self._segment_bytes:
            self._create_segment()
            self._enter()

    def _enter(self) -> None:
        self._leave()
        if not segment_path(self._folder, self._tail.base).exists():
            self._create_segment()
        self._base = self._tail.base
        self._fd = os.open(segment_path(self._folder, self._base), os.O_WRONLY | os.O_APPEND)

    def _create_segment(self) -> None:
        self.sync()  # whoever comes later syncs the last segment only
        os.close(os.open(segment_path(self._folder, self._tail.offset), os.O_CREAT | os.O_WRONLY, 0o666))
        durable.sync(self._folder)
        self._tail.catch_up()

    def _leave(self) -> None:
        self.sync()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into LogErrors that say what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "the log cannot be used until this is mended")
        message = f"file log {error.filename or path}: {error.strerror}; {remedy}"
        raise LogError(message) from error

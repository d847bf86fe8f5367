"""One partition on disk: a folder of segments named by the offset of their first line, only the last one growing.

A line counts from its newline on. What follows the last newline is a write that was never acknowledged (its writer
died): readers do not see it, the next writer cuts it off. A segment is complete before the next one appears.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import deque
from pathlib import Path

from pipeline.logs.lines import Line, decode_line
from pipeline.logs.log import LogError, Record

_NAME = re.compile(r"(\d{20})\.jsonl")
_BLOCK_BYTES = 256 * 1024


def segment_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020d}.jsonl"


def bases(folder: Path) -> list[int]:
    """First offsets of the segments, ascending."""
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match)


def base_before(folder: Path, offset: int) -> int:
    """The first offset of the segment that holds `offset`, or will."""
    known = bases(folder)
    index = bisect_right(known, offset) - 1
    if index >= 0:
        return known[index]
    if not known and offset == 0:
        return 0
    found = f"it starts at {known[0]}" if known else "it is empty"
    message = f"{folder}: offset {offset} is not in the log: {found}; start from there or restore the missing segments"
    raise LogError(message)


class Blocks:
    """The complete lines of a partition in blocks, from a segment's first line on, through all later segments."""

    def __init__(self, folder: Path, base: int) -> None:
        self.folder, self.base = folder, base
        self.offset = base  # of the next line
        self.position = 0  # of the next line, in bytes of its segment
        self._fd = -1

    def next(self) -> list[bytes]:
        """Lines without their newlines; empty when there are no more yet."""
        block = self._read()
        if not block and self._advance():
            block = self._read()
        if not block:
            return []
        lines = block[:-1].split(b"\n")
        self.skip(len(lines), len(block))
        return lines

    def skip(self, lines: int, size: int) -> None:
        """Go on behind lines whose content is known already."""
        self.offset += lines
        self.position += size

    def sync(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self) -> bytes:
        """Bytes from the next line on up to the last newline of a block, which grows until it holds a newline."""
        if self._fd < 0 and not self._open(self.base):
            return b""
        size = _BLOCK_BYTES
        while True:
            block = os.pread(self._fd, size, self.position)
            end = block.rfind(b"\n") + 1
            if end or len(block) < size:
                return block[:end]
            size *= 2

    def _advance(self) -> bool:
        """Turn to the next segment, if it has begun."""
        if self._fd < 0 or self.offset == self.base or not self._open(self.offset):
            return False
        self.base, self.position = self.offset, 0
        return True

    def _open(self, base: int) -> bool:
        try:
            fd = os.open(segment_path(self.folder, base), os.O_RDONLY)
        except FileNotFoundError:
            return False
        self.close()
        self._fd = fd
        return True


class Cursor:
    """Reads a partition forward. A corrupt line is a record too, with its raw bytes and the stamp before it."""

    def __init__(self, folder: Path, partition: int, offset: int) -> None:
        base = base_before(folder, offset)
        self.partition, self.offset = partition, offset
        self._blocks = Blocks(folder, base)
        self._lines: deque[bytes] = deque()
        self._stamp = stamp_before(folder, base)
        self._skip(offset - base)

    def read(self, limit: int) -> list[Record]:
        records: list[Record] = []
        while len(records) < limit and self._fill():
            records += [self._next() for _ in range(min(limit - len(records), len(self._lines)))]
        return records

    def close(self) -> None:
        self._blocks.close()

    def _fill(self) -> bool:
        if not self._lines:
            self._lines.extend(self._blocks.next())
        return bool(self._lines)

    def _next(self) -> Record:
        raw = self._lines.popleft()
        line = decode_line(raw) or Line(self._stamp, "", raw)
        self._stamp = max(self._stamp, line.at)
        offset, self.offset = self.offset, self.offset + 1
        return Record(self.partition, offset, self._stamp, line.key, line.payload)

    def _skip(self, count: int) -> None:
        while count > 0 and self._fill():
            passed = [self._lines.popleft() for _ in range(min(count, len(self._lines)))]
            count -= len(passed)
            self._stamp = max(self._stamp, last_stamp(passed) or 0)
        if count:
            found = f"{self._blocks.folder}: offset {self.offset} is past the end, {self.offset - count}"
            message = f"{found}; the log was cut or replaced since that offset was noted"
            self.close()
            raise LogError(message)


class Tail:
    """The end of a partition: the offset, place and lowest stamp of the record to come."""

    def __init__(self, folder: Path) -> None:
        base = (bases(folder) or [0])[-1]
        self.stamp = stamp_before(folder, base)
        self._blocks = Blocks(folder, base)

    @property
    def offset(self) -> int:
        return self._blocks.offset

    @property
    def base(self) -> int:
        return self._blocks.base

    @property
    def position(self) -> int:
        return self._blocks.position

    def catch_up(self) -> Tail:
        """Read what was appended since the last call, by whomever."""
        while lines := self._blocks.next():
            self.stamp = max(self.stamp, last_stamp(lines) or 0)
        return self

    def wrote(self, lines: int, size: int, stamp: int) -> None:
        self._blocks.skip(lines, size)
        self.stamp = stamp

    def sync(self) -> None:
        """Force the last segment to the disk; those before it are there."""
        self._blocks.sync()

    def close(self) -> None:
        self._blocks.close()


def stamp_before(folder: Path, base: int) -> int:
    """The stamp of the last record before a segment; 0 when there is none."""
    for earlier in reversed([known for known in bases(folder) if known < base]):
        stamp = _stamp_at_end(segment_path(folder, earlier))
        if stamp is not None:
            return stamp
    return 0


def last_stamp(lines: list[bytes]) -> int | None:
    """The stamp of the last line that is not corrupt."""
    return next((line.at for line in map(decode_line, reversed(lines)) if line is not None), None)


def _stamp_at_end(path: Path) -> int | None:
    size, length = _BLOCK_BYTES, path.stat().st_size
    while True:
        start = max(0, length - size)
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
        stamp = last_stamp(lines[1:] if start else lines)
        if stamp is not None or start == 0:
            return stamp
        size *= 4

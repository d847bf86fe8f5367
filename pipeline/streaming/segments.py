"""The files of a snapshot: segments, each a header and groups of frames, all with lengths and checksums.

A segment comes into being whole, by a rename, and grows by groups, each forced to the disk before the next is
written. So only the last group of the last segment can be torn, by a writer that was killed or lost its power: what
is torn was never relied on, and is passed over. Anything else that does not fit its checksum is damage, and an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash

from pipeline import durable
from pipeline.streaming.errors import SnapshotError

MAGIC = b"pageturn stream snapshot "
HEADER = MAGIC + b"3\n"  # raise the number whenever the layout of a frame changes
ANEW = "start anew with an empty state folder and new output topics (the events are read again from the start)"
_NAME = re.compile(r"(\d{10})\.segment")
_LENGTH_BYTES, _DIGEST_BYTES = 8, 16
_PREFIX_BYTES = _LENGTH_BYTES + _DIGEST_BYTES
_GROUP_PREFIX_BYTES = 2 * _LENGTH_BYTES  # the length of the group, and its checksum


class Frame(NamedTuple):
    body: bytes
    end: int  # offset in the file behind it


def numbers(folder: Path) -> list[int]:
    """Of the segments that are there, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}.segment"


def read_frames(path: Path, *, last: bool) -> Iterator[Frame]:
    """The frames of a segment, up to where it is torn if it is the last one. Raises SnapshotError where damaged."""
    with path.open("rb") as file:
        _check_header(path, file.read(len(HEADER)))
        while prefix := file.read(_GROUP_PREFIX_BYTES):
            start, length = file.tell(), int.from_bytes(prefix[:_LENGTH_BYTES], "little")
            if prefix == _group_prefix(length):
                end = start + length
                yield from _whole_frames(file, end)
                if file.tell() == end:
                    continue
                torn = end >= os.fstat(file.fileno()).st_size
            else:
                torn = not any(prefix) or not file.read().strip(b"\0")  # not all of its blocks reached the disk
            if last and torn:
                return
            message = f"{path} is damaged: the checksum at byte {start} does not fit; restore it, or {ANEW}"
            raise SnapshotError(message)


def _whole_frames(file: BinaryIO, end: int) -> Iterator[Frame]:
    """Up to the first that is not whole; the file is left in front of it."""
    while (start := file.tell()) < end:
        prefix = file.read(_PREFIX_BYTES)
        length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
        body = file.read(min(length, end - start))
        if xxhash.xxh3_128_digest(body) != prefix[_LENGTH_BYTES:]:
            file.seek(start)
            return
        yield Frame(body, file.tell())


def _group_prefix(length: int) -> bytes:
    written = length.to_bytes(_LENGTH_BYTES, "little")
    return written + xxhash.xxh3_64_digest(written)


class Segment:
    """The segment that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @classmethod
    def create(cls, path: Path, bodies: Sequence[bytes]) -> Segment:
        """It is there with its first frames, or not at all."""
        aside = path.with_name(f".tmp-{path.name}")
        segment = cls(aside.open("wb"))
        try:
            segment._file.write(HEADER)
            segment.append(bodies)
            durable.rename(aside, path)
        except BaseException:
            segment.close()
            raise
        return segment

    @classmethod
    def go_on(cls, path: Path, end: int) -> Segment:
        """Behind the given offset; what follows it was torn."""
        file = path.open("r+b")
        file.truncate(end)
        file.seek(end)
        return cls(file)

    def append(self, bodies: Sequence[bytes]) -> None:
        """A group, durable on return."""
        self._file.write(_group_prefix(sum(_PREFIX_BYTES + len(body) for body in bodies)))
        for body in bodies:
            self._file.write(len(body).to_bytes(_LENGTH_BYTES, "little") + xxhash.xxh3_128_digest(body))
            self._file.write(body)
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _check_header(path: Path, found: bytes) -> None:
    if found != HEADER:
        what = "of another format" if found.startswith(MAGIC) else "no snapshot"
        message = f"{path} is {what}: expected it to begin with {HEADER!r}, found {found!r}; {ANEW}"
        raise SnapshotError(message)

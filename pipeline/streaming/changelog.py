"""A table on disk, saved a change at a time: what holds of each key of each step, and a note on the whole.

Its segments hold what changed from one save to the next: keys with their values (or that they are gone), then a commit
with the note. The last commit, with the last that was said of each key up to it, is the table. A save costs as much
as has changed. Each also carries some of what still stands in the oldest segment to the newest, while more is in the
files than is alive; when nothing is left in it to carry, it is deleted. So the files stay at about three times of
what is alive, and there is no pause for sweeping up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from pipeline.streaming import segments
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.segments import ANEW, Segment

Table = dict[str, dict[str, Raw]]  # step -> key -> value, as msgpack
Changes = Mapping[str, Mapping[str, Raw | None]]  # None: the key is gone

_KEYS_PER_FRAME = 200
_GONE = Raw(msgspec.msgpack.encode(None))

_Place = tuple[int, int]  # segment, number of a frame with keys in it
_Places = dict[str, dict[str, _Place]]  # step -> key -> where it was last spoken of


class _Keys(Struct, frozen=True, array_like=True, tag="keys"):
    step: str
    keys: dict[str, Raw]


class _Commit(Struct, frozen=True, array_like=True, tag="commit"):
    """All frames before it count."""

    first: int  # segments before this one are not needed any more
    note: Raw


_decoder = msgspec.msgpack.Decoder(_Keys | _Commit)


class Found(NamedTuple):
    note: Raw
    table: Table
    places: _Places
    records: dict[int, int]  # segment -> keys spoken of in it
    frames: int  # with keys, in the last segment
    end: int  # of the last segment, behind the last commit


# Reading -----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Found | None:
    """None if nothing was saved. SnapshotError where it is damaged; FileNotFoundError if a segment was deleted
    meanwhile, by the process that writes: then read again."""
    numbers = segments.numbers(folder)
    if not numbers:
        return None
    commit, end = _last_commit(folder, numbers[-1])
    needed = range(commit.first, numbers[-1] + 1)
    if missing := sorted(set(needed) - set(numbers)):
        message = f"the snapshot is damaged: {segments.path_of(folder, missing[0])} is missing; restore it, or {ANEW}"
        raise SnapshotError(message)
    tally = _Tally()
    for number in needed:
        tally.take(number, _keys(folder, number, end if number == numbers[-1] else None))
    return Found(commit.note, tally.table, tally.places, tally.records, tally.frames, end)


class _Tally:
    """The last word on each key."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.places: _Places = {}
        self.records: dict[int, int] = {}
        self.frames = 0  # of the segment taken last

    def take(self, number: int, frames: Iterable[_Keys]) -> None:
        self.records[number] = self.frames = 0
        for frame in frames:
            values, places = self.table.setdefault(frame.step, {}), self.places.setdefault(frame.step, {})
            place = number, self.frames
            for key, value in frame.keys.items():
                if value == _GONE:
                    values.pop(key, None)
                    places.pop(key, None)
                else:
                    values[key], places[key] = value, place
            self.frames += 1
            self.records[number] += len(frame.keys)


def _last_commit(folder: Path, number: int) -> tuple[_Commit, int]:
    """And where it ends. A segment has one from its beginning."""
    last = None
    for frame, end in _frames(folder, number, last=True):
        if isinstance(frame, _Commit):
            last = frame, end
    if last is None:
        message = f"{segments.path_of(folder, number)} is damaged: it has no commit; restore it, or {ANEW}"
        raise SnapshotError(message)
    return last


def _keys(folder: Path, number: int, end: int | None = None) -> Iterator[_Keys]:
    """Those of the last segment, which may be growing, up to `end`."""
    for frame, frame_end in _frames(folder, number, last=end is not None):
        if end is not None and frame_end > end:
            return
        if isinstance(frame, _Keys):
            yield frame


def _frames(folder: Path, number: int, *, last: bool) -> Iterator[tuple[_Keys | _Commit, int]]:
    path = segments.path_of(folder, number)
    for frame in segments.read_frames(path, last=last):
        try:
            yield _decoder.decode(frame.body), frame.end
        except msgspec.DecodeError as error:
            message = f"{path} is not laid out as expected: {error}; {ANEW}"
            raise SnapshotError(message) from error


# Writing -----------------------------------------------------------------------------------------------------------


class Writer:
    """Knows of each key where it was last spoken of, so that it can tell which records still stand."""

    def __init__(self, folder: Path, found: Found | None, segment_bytes: int, dead_allowed: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._segment_bytes, self._dead_allowed = folder, segment_bytes, dead_allowed
        self._places: _Places = found.places if found else {}
        self._records = found.records if found else {}
        self._last = max(self._records, default=0)
        self._first = min(self._records, default=1)
        self._segment = Segment.go_on(segments.path_of(folder, self._last), found.end) if found else None
        self._frames = found.frames if found else 0  # with keys, in the last segment
        self._oldest: Iterator[tuple[int, _Keys]] | None = None  # what is left to look through of the first segment
        self._delete(number for number in segments.numbers(folder) if number < self._first)

    def save(self, changes: Changes, note: Raw) -> None:
        """Durable on return, as a whole."""
        if self._segment is None or self._segment.size >= self._segment_bytes:
            self.close()
            self._segment, self._last, self._frames = None, self._last + 1, 0
        first = self._first
        frames = [frame for step, keys in changes.items() for frame in self._changed(step, keys)]
        frames += self._carried(2 * sum(len(frame.keys) for frame in frames) + _KEYS_PER_FRAME)
        bodies = [msgspec.msgpack.encode(frame) for frame in (*frames, _Commit(self._first, note))]
        if self._segment is None:
            self._segment = Segment.create(segments.path_of(self._folder, self._last), bodies)
        else:
            self._segment.append(bodies)
        self._delete(range(first, self._first))

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()

    def _changed(self, step: str, keys: Mapping[str, Raw | None]) -> Iterator[_Keys]:
        places = self._places.setdefault(step, {})
        pairs = [(key, value) for key, value in keys.items() if value is not None or key in places]
        for start in range(0, len(pairs), _KEYS_PER_FRAME):
            some = pairs[start : start + _KEYS_PER_FRAME]
            yield self._frame(step, {key: _GONE if value is None else value for key, value in some})
            for key, value in some:
                if value is None:
                    del places[key]

    def _carried(self, room: int) -> list[_Keys]:
        """What still stands of the next records of the oldest segment, about `room` of them; moves on when it ends."""
        frames = []
        while room > 0 and self._first < self._last and self._much_is_dead():
            if self._oldest is None:
                self._oldest = enumerate(_keys(self._folder, self._first))
            index, frame = next(self._oldest, (0, None))
            if frame is None:
                del self._records[self._first]
                self._first, self._oldest = self._first + 1, None
                continue
            room -= len(frame.keys)
            places, place = self._places.get(frame.step, {}), (self._first, index)
            standing = {key: value for key, value in frame.keys.items() if places.get(key) == place}
            frames += [self._frame(frame.step, standing)] if standing else []
        return frames

    def _frame(self, step: str, keys: dict[str, Raw]) -> _Keys:
        """A frame that will be written to the last segment."""
        self._places[step].update(dict.fromkeys(keys, (self._last, self._frames)))
        self._records[self._last] = self._records.get(self._last, 0) + len(keys)
        self._frames += 1
        return _Keys(step, keys)

    def _much_is_dead(self) -> bool:
        alive = sum(len(keys) for keys in self._places.values())
        return sum(self._records.values()) > 2 * alive + self._dead_allowed

    def _delete(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            segments.path_of(self._folder, number).unlink(missing_ok=True)

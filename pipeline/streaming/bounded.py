"""Raw events of a stretch of stamps: from a log, or from the archive of one. In the order of the stamps."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow.parquet as pq

from pipeline.durable import StorageError
from pipeline.logs.log import EVENTS, EventLog, Record
from pipeline.logs.reading import read_on
from pipeline.streaming.reach import Known

_READ = 1_000
_FOREVER_MS = 2**62
_NAME = re.compile(r"p(\d+)-(\d+)-(\d+)\.parquet")
_COLUMNS = ["partition", "offset", "appended_at_ms", "key", "payload"]


class Input(Protocol):
    @property
    def known(self) -> Known:
        """Which stamps it has."""

    @property
    def whole(self) -> bool:
        """Whether it begins where the log began: nothing was deleted before it."""

    def records(self, low_ms: int, high_ms: int) -> Iterator[Record]:
        """Records with low <= stamp < high, ordered by stamp, partition, offset."""


def _order(record: Record) -> tuple[int, int, int]:
    return record.appended_at_ms, record.partition, record.offset


class LogInput:
    """A topic as it is now; what is appended later is not in it."""

    def __init__(self, log: EventLog, clock_ms: Callable[[], int], skew_ms: int, topic: str = EVENTS) -> None:
        self._log, self._topic = log, topic
        idle_ms = clock_ms() - skew_ms  # before the ends: whatever comes behind them is stamped later
        self._ends = log.end_offsets(topic)
        self._starts = {partition: log.start_offset(topic, partition) for partition in self._ends}
        firsts = [self._next_stamp(p, start) for p, start in self._starts.items()]
        lasts = [self._last_stamp(p) for p in self._ends]
        first_ms = min((stamp for stamp in firsts if stamp is not None), default=idle_ms)
        self.known = Known(first_ms, min(max(idle_ms, stamp or 0) for stamp in lasts))

    @property
    def whole(self) -> bool:
        return not any(self._starts.values())

    def records(self, low_ms: int, high_ms: int) -> Iterator[Record]:
        return heapq.merge(*(self._partition(p, low_ms, high_ms) for p in self._ends), key=_order)

    def _partition(self, partition: int, low_ms: int, high_ms: int) -> Iterator[Record]:
        offset = self._offset_at(partition, low_ms)
        while offset < self._ends[partition]:
            records, following = read_on(self._log, self._topic, partition, offset, _READ)
            for record in records:
                if record.appended_at_ms >= high_ms or record.offset >= self._ends[partition]:
                    return
                yield record
            if following == offset:
                return
            offset = following

    def _offset_at(self, partition: int, stamp_ms: int) -> int:
        """The first offset with such a stamp or a later one: stamps never decrease within a partition."""
        low, high = self._starts[partition], self._ends[partition]
        while low < high:
            middle = (low + high) // 2
            found = self._next_stamp(partition, middle)
            if found is None or found >= stamp_ms:
                high = middle
            else:
                low = middle + 1
        return low

    def _next_stamp(self, partition: int, offset: int) -> int | None:
        """Of the record at an offset, or behind the gap there; None at the end."""
        while offset < self._ends[partition]:
            records, following = read_on(self._log, self._topic, partition, offset, 1)
            if records:
                return records[0].appended_at_ms
            if following == offset:
                return None
            offset = following
        return None

    def _last_stamp(self, partition: int) -> int | None:
        """The stamp of the last record: offsets before the end may be gaps, so it is looked for from farther and
        farther back."""
        start, end, back = self._starts[partition], self._ends[partition], 1
        while start < end:
            offset = max(end - back, start)
            stamps = [record.appended_at_ms for record in self._log.read(self._topic, partition, offset, back)]
            if stamps or offset == start:
                return max(stamps, default=None)
            back *= 2
        return None


class _File(NamedTuple):
    partition: int
    first: int  # offset
    path: Path


class ArchiveInput:
    """The events that the archiver keeps. `closed`: nothing will be added, so that all of time is known.

    Otherwise it is known up to the latest stamp in it: back-fill what the archiver has had time to take in.
    """

    def __init__(self, directory: Path, *, closed: bool, topic: str = EVENTS) -> None:
        self._folder, self._hours = directory / topic, _hours(directory / topic)
        first, last = self._stamps(0), self._stamps(-1)
        self.known = Known(min(first), _FOREVER_MS if closed else max(last))
        firsts: dict[int, int] = {}
        for files in self._hours.values():
            for file in files:
                firsts[file.partition] = min(file.first, firsts.get(file.partition, file.first))
        self.whole = not any(firsts.values())

    def records(self, low_ms: int, high_ms: int) -> Iterator[Record]:
        partitions: dict[int, list[_File]] = {}
        for hour, files in self._hours.items():
            if _hour(low_ms) <= hour <= _hour(high_ms):
                for file in files:
                    partitions.setdefault(file.partition, []).append(file)
        streams = [self._partition(sorted(files), low_ms, high_ms) for files in partitions.values()]
        return heapq.merge(*streams, key=_order)

    def _partition(self, files: list[_File], low_ms: int, high_ms: int) -> Iterator[Record]:
        for file in files:
            with pq.ParquetFile(file.path) as parquet:
                for batch in parquet.iter_batches(batch_size=_READ, columns=_COLUMNS):
                    rows = zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True)
                    yield from (Record(*row) for row in rows if low_ms <= row[2] < high_ms)

    def _stamps(self, hour: int) -> list[int]:
        """Of the first or the last hour."""
        files = list(self._hours.values())[hour]
        columns = (pq.read_table(file.path, columns=["appended_at_ms"], partitioning=None) for file in files)
        return [stamp for column in columns for stamp in column["appended_at_ms"].to_pylist()]


def _hours(folder: Path) -> dict[str, list[_File]]:
    """Files by `date=.../hour=...`, in the order of time."""
    hours: dict[str, list[_File]] = {}
    for path in sorted(folder.glob("date=*/hour=*/*.parquet")):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            hours.setdefault(f"{path.parts[-3]}/{path.parts[-2]}", []).append(_File(int(match[1]), int(match[2]), path))
    if not hours:
        message = (
            f"{folder}: expected the events that `pageturn archive` keeps, found no file date=.../hour=.../p*.parquet"
        )
        raise StorageError(message)
    return hours


def _hour(time_ms: int) -> str:
    seconds = min(max(time_ms, 0) // 1000, 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC).strftime("date=%Y-%m-%d/hour=%H")

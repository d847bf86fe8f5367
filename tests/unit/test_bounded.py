"""Stretches of a log and of its archive: the same records, in the order of their stamps."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from pipeline.durable import StorageError
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, Entry, Record
from pipeline.streaming.archiver import Limits, archive
from pipeline.streaming.bounded import ArchiveInput, Input, LogInput

T0 = 1_700_000_000_000
HOUR_MS = 3_600_000
SKEW_MS = 100


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    """Four partitions, the last of them empty, over six hours, with equal stamps and a damaged line."""
    rng = random.Random(4)
    log = FileLog(tmp_path / "log", segment_bytes=5_000)
    log.create(EVENTS, 4)
    keys = [key for key in map(str, range(200)) if _partition(key) != 3]
    stamps = sorted(T0 + rng.randrange(60) * HOUR_MS // 10 for _ in range(400))
    log.append(EVENTS, [Entry(rng.choice(keys), b"%d" % i, stamp) for i, stamp in enumerate(stamps)])
    with sorted((tmp_path / "log" / EVENTS / "partition-0001").glob("*.jsonl"))[-1].open("ab") as file:
        file.write(b"torn\n")
    return log


def _partition(key: str) -> int:
    from pipeline.logs.files import partition_of

    return partition_of(key, 4)


def everything(log: FileLog) -> list[Record]:
    records = [record for p in range(4) for record in log.read(EVENTS, p, 0, 10**6)]
    return sorted(records, key=lambda r: (r.appended_at_ms, r.partition, r.offset))


def log_input(log: FileLog, tmp_path: Path) -> Input:
    return LogInput(log, lambda: T0 + 10 * HOUR_MS, SKEW_MS)


def archive_input(log: FileLog, tmp_path: Path) -> Input:
    limits = Limits(records_per_read=13, commit_bytes=500)
    archive(
        f"file://{tmp_path}/log",
        tmp_path / "a",
        until_idle=True,
        stop=threading.Event(),
        topics=[EVENTS],
        limits=limits,
    )
    return ArchiveInput(tmp_path / "a", closed=False)


@pytest.mark.parametrize("make", [log_input, archive_input])
def test_a_stretch_is_what_is_stamped_in_it_in_order(log: FileLog, tmp_path: Path, make: object) -> None:
    source, records, rng = make(log, tmp_path), everything(log), random.Random(5)
    stamps = [record.appended_at_ms for record in records]
    edges = [0, T0, stamps[17], stamps[17] + 1, stamps[200] - 1, stamps[-1], stamps[-1] + 1, 2**62]
    for low, high in [
        *((low, high) for low in edges for high in edges),
        *(sorted(rng.choices(stamps, k=2)) for _ in range(20)),
    ]:
        assert list(source.records(low, high)) == [r for r in records if low <= r.appended_at_ms < high]
    assert source.known.first_ms == stamps[0]
    assert source.whole


def test_a_log_is_known_up_to_the_clock_less_the_skew(log: FileLog, tmp_path: Path) -> None:
    assert log_input(log, tmp_path).known.until_ms == T0 + 10 * HOUR_MS - SKEW_MS
    before = LogInput(log, lambda: T0, SKEW_MS)  # the other partitions have later stamps, the empty one has none
    assert before.known.until_ms == T0 - SKEW_MS


def test_an_archive_is_known_up_to_its_latest_stamp_unless_it_is_closed(log: FileLog, tmp_path: Path) -> None:
    assert archive_input(log, tmp_path).known.until_ms == everything(log)[-1].appended_at_ms
    assert ArchiveInput(tmp_path / "a", closed=True).known.until_ms > 10**15


def test_what_is_appended_later_is_not_in_it(log: FileLog, tmp_path: Path) -> None:
    source, before = log_input(log, tmp_path), everything(log)
    log.append(EVENTS, [Entry("1", b"new", T0 + 7 * HOUR_MS)])
    assert list(source.records(0, 2**62)) == before


def test_an_empty_log(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.create(EVENTS, 2)
    assert list(LogInput(log, lambda: T0, SKEW_MS).records(0, 2**62)) == []


class Gaps:
    """A log whose offsets have gaps, as transactions and compaction make them, and no start at 0."""

    OFFSETS = (7, 8, 12, 30, 31)

    def end_offsets(self, topic: str) -> dict[int, int]:
        return {0: 40}

    def start_offset(self, topic: str, partition: int) -> int:
        return 5

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Fetches ten offsets at a time, whatever is there."""
        there = [o for o in self.OFFSETS if offset <= o < offset + 10]
        return [Record(0, o, T0 + o, "k", b"") for o in there[:limit]]

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        return min(offset + 10, 40)


def test_offsets_with_gaps() -> None:
    source = LogInput(Gaps(), lambda: T0, SKEW_MS)
    for low in range(45):
        offsets = [record.offset for record in source.records(T0 + low, T0 + 31)]
        assert offsets == [o for o in Gaps.OFFSETS if low <= o < 31]
    assert source.known == (T0 + 7, T0 + 31)
    assert not source.whole


def test_a_folder_that_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"expected the events that `pageturn archive` keeps, found no file"):
        ArchiveInput(tmp_path, closed=True)

"""Readers of a log whose offsets have gaps and whose first records were deleted: nothing may count on dense offsets."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.config.reading import load_config
from pipeline.learning.replay import Origins
from pipeline.learning.rereading import reread
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, TRANSITIONS, Entry, LogError, Record
from pipeline.logs.ordered import OrderedReader
from pipeline.streaming import archiver, run
from pipeline.streaming.outputs import read_all

_FIRST, _STRIDE = 2, 3  # the n-th record has the offset _FIRST + _STRIDE * n, and a gap lies at the end, too


class GappyLog(FileLog):
    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        if offset < _FIRST:
            message = f"offset {offset} was deleted: the log starts at {_FIRST}"
            raise LogError(message)
        found = super().read(topic, partition, self._ordinal(offset), limit)
        return [record._replace(offset=_FIRST + _STRIDE * record.offset) for record in found]

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        at_end = self._ordinal(offset) == super().end_offset(topic, partition)
        return self.end_offset(topic, partition) if at_end else offset

    def start_offset(self, topic: str, partition: int) -> int:
        return _FIRST

    def end_offset(self, topic: str, partition: int) -> int:
        return _FIRST + _STRIDE * super().end_offset(topic, partition)

    def _ordinal(self, offset: int) -> int:
        return -((_FIRST - offset) // _STRIDE)


@pytest.fixture
def log(tmp_path: Path) -> GappyLog:
    log = GappyLog(tmp_path / "log")
    for topic in (EVENTS, TRANSITIONS):
        log.create(topic, 2)
        log.append(topic, [Entry(f"k{n % 7}", b"%d" % n, 1_000 + n) for n in range(1_000)])
    return log


def numbers(records: Sequence[Record]) -> list[int]:
    return sorted(int(record.payload) for record in records)


def test_the_ordered_reader_gives_all_and_catches_up(log: GappyLog) -> None:
    reader = OrderedReader(log, EVENTS, None, lambda: 10_000, 10)
    assert [int(r.payload) for _ in range(30) for r in reader.poll(100)] == list(range(1_000))
    assert reader.caught_up()
    assert reader.low_stamp_ms == 10_000 - 10  # an idle partition does not hold the watermark
    assert reader.positions == log.end_offsets(EVENTS)


def test_the_ordered_reader_goes_on_from_its_positions(log: GappyLog) -> None:
    first = OrderedReader(log, EVENTS, None, lambda: 10_000, 10)
    got = numbers(first.poll(300))
    second = OrderedReader(log, EVENTS, first.positions, lambda: 10_000, 10)
    assert got + numbers(second.poll(1_000)) == list(range(1_000))


def test_a_position_that_was_deleted_is_an_error(log: GappyLog) -> None:
    with pytest.raises(LogError, match=r"offset 1 was deleted.*starts at 2"):
        OrderedReader(log, EVENTS, {0: 1}, lambda: 10_000, 10).poll(10)


def test_all_records_are_read_once_from_wherever_one_starts(log: GappyLog) -> None:
    assert numbers(list(read_all(log, EVENTS))) == list(range(1_000))
    since = dict.fromkeys((0, 1), _FIRST + _STRIDE * 100 - 1)
    assert len(list(read_all(log, EVENTS, since))) == 1_000 - 2 * 100
    assert list(read_all(log, EVENTS, log.end_offsets(EVENTS))) == []


def test_the_archiver_takes_each_record_once(log: GappyLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "open_log", lambda _: log)
    limits = archiver.Limits(records_per_read=90)

    def archive() -> int:
        folder = tmp_path / "archive"
        return archiver.archive("", folder, until_idle=True, stop=threading.Event(), topics=[EVENTS], limits=limits)

    assert (archive(), archive()) == (1_000, 0)
    log.append(EVENTS, [Entry("k", b"1000", 5_000)])
    assert archive() == 1
    files = f"{tmp_path}/archive/events/*/*/*.parquet"
    found = duckdb.sql(f"""select count(*), count(distinct ("partition", "offset")) from '{files}'""").fetchall()
    assert found == [(1_001, 1_001)]


def test_the_stream_counts_records_not_offsets(log: GappyLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "open_log", lambda _: log)
    config = load_config(Path(__file__).parents[2] / "feature_configs" / "guess_you_like.yaml")
    counts = run.run_stream(config, "", tmp_path / "state", until_idle=True, stop=threading.Event())
    assert counts is not None
    assert (counts.read, counts.dead) == (1_000, 1_000)  # a number is no event


def test_a_replay_is_read_again_but_for_what_was_deleted(log: GappyLog) -> None:
    partition = 1
    there = list(log.read(TRANSITIONS, partition, _FIRST, 200))
    offsets = np.array([0, *(record.offset for record in there)])
    found = list(reread(log, Origins(np.full(len(offsets), partition), offsets)))
    assert found == [None, *there]

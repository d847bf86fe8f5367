"""One order for a partitioned topic, whatever the polls; and how far an idle partition lets it go."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.logs.log import LogError, Record
from pipeline.logs.ordered import OrderedReader

SKEW_MS = 10


class MemoryLog:
    """Partitions as lists, appended to by the test; `on_end` runs between the clock's reading and the end offset's."""

    def __init__(self, *partitions: Sequence[int]) -> None:
        self.records: list[list[Record]] = [[] for _ in partitions]
        for partition, stamps in enumerate(partitions):
            self.add(partition, *stamps)

    def add(self, partition: int, *stamps: int) -> None:
        for stamp in stamps:
            self.records[partition].append(Record(partition, len(self.records[partition]), stamp, "k", b""))

    def create(self, topic: str, partitions: int) -> None:
        raise AssertionError

    def append(self, topic: str, entries: Sequence[object]) -> None:
        raise AssertionError

    def partitions(self, topic: str) -> int:
        return len(self.records)

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        return self.records[partition][offset : offset + limit]

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        return offset

    def start_offset(self, topic: str, partition: int) -> int:
        return 0

    def end_offset(self, topic: str, partition: int) -> int:
        return len(self.records[partition])

    def end_offsets(self, topic: str) -> dict[int, int]:
        return {partition: self.end_offset(topic, partition) for partition in range(len(self.records))}

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    def __init__(self, now_ms: int = 10**6) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def reader(log: MemoryLog, clock: Clock | None = None, positions: dict[int, int] | None = None) -> OrderedReader:
    return OrderedReader(log, "t", positions, clock or Clock(), SKEW_MS)


def places(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    return [(r.appended_at_ms, r.partition, r.offset) for r in records]


def drain(from_: OrderedReader, limits: Sequence[int]) -> list[Record]:
    records: list[Record] = []
    step = 0
    while True:
        batch = from_.poll(limits[step % len(limits)])
        assert len(batch) <= limits[step % len(limits)]
        records += batch
        step += 1
        if not batch:
            return records


stamps = st.lists(st.integers(0, 30), max_size=25).map(sorted)


@given(st.lists(stamps, min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_order_is_by_stamp_partition_offset_whatever_the_polls(
    partitions: list[list[int]], limits: list[int]
) -> None:
    log = MemoryLog(*partitions)
    records = drain(reader(log), limits)
    assert places(records) == sorted(places([r for p in log.records for r in p]))


@given(st.integers(0, 10**9))
def test_the_order_is_the_same_while_the_log_grows(seed: int) -> None:
    """Live: stamps are the clock's minus at most the skew, and are appended between polls."""
    rng = random.Random(seed)
    clock, log = Clock(1_000), MemoryLog([], [], [])
    live, got = reader(log, clock), []
    for _ in range(150):
        clock.now_ms += rng.choice([0, 0, 1, 5, 40])
        if rng.random() < 0.7:
            partition = rng.randrange(3)
            last = log.records[partition][-1].appended_at_ms if log.records[partition] else 0
            log.add(partition, max(last, clock.now_ms - rng.randrange(SKEW_MS + 1)))
        low = live.low_stamp_ms
        batch = live.poll(rng.randrange(1, 5))
        assert all(r.appended_at_ms >= low for r in batch)
        assert live.low_stamp_ms >= low
        got += batch
    clock.now_ms += 1_000
    got += drain(live, [3])
    assert places(got) == sorted(places([r for p in log.records for r in p]))
    assert live.caught_up()
    assert live.behind == 0


@given(st.lists(stamps, min_size=1, max_size=3), st.integers(0, 40), st.integers(1, 7))
def test_a_reader_goes_on_from_positions(partitions: list[list[int]], polls: int, limit: int) -> None:
    log = MemoryLog(*partitions)
    first, records = reader(log), []
    for _ in range(polls):
        records += first.poll(limit)
    records += drain(reader(log, positions=first.positions), [5])
    assert places(records) == sorted(places([r for p in log.records for r in p]))


def test_a_record_is_held_while_an_idle_partition_may_still_precede_it() -> None:
    clock, log = Clock(1_000), MemoryLog([995], [])
    live = reader(log, clock)
    assert live.poll(10) == []  # partition 1 may still get 990
    assert not live.caught_up()
    clock.now_ms = 1_005
    assert places(live.poll(10)) == [(995, 0, 0)]  # 995 of partition 1 would come behind it
    assert live.caught_up()


def test_of_equal_stamps_the_lower_partition_goes_first() -> None:
    clock, log = Clock(1_005), MemoryLog([], [995])
    live = reader(log, clock)
    assert live.poll(10) == []  # partition 0 may still get 995, which precedes it
    log.add(0, 995)
    assert places(live.poll(10)) == [(995, 0, 0)]  # and another 995
    clock.now_ms = 1_006
    assert places(live.poll(10)) == [(995, 1, 0)]


def test_a_partition_that_was_read_to_its_end_holds_others_at_its_last_stamp() -> None:
    """The clock is far behind, as that of a machine whose log is stamped elsewhere."""
    log = MemoryLog([1, 5], [2, 9])
    live = reader(log, Clock(0))
    assert places(live.poll(10)) == [(1, 0, 0), (2, 1, 0), (5, 0, 1)]
    assert live.low_stamp_ms == 5
    log.add(0, 9)
    assert places(live.poll(10)) == [(9, 0, 2)]


def test_the_clock_is_read_before_the_end_offsets() -> None:
    """A record appended between the two readings must count as read or unread, never as impossible."""
    clock, log = Clock(1_000), MemoryLog([500], [])

    class Late(MemoryLog):
        def end_offset(self, topic: str, partition: int) -> int:
            clock.now_ms += 1_000  # time passes, and a producer appends after the end was taken
            end = super().end_offset(topic, partition)
            if partition == 1 and not self.records[1]:
                self.add(1, clock.now_ms)
            return end

    late = Late()
    late.records = log.records
    live = reader(late, clock)
    live.poll(10)
    assert live.low_stamp_ms == 1_000 - SKEW_MS


def test_the_low_stamp_is_that_of_the_idle_clock_once_all_is_read() -> None:
    live = reader(MemoryLog([1, 5], [2]), Clock(10_000))
    assert live.low_stamp_ms == 0
    live.poll(2)
    assert live.low_stamp_ms == 5
    live.poll(2)
    assert live.low_stamp_ms == 10_000 - SKEW_MS


def test_an_imported_log_is_read_to_its_end_at_once() -> None:
    live = reader(MemoryLog(range(100), range(50, 60), []))
    assert len(live.poll(1_000)) == 110
    assert live.caught_up()


def test_the_low_stamp_never_decreases() -> None:
    clock, log = Clock(1_000), MemoryLog([], [])
    live = reader(log, clock)
    live.poll(1)
    log.add(0, 3)  # an importer far behind the clock: against the rules, but not lost
    assert places(live.poll(1)) == [(3, 0, 0)]
    clock.now_ms = 500
    live.poll(1)
    assert live.low_stamp_ms == 1_000 - SKEW_MS


def test_a_record_behind_the_low_stamp_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    clock, log = Clock(1_000), MemoryLog([], [])
    live = reader(log, clock)
    live.poll(1)
    log.add(0, 1_000 - SKEW_MS)  # just in time
    live.poll(1)
    assert live.behind == 0
    assert not caplog.records
    log.add(1, 1_000 - SKEW_MS - 1)
    live.poll(1)
    assert live.behind == 1
    assert "1 records stamped up to 1 ms before a time that was taken to be over" in caplog.text


def test_one_partition_holds_nothing_back() -> None:
    live = reader(MemoryLog([7, 7, 8]), Clock(0))
    assert places(live.poll(10)) == [(7, 0, 0), (7, 0, 1), (8, 0, 2)]
    assert live.low_stamp_ms == 8
    assert live.caught_up()


def test_caught_up_is_of_the_last_poll() -> None:
    log = MemoryLog([1])
    live = reader(log)
    live.poll(10)
    assert live.caught_up()
    log.add(0, 2, 3)
    live.poll(1)
    assert not live.caught_up()
    live.poll(1)
    assert live.caught_up()


def test_a_log_that_was_cut_is_an_error_not_an_idle_log() -> None:
    with pytest.raises(LogError, match="partition 1: offset 5 is past the end, 1"):
        reader(MemoryLog([1], [2]), positions={1: 5}).poll(1)


def test_positions_of_another_log_are_refused() -> None:
    with pytest.raises(LogError, match=r"1 partitions, but positions are given for \[2\]"):
        reader(MemoryLog([1]), positions={0: 0, 2: 5})

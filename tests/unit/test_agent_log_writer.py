"""The agent's way to the event log: no page waits for it, nothing is lost silently, and who waits knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipeline.agent import impressions
from pipeline.agent.impressions import LogWriter
from pipeline.logs.log import Entry, LogError, TooLarge
from pipeline.monitoring.catalogue import AGENT
from pipeline.monitoring.metrics import Metrics

LONG_S = 30.0
LONGER_S = 2 * LONG_S  # a wait that has to be cut short


class GatedLog:
    """Appends when the gate is open; fails as often as told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.failures: list[Exception] = []
        self.entries: list[tuple[str, bytes]] = []
        self.entered = threading.Event()

    def append(self, topic, entries):
        self.entered.set()
        self.gate.wait(LONG_S)
        if self.failures:
            raise self.failures.pop()
        self.entries.extend((entry.key, entry.payload) for entry in entries)


class StepLog:
    """Each append takes one permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.payloads: list[bytes] = []

    def append(self, topic, entries):
        self.entered.release()
        assert self.permits.acquire(timeout=LONG_S)
        self.payloads.extend(entry.payload for entry in entries)


class SmallLog:
    """Takes no large events."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def append(self, topic, entries):
        large = [place for place, entry in enumerate(entries) if entry.payload == b"large"]
        self.payloads.extend(entry.payload for entry in entries if entry.payload != b"large")
        if large:
            raise TooLarge("too large", large)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def log() -> Iterator[GatedLog]:
    log = GatedLog()
    yield log
    log.gate.set()


def writer(log: GatedLog | StepLog | SmallLog, capacity: int = 100, capacity_bytes: int = 10_000) -> LogWriter:
    made = Metrics(AGENT)
    return LogWriter(log, made, capacity=capacity, capacity_bytes=capacity_bytes, monotonic=time.monotonic)


def test_events_arrive_in_order(log: GatedLog):
    log.gate.set()
    w = writer(log, 5_000)
    for i in range(2_000):
        assert w.submit("s", b"%d" % i)
    assert w.flush(LONG_S)
    assert log.entries == [("s", b"%d" % i) for i in range(2_000)]
    assert w.close(LONG_S)


def test_a_full_queue_drops_counts_and_does_not_wait(log: GatedLog):
    w = writer(log, 3)
    taken = [w.submit("s", b"%d" % i) for i in range(5)]
    assert taken == [True, True, True, False, False]
    assert w._metrics.total("events_dropped", reason="queue_full") == 2
    log.gate.set()
    assert w.close(LONG_S)
    assert [payload for _, payload in log.entries] == [b"0", b"1", b"2"]


def test_a_queue_is_full_of_large_events_long_before_there_are_many(log: GatedLog, threads: ThreadPoolExecutor):
    """What is written, or taken back, leaves its room to others; who can wait leaves half."""
    w = writer(log, capacity_bytes=100)
    assert w.submit("s", b"1" * 40)
    assert log.entered.wait(LONG_S)
    assert not w.submit_and_wait(entries(b"2" * 40), 0.0)  # taken in, and back
    assert [w.submit("s", b"3" * 40), w.submit_and_wait(entries(b"4"), LONGER_S)] == [True, False]
    assert [w.submit("s", b"5" * 40), w.submit("s", b"6")] == [True, False]
    log.gate.set()
    assert w.flush(LONG_S)
    assert [w.submit("s", b"7" * 40), w.submit("s", b"8")] == [True, True]
    assert w.close(LONG_S)
    assert [payload[:1] for _, payload in log.entries] == [b"1", b"3", b"5", b"7", b"8"]


def test_an_event_that_is_larger_than_the_log_takes_is_dropped_and_holds_up_no_other(threads: ThreadPoolExecutor):
    """Tried again for ever, it would have the others of its batch in the log once more each time."""
    log = SmallLog()
    w = writer(log)
    parcels = entries(b"a"), entries(b"b", b"large"), entries(b"c"), entries(b"large"), entries(b"d", b"e")
    written = [threads.submit(w.submit_and_wait, parcel, LONG_S) for parcel in parcels]
    assert [each.result() for each in written] == [True, False, True, False, True]
    assert w.close(LONG_S)
    assert sorted(log.payloads) == [b"a", b"b", b"c", b"d", b"e"]
    assert w._metrics.total("events_dropped", reason="too_large") == 2
    assert w._metrics.total("events_written") == 5


def test_a_log_that_fails_is_tried_again(log: GatedLog):
    log.failures = [LogError("down"), LogError("down")]
    log.gate.set()
    w = writer(log)
    w.submit("s", b"x")
    assert w.flush(LONG_S)
    assert log.entries == [("s", b"x")]
    assert w._metrics.total("event_log_errors") == 2
    assert w.close(LONG_S)


def test_closing_writes_what_is_left(log: GatedLog):
    w = writer(log)
    for i in range(10):
        w.submit("s", b"%d" % i)
    log.gate.set()
    assert w.close(LONG_S)
    assert len(log.entries) == 10
    assert not w.submit("s", b"too late")
    assert w._metrics.total("events_dropped", reason="closed") == 1


def test_closing_gives_up_on_a_dead_log_and_says_how_much_was_lost(log: GatedLog):
    log.failures = [LogError("down")] * 1_000
    log.gate.set()
    w = writer(log)
    for i in range(10):
        w.submit("s", b"%d" % i)
    assert not w.close(0.2)
    w._thread.join(LONG_S)
    assert not w.close(LONG_S)  # again, as who closes in order and by a context does: it is not waited for twice,
    assert w._metrics.total("events_dropped", reason="closed") == 10  # and not lost twice
    assert log.entries == []
    assert len(log.failures) > 900  # it did not hammer the log meanwhile


def test_a_dead_writer_is_noticed(log: GatedLog):
    log.failures = [ZeroDivisionError("a fault of the log")]
    log.gate.set()
    w = writer(log)
    assert w.alive
    w.submit("s", b"x")
    w._thread.join(LONG_S)
    assert not w.alive
    assert not w.submit("s", b"y")
    assert w._metrics.total("event_writer_died") == 1
    assert w._metrics.total("events_dropped", reason="writer_dead") == 1
    assert not w.flush(0.01)


def test_flush_says_when_it_gave_up(log: GatedLog):
    w = writer(log)
    w.submit("s", b"x")
    assert log.entered.wait(LONG_S)
    assert not w.flush(0.01)
    assert w.pending == 1
    log.gate.set()
    assert w.close(LONG_S)


# Who waits -------------------------------------------------------------------------------------------------------


def entries(*payloads: bytes) -> list[Entry]:
    return [Entry("s", payload) for payload in payloads]


def eventually(condition) -> None:
    give_up = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.002)


def test_who_waits_is_answered_once_its_events_are_in_the_log_whatever_comes_after_them(threads: ThreadPoolExecutor):
    log = StepLog()
    w = writer(log)
    waiting = threads.submit(w.submit_and_wait, entries(b"a", b"b"), LONG_S)
    assert log.entered.acquire(timeout=LONG_S)
    w.submit("s", b"later")
    assert not waiting.done()
    log.permits.release()
    assert waiting.result(LONG_S)
    assert log.payloads == [b"a", b"b"]
    assert w.pending == 1
    log.permits.release()
    assert w.close(LONG_S)


def test_many_wait_at_once_while_others_do_not(log: GatedLog, threads: ThreadPoolExecutor):
    log.gate.set()
    w = writer(log, 10_000)

    def report(thread: int) -> list[bool]:
        return [w.submit_and_wait(entries(b"%d/%d" % (thread, i)), LONG_S) for i in range(20)]

    reports = [threads.submit(report, thread) for thread in range(6)]
    while not all(each.done() for each in reports):
        w.submit("s", b"page")
        time.sleep(0.001)
    assert all(all(each.result()) for each in reports)
    for thread in range(6):
        mine = [payload for _, payload in log.entries if payload.startswith(b"%d/" % thread)]
        assert mine == [b"%d/%d" % (thread, i) for i in range(20)]
    assert w.close(LONG_S)


def test_nothing_to_wait_for(log: GatedLog):
    w = writer(log)
    assert w.submit_and_wait([], LONGER_S)
    w.close(0.0)


def test_events_that_are_not_written_in_time_are_taken_back(log: GatedLog):
    w = writer(log)
    w.submit("s", b"page")
    assert log.entered.wait(LONG_S)
    for _ in range(5):  # the same event, again and again, while the log hangs
        assert not w.submit_and_wait(entries(b"click"), 0.01)
    assert w.pending == 1
    log.gate.set()
    assert w.submit_and_wait(entries(b"click"), LONG_S)
    assert w.close(LONG_S)
    assert [payload for _, payload in log.entries] == [b"page", b"click"]


def test_events_under_way_are_not_taken_back_but_not_promised_either(log: GatedLog):
    w = writer(log)
    while not log.entered.is_set():  # a slow writer has not begun by then: what it is given is taken back
        assert not w.submit_and_wait(entries(b"click"), 0.2)
    assert w.pending == 1
    log.gate.set()
    assert w.close(LONG_S)
    assert [payload for _, payload in log.entries] == [b"click"]


def test_a_batch_that_was_taken_back_does_not_end_the_writer(log: GatedLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(impressions, "_GATHER_S", 0.2)
    log.gate.set()
    w = writer(log)
    while w.submit_and_wait(entries(b"click"), 0.05):  # while events are gathered: it may take us longer than that
        pass
    w._thread.join(0.5)  # it has found the batch empty, and does not end
    assert w.submit_and_wait(entries(b"next"), LONG_S)
    assert w.flush(LONG_S)
    assert w.close(LONG_S)


def test_who_can_wait_leaves_half_of_the_queue_to_who_cannot(log: GatedLog):
    w = writer(log, 4)
    w.submit("s", b"1")
    w.submit("s", b"2")
    assert not w.submit_and_wait(entries(b"click"), LONGER_S)
    assert w._metrics.total("events_dropped") == 0  # it comes again
    assert [w.submit("s", payload) for payload in (b"3", b"4", b"5")] == [True, True, False]
    log.gate.set()
    assert w.close(LONG_S)
    assert [payload for _, payload in log.entries] == [b"1", b"2", b"3", b"4"]


def waiting_behind(w: LogWriter, log: GatedLog, threads: ThreadPoolExecutor) -> list[Future[bool]]:
    """One whose events are under way, one whose events are queued."""
    under_way = threads.submit(w.submit_and_wait, entries(b"1"), LONGER_S)
    assert log.entered.wait(LONG_S)
    queued = threads.submit(w.submit_and_wait, entries(b"2"), LONGER_S)
    eventually(lambda: w.pending == 2)
    return [under_way, queued]


def test_closing_lets_nobody_wait(log: GatedLog, threads: ThreadPoolExecutor):
    w = writer(log)
    waiting = waiting_behind(w, log, threads)
    assert not w.close(0.01)
    assert [each.result(LONG_S) for each in waiting] == [False, False]
    assert not w.submit_and_wait(entries(b"3"), LONGER_S)


def test_closing_answers_who_waits_for_what_could_still_be_written(log: GatedLog, threads: ThreadPoolExecutor):
    w = writer(log)
    waiting = waiting_behind(w, log, threads)
    closing = threads.submit(w.close, LONG_S)
    eventually(lambda: w._closing)
    log.gate.set()
    assert closing.result(LONG_S)
    assert [each.result(LONG_S) for each in waiting] == [True, True]


def test_a_dead_writer_lets_nobody_wait(log: GatedLog, threads: ThreadPoolExecutor):
    log.failures = [ZeroDivisionError("a fault of the log")]
    w = writer(log)
    waiting = waiting_behind(w, log, threads)
    log.gate.set()
    assert [each.result(LONG_S) for each in waiting] == [False, False]
    assert not w.submit_and_wait(entries(b"3"), LONGER_S)

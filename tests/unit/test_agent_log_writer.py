"""The agent's way to the event log: nothing waits for it, nothing is lost silently."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.agent.impressions import LogWriter
from pipeline.agent.metrics import Metrics
from pipeline.logs.log import LogError

LONG_S = 30.0


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


@pytest.fixture
def log() -> Iterator[GatedLog]:
    log = GatedLog()
    yield log
    log.gate.set()


def writer(log: GatedLog, capacity: int = 100) -> LogWriter:
    return LogWriter(log, Metrics(), capacity=capacity, monotonic=time.monotonic)


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
    assert w._metrics.total("events_dropped", reason="closed") == 10
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

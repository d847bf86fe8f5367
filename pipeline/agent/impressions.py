"""The way of impressions and feedback to the event log: a bounded queue and one thread, so that no page waits for it.

A full queue drops, and counts. A log that fails is tried again until it answers or the writer is closed; what was
appended by a try that failed half-way is appended again, and the joiner drops the copy.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from pipeline.agent.metrics import Metrics
from pipeline.logs.log import EVENTS, Entry, EventLog, LogError

_LOG = logging.getLogger(__name__)
_BATCH = 500
_GATHER_S = 0.01  # between the first event and its append: a thread woken for each event would slow pages down
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class LogWriter:
    """Owns the thread, not the log."""

    def __init__(self, log: EventLog, metrics: Metrics, *, capacity: int, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._metrics = metrics
        self._capacity = capacity
        self._monotonic = monotonic
        self._queue: deque[Entry] = deque()
        self._unwritten = 0  # queued, or taken by the thread and not yet in the log
        self._closing_at_s: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread ended without being asked to: everything since then was dropped."""
        return self._closing_at_s is not None or self._thread.is_alive()

    @property
    def pending(self) -> int:
        return self._unwritten

    def submit(self, key: str, payload: bytes) -> bool:
        """Take an event in without waiting; False if it was dropped."""
        with self._changed:
            refusal = self._refusal()
            if refusal is None:
                self._queue.append(Entry(key, payload))
                self._unwritten += 1
                if len(self._queue) == 1:
                    self._changed.notify_all()
        if refusal is not None:
            self._metrics.count("events_dropped", reason=refusal)
        return refusal is None

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken in is in the log; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unwritten == 0, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what is left for as long as the time allows; False if something had to be dropped."""
        with self._changed:
            self._closing_at_s = self._monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = self._unwritten
        if left:
            self._metrics.count("events_dropped", left, reason="closed")
            _LOG.error("event log: %d events were not written when the agent closed", left)
        return left == 0

    def _refusal(self) -> str | None:
        if self._closing_at_s is not None:
            return "closed"
        if not self._thread.is_alive():
            return "writer_dead"
        return "queue_full" if self._unwritten >= self._capacity else None

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) and self._write(batch):
                with self._changed:
                    self._unwritten -= len(batch)
                    self._changed.notify_all()
        except Exception:
            self._metrics.count("event_writer_died")
            _LOG.exception("event log: the writer thread died; impressions are dropped from now on")

    def _next_batch(self) -> list[Entry]:
        """Waits for one; empty when closing and nothing is left, or no time."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing_at_s is not None)
            self._changed.wait_for(lambda: self._closing_at_s is not None, _GATHER_S)
            if self._out_of_time():
                return []
            return [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]

    def _write(self, batch: list[Entry]) -> bool:
        """False when the writer was closed and its time is up."""
        pause_s = _FIRST_PAUSE_S
        while not self._append(batch):
            self._wait(pause_s)
            if self._out_of_time():
                return False
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def _append(self, batch: list[Entry]) -> bool:
        try:
            self._log.append(EVENTS, batch)
        except LogError as error:
            self._metrics.count("event_log_errors")
            _LOG.warning("event log: %s; trying again", error)
            return False
        self._metrics.count("events_written", len(batch))
        return True

    def _wait(self, pause_s: float) -> None:
        """Cut short when the writer is closed, and by the time it has left then."""
        with self._changed:
            if self._closing_at_s is None:
                self._changed.wait_for(lambda: self._closing_at_s is not None, pause_s)
            else:
                self._changed.wait(max(min(pause_s, self._closing_at_s - self._monotonic()), 0.0))

    def _out_of_time(self) -> bool:
        return self._closing_at_s is not None and self._monotonic() >= self._closing_at_s

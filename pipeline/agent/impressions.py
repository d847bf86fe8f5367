"""The way of impressions and feedback to the event log: a bounded queue and one thread, so that no page waits for it.

A full queue drops, and counts; it is full at a number of events, or of bytes: events of a large page are a hundred
times those of a small one, and a log that is down for minutes must not cost the process its memory. Who can send its
events again may wait until they are in the log, and takes them back if they are not there in time: a log that is down
for a while is not left with a copy for each attempt. A log that fails is tried again until it answers or the writer
is closed; what was appended by a try that failed half-way is appended again, and the joiner drops the copy. An event
that is larger than the log takes is dropped, and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.logs.log import EVENTS, Entry, EventLog, LogError, TooLarge
from pipeline.monitoring.metrics import Metrics

_LOG = logging.getLogger(__name__)
_BATCH = 500
_GATHER_S = 0.01  # between the first event and its append: a thread woken for each event would slow pages down
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class _Parcel:
    """Entries that are taken in, appended and taken back together."""

    __slots__ = ("bytes", "entries", "settled", "written")

    def __init__(self, entries: Sequence[Entry], settled: threading.Event | None = None) -> None:
        self.entries = entries
        self.bytes = sum(len(entry.payload) for entry in entries)
        self.settled = settled  # set once it is known whether they were written; None where nobody waits
        self.written = False

    def settle(self, *, written: bool) -> None:
        self.written = written
        if self.settled is not None:
            self.settled.set()


class LogWriter:
    """Owns the thread, not the log."""

    def __init__(
        self,
        log: EventLog,
        metrics: Metrics,
        *,
        capacity: int,
        capacity_bytes: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._capacity, self._capacity_bytes = capacity, capacity_bytes
        self._monotonic = monotonic
        self._queue: deque[_Parcel] = deque()
        self._in_hand: list[_Parcel] = []  # taken by the thread and not yet in the log
        self._lost: frozenset[int] = frozenset()  # places of entries in hand that the log will never take
        self._unwritten = self._unwritten_bytes = 0  # of entries, queued or in hand
        self._closing_at_s: float | None = None
        self._ended = False
        self._closed: bool | None = None  # whether nothing had to be dropped
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread ended without being asked to: everything since then was dropped."""
        return self._closing or not self._ended

    @property
    def pending(self) -> int:
        return self._unwritten

    def submit(self, key: str, payload: bytes) -> bool:
        """Take an event in without waiting; False if it was dropped."""
        refusal = self._put(_Parcel((Entry(key, payload),)), 1.0)
        if refusal is not None:
            self._metrics.count("events_dropped", reason=refusal)
        return refusal is None

    def submit_and_wait(self, entries: Sequence[Entry], timeout_s: float) -> bool:
        """Wait until all entries are in the log. False if they are not in time: they may be there or not.

        They are taken in together, and only into the first half of the queue: they come again, impressions do not.
        """
        if not entries:
            return True
        settled = threading.Event()
        parcel = _Parcel(entries, settled)
        if self._put(parcel, 0.5) is not None:
            return False
        settled.wait(timeout_s)
        with self._changed:
            if not parcel.written:
                self._take_back(parcel)
            return parcel.written

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken in is in the log; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unwritten == 0, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what is left for as long as the time allows; False if something had to be dropped."""
        with self._changed:
            if self._closed is not None:
                return self._closed
            self._closing_at_s = self._monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = self._unwritten
            self._closed = left == 0
            self._give_up()
        if left:
            self._metrics.count("events_dropped", left, reason="closed")
            _LOG.error("event log: %d events were not written when the agent closed", left)
        return left == 0

    def _put(self, parcel: _Parcel, share: float) -> str | None:
        """Why it was not taken into this share of the queue; whole parcels are, so one of them may go beyond it."""
        with self._changed:
            refusal = self._refusal(share)
            if refusal is None:
                self._queue.append(parcel)
                self._unwritten += len(parcel.entries)
                self._unwritten_bytes += parcel.bytes
                if len(self._queue) == 1:
                    self._changed.notify_all()
        return refusal

    def _refusal(self, share: float) -> str | None:
        if self._closing:
            return "closed"
        if self._ended:
            return "writer_dead"
        full = self._unwritten >= share * self._capacity or self._unwritten_bytes >= share * self._capacity_bytes
        return "queue_full" if full else None

    def _take_back(self, parcel: _Parcel) -> None:
        """Unless the thread has it in hand: then it may yet be written, and its copy with it."""
        if parcel in self._queue:
            self._queue.remove(parcel)
            self._done_with(parcel)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._next_batch() and self._write():
                self._settle()
        except Exception:
            self._metrics.count("event_writer_died")
            _LOG.exception("event log: the writer thread died; impressions are dropped from now on")
        finally:
            with self._changed:
                self._ended = True
                self._give_up()

    def _next_batch(self) -> bool:
        """Wait for one (it may be empty: taken back meanwhile). False when closing and nothing is left, or no time."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: self._closing, _GATHER_S)
            if self._out_of_time() or (self._closing and not self._queue):
                return False
            size = 0
            while self._queue and size < _BATCH:
                self._in_hand.append(self._queue.popleft())
                size += len(self._in_hand[-1].entries)
            return True

    def _write(self) -> bool:
        """False when the writer was closed and its time is up."""
        batch = [entry for parcel in self._in_hand for entry in parcel.entries]
        pause_s = _FIRST_PAUSE_S
        while batch and not self._append(batch):
            self._wait(pause_s)
            if self._out_of_time():
                return False
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def _append(self, batch: list[Entry]) -> bool:
        try:
            self._log.append(EVENTS, batch)
        except TooLarge as error:  # at every other try, too, which would write the others again each time
            self._lost = error.places
            self._metrics.count("events_dropped", len(self._lost), reason="too_large")
            _LOG.error("event log: %s; dropped", error)
        except LogError as error:
            self._metrics.count("event_log_errors")
            _LOG.warning("event log: %s; trying again", error)
            return False
        self._metrics.count("events_written", len(batch) - len(self._lost))
        return True

    def _settle(self) -> None:
        with self._changed:
            first = 0
            for parcel in self._in_hand:
                self._done_with(parcel)
                end = first + len(parcel.entries)
                parcel.settle(written=self._lost.isdisjoint(range(first, end)))
                first = end
            self._in_hand.clear()
            self._lost = frozenset()
            self._changed.notify_all()

    def _done_with(self, parcel: _Parcel) -> None:
        self._unwritten -= len(parcel.entries)
        self._unwritten_bytes -= parcel.bytes

    def _give_up(self) -> None:
        """Nobody shall wait for what is not going to be written, or not in time."""
        for parcel in (*self._in_hand, *self._queue):
            parcel.settle(written=False)

    def _wait(self, pause_s: float) -> None:
        """Cut short when the writer is closed, and by the time it has left then."""
        with self._changed:
            if self._closing_at_s is None:
                self._changed.wait_for(lambda: self._closing, pause_s)
            else:
                self._changed.wait(max(min(pause_s, self._closing_at_s - self._monotonic()), 0.0))

    @property
    def _closing(self) -> bool:
        return self._closing_at_s is not None

    def _out_of_time(self) -> bool:
        return self._closing_at_s is not None and self._monotonic() >= self._closing_at_s

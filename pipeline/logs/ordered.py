"""A topic's partitions merged into one order that is the same however they are read.

The order is (stamp, partition, offset). A record is given out once no unread record of another partition can come
before it. That is known of a partition from the last stamp read, and for one that is idle from the clock: after
reaching an end offset that was taken after the clock was read, whatever comes later is stamped no earlier than that
reading minus the skew between producers' clocks.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Mapping

from pipeline.logs.log import EventLog, LogError, Record
from pipeline.logs.reading import check_not_past_end, read_on

_LOG = logging.getLogger(__name__)


class _Partition:
    """What was read of one partition and not given out yet, and what is known of the rest."""

    def __init__(self, number: int, position: int) -> None:
        self.number = number
        self.held: deque[Record] = deque()
        self.position = position  # offset of the next record to read
        self.end = position  # as of the last poll
        self.last_stamp = 0

    @property
    def next_offset(self) -> int:
        return self.held[0].offset if self.held else self.position

    @property
    def at_end(self) -> bool:
        return self.position >= self.end

    def low_ms(self, idle_ms: int) -> int:
        """No record of this partition still to be given out has a lower stamp."""
        if self.held:
            return self.held[0].appended_at_ms
        return max(self.last_stamp, idle_ms) if self.at_end else self.last_stamp

    def fill(self, log: EventLog, topic: str, limit: int) -> None:
        if self.held or self.at_end:
            return
        records, self.position = read_on(log, topic, self.number, self.position, limit)
        if records:
            self.held.extend(records)
            self.last_stamp = max(self.last_stamp, records[-1].appended_at_ms)


class OrderedReader:
    """Reads a topic from `positions` (next offset by partition; from what is left of its start where there is none)."""

    def __init__(
        self,
        log: EventLog,
        topic: str,
        positions: Mapping[int, int] | None,
        clock_ms: Callable[[], int],
        skew_ms: int,
    ) -> None:
        self._log, self._topic, self._clock_ms, self._skew_ms = log, topic, clock_ms, skew_ms
        start, count = dict(positions or {}), log.partitions(topic)
        if unknown := sorted(set(start) - set(range(count))):
            message = f"topic {topic!r} has {count} partitions, but positions are given for {unknown}: not the same log"
            raise LogError(message)
        for number in set(range(count)) - set(start):
            start[number] = log.start_offset(topic, number)
        self._partitions = [_Partition(number, start[number]) for number in range(count)]
        self._idle_ms = 0
        self._low_ms = 0
        self.behind = 0  # records that came after `low_stamp_ms` had said that none would

    def poll(self, limit: int) -> list[Record]:
        """At most `limit` records, next in the order; empty when none can be given out yet. Never blocks."""
        self._idle_ms = self._clock_ms() - self._skew_ms  # the clock first, then the ends: see above
        ends = self._log.end_offsets(self._topic)
        for partition in self._partitions:
            partition.end = ends[partition.number]
            check_not_past_end(self._topic, partition.number, partition.position, partition.end)
        released: list[Record] = []
        while len(released) < limit:
            for partition in self._partitions:
                partition.fill(self._log, self._topic, limit)
            batch = self._release(limit - len(released))
            if not batch:
                break
            released += batch
        self._warn_of_broken_promises(released)
        self._low_ms = max(self._low_ms, min(partition.low_ms(self._idle_ms) for partition in self._partitions))
        return released

    @property
    def positions(self) -> dict[int, int]:
        """By partition the offset after the last record given out: where a new reader goes on."""
        return {partition.number: partition.next_offset for partition in self._partitions}

    @property
    def low_stamp_ms(self) -> int:
        """No record to come has a lower stamp. Never decreases."""
        return self._low_ms

    def caught_up(self) -> bool:
        """Whether all was given out that the log held when it was last polled."""
        return all(not partition.held and partition.at_end for partition in self._partitions)

    def _warn_of_broken_promises(self, released: list[Record]) -> None:
        """A producer that stamps further back than the skew: what was made of its records depends on when they came."""
        behind = [record for record in released if record.appended_at_ms < self._low_ms]
        if behind:
            self.behind += len(behind)
            worst = max(self._low_ms - record.appended_at_ms for record in behind)
            _LOG.warning(
                "topic %r: %d records stamped up to %d ms before a time that was taken to be over (in all %d): "
                "a producer's clock is further off than the skew of %d ms, or the past was imported into a live log",
                self._topic, len(behind), worst, self.behind, self._skew_ms,
            )  # fmt: skip

    def _release(self, limit: int) -> list[Record]:
        heap = [(p.held[0].appended_at_ms, p.number) for p in self._partitions if p.held]
        heapq.heapify(heap)
        gate = min(((p.low_ms(self._idle_ms), p.number) for p in self._partitions if not p.held), default=None)
        released: list[Record] = []
        while heap and len(released) < limit and (gate is None or heap[0] < gate):
            partition = self._partitions[heap[0][1]]
            released.append(partition.held.popleft())
            if partition.held:
                heapq.heapreplace(heap, (partition.held[0].appended_at_ms, partition.number))
            else:
                heapq.heappop(heap)
                low = (partition.low_ms(self._idle_ms), partition.number)
                gate = low if gate is None else min(gate, low)
        return released

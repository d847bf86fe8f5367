"""Reading from Kafka: by partition and offset, without a consumer group.

One client serves all partitions: it hands out records of whichever it likes, and what was not asked for waits in the
buffer of its partition. A partition whose buffer is full is let go until it was emptied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.logs.kafka.clients import Connection, is_passing, is_stale
from pipeline.logs.kafka.stamps import highest_before
from pipeline.logs.log import LogError, Record

T = TypeVar("T")
_SETTINGS = {
    "group.id": "pageturn",  # the client wants one; no group is joined, and no offset is committed
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # never another record than the one asked for
    "allow.auto.create.topics": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 100,  # a partition that is new to a broker's fetch waits for the one under way
    "fetch.queue.backoff.ms": 10,
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 32 * 1024,
}
_AT_ONCE = 1_000  # records
_SLICE_S = 0.1  # of a wait
_HELD_RECORDS, _HELD_BYTES = 10_000, 16 * 1024 * 1024  # of a partition that nobody asked for


class _Cursor:
    """One reader's place in a partition, and what was fetched from there on."""

    def __init__(self, place: TopicPartition) -> None:
        self.place = place
        self.held: deque[Record] = deque()
        self.bytes = 0  # of payload held
        self.attached = False
        self.go_to(place.offset)

    def go_to(self, offset: int) -> None:
        self.held.clear()
        self.bytes = 0
        self.base = offset  # what the next read asks for; no record lies between it and the first one held
        self.next = offset  # behind what was fetched; there may be a gap before it
        self.start, self.stable = 0, -1  # of the partition, when last asked: first offset, end of what is committed
        self.stamp: int | None = None  # the highest so far; not known where a reader begins

    def continues_at(self, offset: int) -> bool:
        return self.base <= offset <= (self.held[0].offset if self.held else self.next)

    def hold(self, record: Record) -> None:
        self.held.append(record)
        self.bytes += len(record.payload)
        self.next = record.offset + 1

    def take(self, limit: int) -> list[Record]:
        records = [self.held.popleft() for _ in range(min(limit, len(self.held)))]
        self.bytes -= sum(len(record.payload) for record in records)
        if records:
            self.base = records[-1].offset + 1
        return records

    @property
    def full(self) -> bool:
        return len(self.held) >= _HELD_RECORDS or self.bytes >= _HELD_BYTES


class Consuming:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self._made: Consumer | None = None
        self._cursors: dict[tuple[str, int], _Cursor] = {}

    def read(self, name: str, partition: int, offset: int, limit: int) -> list[Record]:
        """All that was committed before the call, up to the limit; LogError for an offset before the first one."""
        with self._mutex:
            cursor = self._cursor(name, partition, offset)
            if len(cursor.held) < limit and cursor.stable < offset + limit:
                self._look(cursor)
            self._fill(cursor, limit)
            return self._stamped(cursor, cursor.take(limit))

    def past_gap(self, name: str, partition: int, offset: int) -> int:
        with self._mutex:
            cursor = self._cursors.get((name, partition))
            return cursor.next if cursor and cursor.base == offset and not cursor.held else offset

    def is_past_stable_end(self, name: str, partition: int) -> bool:
        """Whether the last read asked for what was not committed then, or never was there."""
        with self._mutex:
            cursor = self._cursors[name, partition]
            return cursor.base > cursor.stable

    def start_offset(self, name: str, partition: int) -> int:
        with self._mutex:
            return self._bounds(TopicPartition(name, partition))[0]

    def close(self) -> None:
        with self._mutex:
            self._disconnect()
            self._cursors = {}

    def _disconnect(self) -> None:
        """Cursors keep their places, and go on with the next client."""
        if self._made is not None:
            self._made.close()
        self._made = None
        for cursor in self._cursors.values():
            cursor.attached = False

    def _persist(self, what: str, ask: Callable[[float], T]) -> T:
        return self._connection.persist(what, ask, lambda error: self._disconnect() if is_stale(error) else None)

    @property
    def _consumer(self) -> Consumer:
        if self._made is None:
            self._made = self._connection.client(Consumer, _SETTINGS)
        return self._made

    def _cursor(self, name: str, partition: int, offset: int) -> _Cursor:
        cursor = self._cursors.get((name, partition))
        if cursor is None:
            cursor = self._cursors[name, partition] = _Cursor(TopicPartition(name, partition, offset))
        elif not cursor.continues_at(offset):
            self._detach(cursor)
            cursor.go_to(offset)
        cursor.base = offset
        return cursor

    def _bounds(self, place: TopicPartition) -> tuple[int, int]:
        """First offset, and the end of what is committed."""

        def ask(left_s: float) -> tuple[int, int]:
            return self._consumer.get_watermark_offsets(place, timeout=left_s, cached=False)

        return self._persist(f"ask for the bounds of {_text(place)}", ask)

    def _look(self, cursor: _Cursor) -> None:
        cursor.start, cursor.stable = self._bounds(cursor.place)
        if cursor.base < cursor.start:
            raise _deleted(cursor)

    # Fetching ---------------------------------------------------------------------------------------------------------

    def _fill(self, cursor: _Cursor, limit: int) -> None:
        """Fetch until the limit, or the end of what is committed, is there."""
        deadline_s = time.monotonic() + self._connection.settings.timeout_s
        while len(cursor.held) < limit and cursor.next < cursor.stable:
            self._attach(cursor)
            fetched = self._fetched()
            for message in fetched:
                self._sort(message)
            if not fetched and time.monotonic() > deadline_s:
                what = f"read {_text(cursor.place)}"
                raise self._connection.explained(what, KafkaError(KafkaError._TIMED_OUT))
            for other in self._cursors.values():
                if other is not cursor and other.attached and other.full:
                    self._detach(other)

    def _fetched(self) -> list[Message]:
        """What has come; else what comes within a moment. (Asked for many, the client waits until it has as many.)"""
        fetched = self._consumer.consume(_AT_ONCE, 0)
        if not fetched:
            message = self._consumer.poll(_SLICE_S)
            return [] if message is None else [message]
        return fetched

    def _attach(self, cursor: _Cursor) -> None:
        if not cursor.attached:
            self._consumer.incremental_assign([TopicPartition(cursor.place.topic, cursor.place.partition, cursor.next)])
            cursor.attached = True

    def _detach(self, cursor: _Cursor) -> None:
        if cursor.attached:
            self._consumer.incremental_unassign([cursor.place])
            cursor.attached = False

    def _sort(self, message: Message) -> None:
        cursor = self._cursors.get((str(message.topic()), int(message.partition() or 0)))
        error = message.error()
        if error is not None:
            self._heed(error, message, cursor)
        elif cursor is not None and cursor.attached and int(message.offset() or 0) >= cursor.next:
            cursor.hold(_record(message))

    def _heed(self, error: KafkaError, message: Message, cursor: _Cursor | None) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            if cursor is not None and cursor.attached:
                cursor.next = max(cursor.next, int(message.offset() or 0))
            return
        if is_passing(error) or error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:  # no group is needed
            return
        if cursor is not None:
            self._detach(cursor)
        if cursor is not None and error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._look(cursor)
        what = f"read topic {message.topic()!r}"
        raise self._connection.explained(what, error)

    # Stamps -----------------------------------------------------------------------------------------------------------

    def _stamped(self, cursor: _Cursor, records: Sequence[Record]) -> list[Record]:
        stamped = []
        for record in records:
            if cursor.stamp is None:
                cursor.stamp = self._stamp_before(cursor, record)
            cursor.stamp = max(cursor.stamp, record.appended_at_ms)
            stamped.append(
                record if record.appended_at_ms == cursor.stamp else record._replace(appended_at_ms=cursor.stamp)
            )
        return stamped

    def _stamp_before(self, cursor: _Cursor, record: Record) -> int:
        if record.offset == cursor.start:
            return 0

        def first_at(stamp: int) -> int | None:
            place = TopicPartition(cursor.place.topic, cursor.place.partition, stamp)

            def ask(left_s: float) -> int | None:
                (found,) = self._consumer.offsets_for_times([place], timeout=left_s)
                if found.error is not None:
                    raise KafkaException(found.error)
                return int(found.offset) if found.offset >= 0 else None

            return self._persist(f"ask for stamps of {_text(cursor.place)}", ask)

        return highest_before(record.offset, record.appended_at_ms, first_at)


def _record(message: Message) -> Record:
    kind, stamp = message.timestamp()
    partition, offset = int(message.partition() or 0), int(message.offset() or 0)
    if kind != TIMESTAMP_LOG_APPEND_TIME:
        where = f"topic {message.topic()!r}, partition {partition}, offset {offset}"
        text = f"{where}: expected a record stamped by the log (message.timestamp.type=LogAppendTime), found CreateTime"
        raise LogError(text)
    key = (message.key() or b"").decode(errors="backslashreplace")  # another producer may send any bytes
    return Record(partition, offset, stamp, key, message.value() or b"")


def _deleted(cursor: _Cursor) -> LogError:
    found = f"offset {cursor.base} was deleted: the log starts at {cursor.start}"
    remedy = "its retention is shorter than this reader was away; start anew from what is left, or restore the topic"
    return LogError(f"{_text(cursor.place)}: {found}; {remedy}")


def _text(place: TopicPartition) -> str:
    return f"topic {place.topic!r}, partition {place.partition}"

"""Appending to Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.logs.kafka.clients import Connection
from pipeline.logs.kafka.topics import BATCH_BYTES
from pipeline.logs.log import Entry, LogError, TooLarge
from pipeline.records import SCHEMA_VERSION

_HEADERS: list[tuple[str, str | bytes | None]] = [("schema-version", str(SCHEMA_VERSION).encode())]
_Delivered = Callable[[KafkaError | None, Message], None]
_SLICE_S = 0.2  # of a wait, so that signals are heard
_GRACE_S = 5.0

# Java's default partitioner, so that other producers with the same keys agree without being told. The broker's limit on
# the size of a message is the one that counts, not the client's. Linger gathers a batch while entries are handed over;
# `flush` then sends without waiting for it.
_DEFAULTS = {"partitioner": "murmur2_random", "linger.ms": "5", "compression.type": "zstd", "batch.size": BATCH_BYTES}
_FORCED = {"enable.idempotence": True, "acks": "all", "message.max.bytes": 100_000_000}


class Producing:
    """One producer; what it appends is in all replicas that are in sync, once and in order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self._producer: Producer | None = None

    def append(self, name: str, entries: Sequence[Entry]) -> None:
        if any(entry.appended_at_ms is not None for entry in entries):
            message = f"topic {name!r}: a Kafka log takes no stamps, it gives them; import into a file log (file:///)"
            raise LogError(message)
        with self._mutex:
            failures = self._deliver(name, entries)
        if failures:
            raise self._failed(name, len(entries), failures)

    def close(self) -> None:
        with self._mutex:
            self._producer = None  # nothing is waiting in it

    def _deliver(self, name: str, entries: Sequence[Entry]) -> dict[int, KafkaError]:
        """Hand over and wait for every answer. Whatever fails, nothing is under way any more on return.

        The failures by the place of their entry.
        """
        failures: dict[int, KafkaError] = {}

        def delivered(place: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures[place] = error

        producer = self._open()
        deadline_s = time.monotonic() + self._connection.settings.timeout_s + _GRACE_S
        for place, entry in enumerate(entries):
            try:
                self._hand_over(producer, name, entry, partial(delivered, place), deadline_s)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    failures.update(dict.fromkeys(range(place, len(entries)), error.args[0]))
                    break
                failures[place] = error.args[0]
        while producer.flush(_SLICE_S) and time.monotonic() < deadline_s:
            pass
        if len(producer):
            producer.purge()
            producer.flush(_SLICE_S)
        if any(error.fatal() for error in failures.values()):
            self._producer = None  # it will never send again, the next one does
        return failures

    def _hand_over(self, producer: Producer, name: str, entry: Entry, delivered: _Delivered, deadline_s: float) -> None:
        while True:
            try:
                producer.produce(name, entry.payload, entry.key.encode(), headers=_HEADERS, on_delivery=delivered)
                producer.poll(0)
                return
            except BufferError as error:  # as much is under way as the client holds
                if time.monotonic() > deadline_s:
                    raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT)) from error
                producer.poll(_SLICE_S)

    def _open(self) -> Producer:
        if self._producer is None:
            settings = self._connection.settings
            timeout_ms = {"message.timeout.ms": int(settings.timeout_s * 1000)}
            self._producer = self._connection.client(
                Producer, _DEFAULTS | dict(settings.producer) | _FORCED | timeout_ms
            )
        return self._producer

    def _failed(self, name: str, entries: int, failures: Mapping[int, KafkaError]) -> LogError:
        what = f"append to topic {name!r} ({len(failures)} of {entries} records"
        others = [error for error in failures.values() if error.code() != KafkaError.MSG_SIZE_TOO_LARGE]
        if not others:
            message = f"cannot {what}): larger than the topic takes; raise its max.message.bytes"
            return TooLarge(message, failures)
        first, what = others[0], f"{what}, which may be there or not)"
        if first.code() == KafkaError._MSG_TIMED_OUT:
            first = KafkaError(KafkaError._TIMED_OUT)
        return self._connection.explained(what, first)

"""The event log on a Kafka cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pipeline.logs.kafka.clients import Connection
from pipeline.logs.kafka.consuming import Consuming
from pipeline.logs.kafka.producing import Producing
from pipeline.logs.kafka.settings import settings_of
from pipeline.logs.kafka.topics import Topics
from pipeline.logs.log import Entry, Record
from pipeline.logs.reading import check_not_past_end


class KafkaLog:
    """An EventLog on topics stamped with LogAppendTime. Connects when it is first used.

    Stamps are the brokers' clocks, made never to decrease. `append` waits for all replicas in sync. Every call ends
    within about `timeout_s` (of the URL; 30 s), by then with a LogError.
    """

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        self._url = url
        connection = Connection(settings_of(url, environment))
        self._topics = Topics(connection)
        self._producing = Producing(connection)
        self._consuming = Consuming(connection)

    def __reduce__(self) -> tuple[type[KafkaLog], tuple[str]]:
        """A copy, as Beam makes of what its steps hold, has connections of its own, and secrets where it wakes up."""
        return KafkaLog, (self._url,)

    def create(self, topic: str, partitions: int) -> None:
        self._topics.create(topic, partitions)

    def partitions(self, topic: str) -> int:
        return self._topics.partitions(topic)

    def append(self, topic: str, entries: Sequence[Entry]) -> None:
        self._producing.append(self._topics.name_of(topic, 0), entries)

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        records = self._consuming.read(self._topics.name_of(topic, partition), partition, offset, limit)
        if not records and self._consuming.is_past_stable_end(self._topics.name_of(topic, partition), partition):
            check_not_past_end(topic, partition, offset, self.end_offset(topic, partition))
        return records

    def past_gap(self, topic: str, partition: int, offset: int) -> int:
        return self._consuming.past_gap(self._topics.name_of(topic, partition), partition, offset)

    def start_offset(self, topic: str, partition: int) -> int:
        return self._consuming.start_offset(self._topics.name_of(topic, partition), partition)

    def end_offset(self, topic: str, partition: int) -> int:
        self._topics.name_of(topic, partition)
        return self._topics.end_offsets(topic)[partition]

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self._topics.end_offsets(topic)

    def sync(self) -> None:
        """Nothing to do: what was appended, and all before an end offset, is with the replicas in sync."""

    def close(self) -> None:
        self._producing.close()
        self._consuming.close()

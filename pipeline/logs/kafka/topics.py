"""Topics: made, looked at, and asked for their ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from pipeline.logs.kafka.clients import Connection, is_stale
from pipeline.logs.log import OUTPUTS, LogError, NoTopic, check_topic

T = TypeVar("T")
BATCH_BYTES = 500_000  # a producer fills a batch up to this, and a topic must take whole batches
_OUTPUT_BYTES = 16 * 1024 * 1024  # an output holds several events, or one in base64
_PAUSE_S = 0.05


class Topics:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._partitions: dict[str, int] = {}  # of topics that were checked
        self._made: AdminClient | None = None

    def create(self, topic: str, partitions: int) -> None:
        check_topic(topic, partitions)
        try:
            found = self.partitions(topic)
        except NoTopic:
            self._make(topic, partitions)
            found = self._await(topic)
        if found != partitions:
            remedy = f"ask for {found}, or use a new log (records cannot move between partitions)"
            message = f"{self._place(topic)} has {found} partitions, not {partitions}: {remedy}"
            raise LogError(message)

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            count = self._count(topic)
            self._check(topic)
            self._partitions[topic] = count
        return self._partitions[topic]

    def name_of(self, topic: str, partition: int) -> str:
        """In the cluster; LogError unless it has the partition."""
        count = self.partitions(topic)
        if not 0 <= partition < count:
            message = f"{self._place(topic)} has no partition {partition}: it has {count}"
            raise LogError(message)
        return self._settings.name_of(topic)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """With what is not committed yet: a partition is not idle while a transaction is open in it."""
        name = self._settings.name_of(topic)
        asked = {TopicPartition(name, p): OffsetSpec.latest() for p in range(self.partitions(topic))}

        def ask(left_s: float) -> dict[int, int]:
            futures = self._admin.list_offsets(
                asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=left_s
            )
            return {place.partition: future.result().offset for place, future in futures.items()}

        return self._persist(f"ask for the ends of topic {name!r}", ask)

    @property
    def _admin(self) -> AdminClient:
        if self._made is None:
            self._made = self._connection.client(AdminClient, {})
        return self._made

    def _persist(self, what: str, ask: Callable[[float], T]) -> T:
        return self._connection.persist(what, ask, self._heed)

    def _heed(self, error: KafkaError) -> None:
        self._admin.poll(0)  # what its threads have to say
        if is_stale(error):
            self._made = None

    def _place(self, topic: str) -> str:
        return f"topic {self._settings.name_of(topic)!r} at {self._settings.where}"

    def _count(self, topic: str) -> int:
        """Asked in the one way that never makes a topic."""
        name = self._settings.name_of(topic)

        def ask(left_s: float) -> int | None:
            asked = TopicCollection([name])
            (future,) = self._admin.describe_topics(asked, request_timeout=left_s).values()
            try:
                partitions = future.result().partitions
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    return None
                raise
            return len(partitions) if all(p.leader is not None for p in partitions) else None

        count = self._persist(f"look at topic {name!r}", ask)
        if count is None:
            message = f"no topic {topic!r} at {self._settings.where}: create it with its number of partitions first"
            raise NoTopic(message)
        return count

    def _check(self, topic: str) -> None:
        """LogError where the topic is not one that the promises of a log can rest on."""
        found, where = self._config(topic), self._place(topic)
        stamps = found["message.timestamp.type"]
        if stamps != "LogAppendTime":
            remedy = "let Pageturn make the topic, or alter it before anything is in it"
            message = f"{where}: expected message.timestamp.type=LogAppendTime, found {stamps}; {remedy}"
            raise LogError(message)
        if "compact" in found["cleanup.policy"]:
            message = f"{where}: expected cleanup.policy=delete, found {found['cleanup.policy']}: records would be lost"
            raise LogError(message)
        if int(found["max.message.bytes"]) < BATCH_BYTES:
            message = (
                f"{where}: expected max.message.bytes of {BATCH_BYTES} or more, found {found['max.message.bytes']}"
            )
            raise LogError(message)

    def _config(self, topic: str) -> dict[str, str]:
        name = self._settings.name_of(topic)

        def ask(left_s: float) -> dict[str, str]:
            resource = ConfigResource(ResourceType.TOPIC, name)
            (future,) = self._admin.describe_configs([resource], request_timeout=left_s).values()
            return {setting: entry.value for setting, entry in future.result().items()}

        return self._persist(f"read the settings of topic {name!r}", ask)

    def _make(self, topic: str, partitions: int) -> None:
        name, config = self._settings.name_of(topic), dict(self._settings.topic)
        if topic in OUTPUTS:
            config.setdefault("max.message.bytes", str(_OUTPUT_BYTES))
        config |= {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"}

        def ask(left_s: float) -> None:
            new = NewTopic(
                name, num_partitions=partitions, replication_factor=self._settings.replication, config=config
            )
            (future,) = self._admin.create_topics([new], request_timeout=left_s, operation_timeout=left_s).values()
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was first
                    raise

        self._persist(f"create topic {name!r}", ask)

    def _await(self, topic: str) -> int:
        """A topic that was just made is not known everywhere at once."""
        deadline_s = time.monotonic() + self._settings.timeout_s
        while True:
            try:
                return self.partitions(topic)
            except NoTopic:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(_PAUSE_S)

"""What only a real broker shows: its restarts, retention, transactions, rights, and topics and records of others."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from pipeline.logs.kafka import consuming
from pipeline.logs.kafka.kafka_log import KafkaLog
from pipeline.logs.log import SAMPLES, Entry, LogError, Record, TooLarge
from pipeline.logs.ordered import OrderedReader
from pipeline.serving.launch import free_ports
from pipeline.streaming.outputs import read_all
from tests.cluster.broker import PASSWORD, USER, Broker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
PATIENCE_S = 250  # nothing rests on it
_numbers = itertools.count()


@pytest.fixture
def prefix() -> str:
    return f"kafka{next(_numbers)}"


@pytest.fixture
def log(kafka_broker: Broker, prefix: str) -> Iterator[KafkaLog]:
    log = KafkaLog(kafka_broker.url(prefix))
    log.create("t", 1)
    yield log
    log.close()


@pytest.fixture
def admin(kafka_broker: Broker) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka_broker.address})


def make_topic(admin: AdminClient, name: str, config: dict[str, str]) -> None:
    config = {"message.timestamp.type": "LogAppendTime", **config}
    (future,) = admin.create_topics([NewTopic(name, 1, 1, config=config)]).values()
    future.result(PATIENCE_S)
    eventually(lambda: name in admin.list_topics(timeout=PATIENCE_S).topics)


def payloads(records: Sequence[Record]) -> list[bytes]:
    return [record.payload for record in records]


def numbered(first: int, end: int) -> list[Entry]:
    return [Entry("k", b"%d" % n) for n in range(first, end)]


def eventually(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.05)


# Topics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"message.timestamp.type": "CreateTime"}, "expected message.timestamp.type=LogAppendTime, found CreateTime"),
        ({"cleanup.policy": "compact"}, "expected cleanup.policy=delete, found compact"),
        ({"max.message.bytes": "1000"}, "expected max.message.bytes of .*, found 1000"),
    ],
)
def test_a_topic_that_the_promises_cannot_rest_on_is_refused(
    log: KafkaLog, admin: AdminClient, prefix: str, config: dict[str, str], message: str
) -> None:
    make_topic(admin, f"{prefix}.theirs", config)
    for act in (
        lambda: log.partitions("theirs"),
        lambda: log.create("theirs", 1),
        lambda: log.read("theirs", 0, 0, 1),
        lambda: log.append("theirs", [Entry("k", b"1")]),
    ):
        with pytest.raises(LogError, match=f"topic '{prefix}.theirs' at kafka://.*{message}"):
            act()


def test_a_topic_that_was_altered_later_is_noticed_at_its_first_record(
    log: KafkaLog, admin: AdminClient, prefix: str, kafka_broker: Broker
) -> None:
    make_topic(admin, f"{prefix}.theirs", {"message.timestamp.type": "CreateTime"})
    _produce(kafka_broker, f"{prefix}.theirs", [(b"k", b"1")])
    _alter(admin, f"{prefix}.theirs", "message.timestamp.type", "LogAppendTime")
    with pytest.raises(LogError, match=r"offset 0: expected a record stamped by the log .*, found CreateTime"):
        log.read("theirs", 0, 0, 1)


def test_topics_are_made_with_what_the_url_says_and_room_for_outputs(
    kafka_broker: Broker, prefix: str, admin: AdminClient
) -> None:
    log = KafkaLog(kafka_broker.url(prefix, "timeout_s=200&topic.retention.ms=123456&topic.replication.factor=1"))
    log.create(SAMPLES, 2)
    log.close()
    found = _config(admin, f"{prefix}.{SAMPLES}")
    assert (found["retention.ms"], found["message.timestamp.type"]) == ("123456", "LogAppendTime")
    assert int(found["max.message.bytes"]) > 10_000_000


def test_a_setting_that_the_cluster_refuses(kafka_broker: Broker, prefix: str) -> None:
    log = KafkaLog(kafka_broker.url(prefix, "topic.retention.ms=long"))
    with pytest.raises(LogError, match=f"cannot create topic '{prefix}.t': .*retention.ms"):
        log.create("t", 1)
    log.close()


# Records ------------------------------------------------------------------------------------------------------------


def test_keys_go_where_javas_default_partitioner_puts_them(log: KafkaLog) -> None:
    """Hashes of Kafka's own UtilsTest, testMurmur2."""
    hashes = {
        "21": -973932308,
        "foobar": -790332482,
        "a-little-bit-long-string": -985981536,
        "a-little-bit-longer-string": -1486304829,
        "abc": 479470107,
    }
    log.create("wide", 7)
    log.append("wide", [Entry(key, b"") for key in hashes])
    found = {record.key: record.partition for record in read_all(log, "wide")}
    assert found == {key: (number & 0x7FFFFFFF) % 7 for key, number in hashes.items()}


def test_a_record_says_which_schema_it_has(log: KafkaLog, kafka_broker: Broker, prefix: str) -> None:
    log.append("t", [Entry("k", b"1")])
    consumer = Consumer({"bootstrap.servers": kafka_broker.address, "group.id": "x"})
    consumer.assign([TopicPartition(f"{prefix}.t", 0, 0)])
    message = consumer.poll(PATIENCE_S)
    consumer.close()
    assert message is not None
    assert message.headers() == [("schema-version", b"1")]


def test_records_of_other_producers_may_be_anything(log: KafkaLog, kafka_broker: Broker, prefix: str) -> None:
    _produce(kafka_broker, f"{prefix}.t", [(None, b"1"), (b"\xff\x00", b"2"), (b"k", None)])
    found = [(record.key, record.payload) for record in log.read("t", 0, 0, 10)]
    assert found == [("", b"1"), ("\\xff\x00", b"2"), ("k", b"")]


def test_the_log_gives_the_stamps(log: KafkaLog) -> None:
    before_ms = time.time_ns() // 1_000_000
    log.append("t", numbered(0, 3))
    after_ms = time.time_ns() // 1_000_000
    assert all(before_ms <= record.appended_at_ms <= after_ms for record in log.read("t", 0, 0, 10))
    with pytest.raises(LogError, match="takes no stamps"):
        log.append("t", [Entry("k", b"4"), Entry("k", b"5", before_ms)])
    assert log.end_offset("t", 0) == 3


def test_a_record_that_is_too_large_is_refused_and_named_and_the_others_are_taken(log: KafkaLog) -> None:
    noise = bytes(n * n % 251 for n in range(1_500_000))
    log.create("small", 1)
    large = random_bytes(2_000_000)
    with pytest.raises(TooLarge, match=r"1 of 4 records\): larger.*raise its max\.message\.bytes") as refused:
        log.append("small", [Entry("k", b"1"), Entry("k", large), Entry("k", b"2"), Entry("k", b"3")])
    assert refused.value.places == {1}
    log.append("small", [Entry("k", noise[:1_000])])
    assert payloads(log.read("small", 0, 0, 10)) == [b"1", b"2", b"3", noise[:1_000]]


def test_an_output_may_be_larger_than_an_event(log: KafkaLog) -> None:
    large = random_bytes(8_000_000)
    log.create(SAMPLES, 1)
    log.append(SAMPLES, [Entry("k", b"1"), Entry("k", large), Entry("k", b"2")])
    assert payloads(log.read(SAMPLES, 0, 0, 10)) == [b"1", large, b"2"]


def test_a_partition_that_nobody_reads_does_not_fill_the_memory(log: KafkaLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "_HELD_RECORDS", 50)
    monkeypatch.setattr(consuming, "_AT_ONCE", 100)
    log.create("other", 1)
    for topic in ("t", "other"):
        log.append(topic, numbered(0, 1_000))
    got: dict[str, list[bytes]] = {"t": [], "other": []}
    while any(len(found) < 1_000 for found in got.values()):
        for topic, steps in (("t", 7), ("other", 1)):
            for _ in range(steps):
                got[topic] += payloads(log.read(topic, 0, len(got[topic]), 37))
                held = [len(cursor.held) for cursor in log._consuming._cursors.values()]
                assert max(held) <= 50 + 2 * 100
    assert got["t"] == got["other"] == [b"%d" % n for n in range(1_000)]


# Retention and transactions -----------------------------------------------------------------------------------------


def test_an_offset_that_was_deleted_is_an_error_that_names_both(
    log: KafkaLog, admin: AdminClient, prefix: str, kafka_broker: Broker
) -> None:
    log.append("t", numbered(0, 10))
    assert len(log.read("t", 0, 0, 3)) == 3
    (future,) = admin.delete_records([TopicPartition(f"{prefix}.t", 0, 6)]).values()
    future.result(PATIENCE_S)
    fresh = KafkaLog(kafka_broker.url(prefix))
    with pytest.raises(LogError, match="offset 2 was deleted: the log starts at 6"):
        fresh.read("t", 0, 2, 5)
    assert fresh.start_offset("t", 0) == 6
    assert payloads(fresh.read("t", 0, 6, 10)) == [b"6", b"7", b"8", b"9"]
    assert payloads(OrderedReader(fresh, "t", None, _now_ms, 0).poll(10)) == [b"6", b"7", b"8", b"9"]
    fresh.close()


def test_a_deletion_under_a_reader_is_an_error_too(log: KafkaLog, admin: AdminClient, prefix: str) -> None:
    """A reader that knows of more to come does not ask again: it is the fetch that is refused."""
    log.append("t", numbered(0, 10))
    cursor = log._consuming._cursor(f"{prefix}.t", 0, 2)
    log._consuming._look(cursor)
    (future,) = admin.delete_records([TopicPartition(f"{prefix}.t", 0, 6)]).values()
    future.result(PATIENCE_S)
    with pytest.raises(LogError, match="offset 2 was deleted: the log starts at 6"):
        log.read("t", 0, 2, 5)


def test_marks_of_transactions_and_what_was_aborted_are_gaps(log: KafkaLog, kafka_broker: Broker, prefix: str) -> None:
    producer = _transactional(kafka_broker)
    for number, commit in ((1, True), (2, False), (3, True)):
        _transact(producer, f"{prefix}.t", [b"%d" % number], commit=commit)
    reader = OrderedReader(log, "t", None, _now_ms, 10)
    eventually(lambda: log.end_offset("t", 0) == 6)  # three records, three marks
    records = reader.poll(10)
    assert [(r.offset, r.payload) for r in records] == [(0, b"1"), (4, b"3")]
    assert reader.poll(10) == []
    assert reader.caught_up()
    assert reader.positions == {0: 6}
    assert payloads(list(read_all(log, "t"))) == [b"1", b"3"]
    assert list(read_all(log, "t", {0: 5})) == []


def test_an_open_transaction_holds_the_watermark(log: KafkaLog, kafka_broker: Broker, prefix: str) -> None:
    """Its records have their stamps already, and will be seen: the partition is not idle."""
    log.append("t", [Entry("k", b"0")])
    producer = _transactional(kafka_broker)
    producer.begin_transaction()
    producer.produce(f"{prefix}.t", b"1", b"k")
    producer.flush(PATIENCE_S)
    reader = OrderedReader(log, "t", None, lambda: _now_ms() + 1_000_000, 0)
    assert payloads(reader.poll(10)) == [b"0"]
    assert (log.end_offset("t", 0), reader.caught_up()) == (2, False)
    assert payloads(list(read_all(log, "t"))) == [b"0"]
    assert reader.low_stamp_ms <= _now_ms()
    producer.commit_transaction(PATIENCE_S)
    eventually(lambda: payloads(reader.poll(10)) == [b"1"])
    eventually(lambda: reader.poll(10) == [] and reader.caught_up())
    assert reader.behind == 0
    assert reader.low_stamp_ms > _now_ms()


# Brokers that end, and are not there --------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_kills_of_the_broker_and_readers_go_on(kafka_jars: Path, tmp_path: Path) -> None:
    broker = Broker(kafka_jars, tmp_path)
    acknowledged: list[int] = []
    stop = threading.Event()

    def write() -> None:
        mine, number = KafkaLog(url), 0
        while not stop.is_set():
            try:
                mine.append("t", numbered(number, number + 10))
            except LogError:
                continue  # some of them may be there; they are appended again
            acknowledged.extend(range(number, number + 10))
            number += 10
        mine.close()

    try:
        broker.start()
        url = broker.url("live")
        log = KafkaLog(url)
        log.create("t", 1)
        log.create("idle", 1)
        idle, reader = (OrderedReader(log, topic, None, _now_ms, 60_000) for topic in ("idle", "t"))
        got: list[Record] = []
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for kill in range(3):
                enough = len(acknowledged) + 500
                while len(acknowledged) < enough or len(got) < enough:
                    got += reader.poll(100)
                if kill < 2:
                    broker.kill()
                    broker.launch()  # readers and the writer wait for it
                    idle.poll(10)
                    assert log.start_offset("idle", 0) == 0
        finally:
            stop.set()
            writer.join(PATIENCE_S)
        eventually(lambda: (got.extend(reader.poll(1_000)), reader.caught_up())[1])
        log.close()
    finally:
        broker.kill()
    numbers = [int(record.payload) for record in got]
    assert sorted(set(numbers)) == sorted(set(numbers) | set(acknowledged))
    assert [record.offset for record in got] == list(range(len(got)))
    firsts = list(dict.fromkeys(numbers))
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("act", ["partitions", "create"])
def test_a_broker_that_is_not_there_is_an_error_within_the_time_allowed(act: str) -> None:
    (port,) = free_ports(1)
    log = KafkaLog(f"kafka://127.0.0.1:{port}/x?timeout_s=10")
    with pytest.raises(LogError, match=rf"kafka://127.0.0.1:{port}/x: cannot .*no answer within 10 s.*refused"):
        log.partitions("t") if act == "partitions" else log.create("t", 1)
    log.close()


def test_a_broker_that_went_away_is_an_error_for_readers_and_writers(kafka_jars: Path, tmp_path: Path) -> None:
    broker, ends = Broker(kafka_jars, tmp_path), list[int]()

    def in_time(act: Callable[[], object]) -> bool:
        try:
            act()
        except LogError:
            return False
        return True

    try:
        broker.start()
        log = KafkaLog(broker.url("gone", "timeout_s=10"))
        eventually(lambda: in_time(lambda: log.create("t", 1)))
        eventually(lambda: in_time(lambda: log.append("t", numbered(0, 5))))
        eventually(lambda: in_time(lambda: log.read("t", 0, 0, 2)))
        eventually(lambda: in_time(lambda: ends.append(log.end_offset("t", 0))))
    finally:
        broker.kill()
    for act in (
        lambda: log.append("t", numbered(5, 6)),
        lambda: log.end_offsets("t"),
        lambda: log.start_offset("t", 0),
        lambda: log.read("t", 0, ends[-1], 10),
    ):
        with pytest.raises(LogError, match="no answer within 10 s"):
            act()
    log.close()


# Rights -------------------------------------------------------------------------------------------------------------

RIGHTS = (  # those that docs/operations.md lists for a process that reads, writes and makes topics
    AclOperation.DESCRIBE,
    AclOperation.DESCRIBE_CONFIGS,
    AclOperation.CREATE,
    AclOperation.READ,
    AclOperation.WRITE,
)


@pytest.fixture
def secure(kafka_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL over TLS and SASL; the password is in the environment."""
    monkeypatch.setenv("PAGETURN_KAFKA_SASL_PASSWORD", PASSWORD)
    query = f"security.protocol=SASL_SSL&sasl.mechanism=PLAIN&sasl.username={USER}&timeout_s=200"
    return f"kafka://{kafka_broker.secure_address}/{prefix}?{query}&ssl.ca.location={kafka_broker.certificate}"


def grant(admin: AdminClient, prefix: str, operations: Sequence[AclOperation]) -> None:
    pattern = (ResourceType.TOPIC, f"{prefix}.", ResourcePatternType.PREFIXED, f"User:{USER}", "*")
    bindings = [AclBinding(*pattern, operation, AclPermissionType.ALLOW) for operation in operations]
    for future in admin.create_acls(bindings).values():
        future.result(PATIENCE_S)


def test_tls_sasl_and_the_rights_of_the_manual_are_enough(secure: str, admin: AdminClient, prefix: str) -> None:
    grant(admin, prefix, RIGHTS)
    log = KafkaLog(secure)
    log.create("t", 2)
    log.append("t", [Entry(f"k{n}", b"%d" % n) for n in range(20)])
    reader = OrderedReader(log, "t", None, _now_ms, 0)
    got = []
    eventually(lambda: (got.extend(reader.poll(10)), reader.caught_up())[1])
    assert sorted(map(int, payloads(got))) == list(range(20))
    log.close()


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: right.name)
def test_each_of_these_rights_is_needed_and_its_want_is_told(
    secure: str, admin: AdminClient, prefix: str, right: AclOperation
) -> None:
    implying = {AclOperation.READ, AclOperation.WRITE}  # DESCRIBE comes with either
    others = [o for o in RIGHTS if o != right and not (right == AclOperation.DESCRIBE and o in implying)]
    grant(admin, prefix, others)
    log = KafkaLog(secure)

    def use() -> None:
        log.create("t", 1)
        log.append("t", [Entry("k", b"1")])
        log.read("t", 0, 0, 1)

    with pytest.raises(LogError, match=r"docs/operations\.md") as caught:
        use()
    assert PASSWORD not in str(caught.value)
    log.close()


def test_a_wrong_password_is_told_and_not_shown(secure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGETURN_KAFKA_SASL_PASSWORD", "wrong-secret")
    log = KafkaLog(secure.replace("timeout_s=200", "timeout_s=20"))
    with pytest.raises(LogError, match=r"credentials right.*[Aa]uthentication") as caught:
        log.partitions("t")
    assert "wrong-secret" not in str(caught.value)
    log.close()


def test_a_certificate_that_is_not_trusted(secure: str, kafka_broker: Broker) -> None:
    url = secure.replace(f"&ssl.ca.location={kafka_broker.certificate}", "")
    log = KafkaLog(url.replace("timeout_s=200", "timeout_s=20"))
    with pytest.raises(LogError, match="certificate"):
        log.partitions("t")
    log.close()


def test_a_setting_that_the_client_refuses(kafka_broker: Broker) -> None:
    log = KafkaLog(kafka_broker.url("x", "security.protocol=carrier-pigeon"))
    with pytest.raises(LogError, match=r"settings that the Kafka client refuses: .*security\.protocol"):
        log.partitions("t")


# Helpers ------------------------------------------------------------------------------------------------------------


def random_bytes(size: int) -> bytes:
    import random

    return random.Random(1).randbytes(size)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _produce(broker: Broker, name: str, records: Sequence[tuple[bytes | None, bytes | None]]) -> None:
    producer = Producer({"bootstrap.servers": broker.address})
    for key, value in records:
        producer.produce(name, value, key, partition=0)
    assert producer.flush(PATIENCE_S) == 0


def _transactional(broker: Broker) -> Producer:
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": f"test-{next(_numbers)}"})
    producer.init_transactions(PATIENCE_S)
    return producer


def _transact(producer: Producer, name: str, values: Sequence[bytes], *, commit: bool) -> None:
    producer.begin_transaction()
    for value in values:
        producer.produce(name, value, b"k")
    producer.flush(PATIENCE_S)
    if commit:
        producer.commit_transaction(PATIENCE_S)
    else:
        producer.abort_transaction(PATIENCE_S)


def _config(admin: AdminClient, name: str) -> dict[str, str]:
    from confluent_kafka.admin import ConfigResource

    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name)]).values()
    return {key: entry.value for key, entry in future.result(PATIENCE_S).items()}


def _alter(admin: AdminClient, name: str, key: str, value: str) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    (future,) = admin.incremental_alter_configs([resource]).values()
    future.result(PATIENCE_S)
    eventually(lambda: _config(admin, name)[key] == value)

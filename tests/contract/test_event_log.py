"""What every event log promises. An engine joins the suite by adding its fixture to LOGS."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.logs.files import FileLog
from pipeline.logs.kafka.kafka_log import KafkaLog
from pipeline.logs.log import Entry, EventLog, LogError, NoTopic, Record, has_topic
from tests.cluster.broker import Broker

LOGS = ["file_log", pytest.param("kafka_log", marks=pytest.mark.cluster)]
STAMPED_BY_PRODUCERS = ["file_log"]
_numbers = itertools.count()

OpenLog = Callable[[], EventLog]


@pytest.fixture
def file_log(tmp_path: Path) -> Iterator[OpenLog]:
    """Opens the same log again and again, as several processes would."""
    opened: list[FileLog] = []

    def open_() -> EventLog:
        opened.append(FileLog(tmp_path / "log", segment_bytes=200))
        return opened[-1]

    yield open_
    for log in opened:
        log.close()


@pytest.fixture
def kafka_log(kafka_broker: Broker) -> Iterator[OpenLog]:
    url, opened = kafka_broker.url(f"contract{next(_numbers)}"), list[KafkaLog]()

    def open_() -> EventLog:
        opened.append(KafkaLog(url))
        return opened[-1]

    yield open_
    for log in opened:
        log.close()


@pytest.fixture(params=LOGS)
def open_log(request: pytest.FixtureRequest) -> OpenLog:
    return request.getfixturevalue(request.param)


@pytest.fixture
def log(open_log: OpenLog) -> EventLog:
    log = open_log()
    log.create("t", 3)
    return log


def payloads(records: Sequence[Record]) -> list[bytes]:
    return [record.payload for record in records]


def everything(log: EventLog, topic: str = "t") -> list[Record]:
    return [record for p in range(log.partitions(topic)) for record in log.read(topic, p, 0, 10_000)]


def test_what_was_appended_is_read_back(log: EventLog) -> None:
    entries = [Entry(f"k{i}", b'{"n": %d}' % i) for i in range(50)]
    log.append("t", entries)
    assert sorted((r.key, r.payload) for r in everything(log)) == sorted((e.key, e.payload) for e in entries)


def test_offsets_are_ordinals_and_stamps_never_decrease(log: EventLog) -> None:
    for i in range(30):
        log.append("t", [Entry(f"k{i}", b"1"), Entry(f"k{i + 1}", b"2")])
    for partition in range(3):
        records = log.read("t", partition, 0, 1_000)
        assert [r.offset for r in records] == list(range(len(records)))
        assert [r.partition for r in records] == [partition] * len(records)
        stamps = [r.appended_at_ms for r in records]
        assert stamps == sorted(stamps)
        assert log.end_offset("t", partition) == len(records)


def test_a_key_stays_in_its_partition_in_order(log: EventLog) -> None:
    log.append("t", [Entry(f"k{i % 5}", b"%d" % i) for i in range(100)])
    by_key: dict[str, list[Record]] = {}
    for record in everything(log):
        by_key.setdefault(record.key, []).append(record)
    for key, records in by_key.items():
        assert len({r.partition for r in records}) == 1
        assert payloads(records) == [b"%d" % i for i in range(100) if f"k{i % 5}" == key]


def test_reading_from_any_offset_with_any_limit(log: EventLog) -> None:
    log.append("t", [Entry("k", b"%d" % i) for i in range(60)])
    (partition,) = {r.partition for r in everything(log)}
    whole = log.read("t", partition, 0, 1_000)
    for offset in range(0, 61, 7):
        for limit in (1, 2, 13, 1_000):
            assert log.read("t", partition, offset, limit) == whole[offset : offset + limit]


def test_two_readers_do_not_disturb_each_other(log: EventLog) -> None:
    log.append("t", [Entry("k", b"%d" % i) for i in range(40)])
    (partition,) = {r.partition for r in everything(log)}
    seen: tuple[list[bytes], list[bytes]] = [], []
    for step in range(40):
        seen[0].extend(payloads(log.read("t", partition, step, 1)))
        seen[1].extend(payloads(log.read("t", partition, 39 - step, 1)))
    assert seen[0] == seen[1][::-1] == [b"%d" % i for i in range(40)]


def test_reading_at_the_end_gives_nothing_and_then_what_comes(log: EventLog, open_log: OpenLog) -> None:
    reader = open_log()
    assert [reader.read("t", p, 0, 10) for p in range(3)] == [[], [], []]
    for i in range(20):
        log.append("t", [Entry("k", b"%d" % i)])
        ends = {p: reader.end_offset("t", p) for p in range(3)}
        (partition,) = (p for p, end in ends.items() if end)
        assert payloads(reader.read("t", partition, i, 10)) == [b"%d" % i]
        assert reader.read("t", partition, i + 1, 10) == []


PAYLOADS = [
    b"",
    b" ",
    b"{}",
    b'{"a": [1, 2.50, 1e5, "x"], "b": null}',
    b' {"a":1}',
    b'{"a":1}\n',
    b'{"a":\n1}',
    b'{"a":1}\r',
    b'{"a":1} trailing',
    b'{"a":1,"a":2}',
    '{"a":"é 你"}'.encode(),
    b'"\\ud83d\\ude00"',
    b'"\\ud800"',
    b'{"a":NaN}',
    b"1e999",
    b"9" * 400,
    b"\x00\xff\xfe",
    b'"\xff"',
    b"not json",
    b"\n\n\n",
    b"[" * 900 + b"]" * 900,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"at":1,"key":"k","value":{}}',
    b'"' + b"x" * 600_000 + b'"',
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: repr(p[:20]))
def test_any_bytes_come_back_exactly(open_log: OpenLog, log: EventLog, payload: bytes) -> None:
    log.append("t", [Entry("before", b"1"), Entry("k", payload), Entry("after", b"2")])
    for reader in (log, open_log()):
        assert sorted(payloads(everything(reader))) == sorted([b"1", payload, b"2"])


@pytest.mark.parametrize("key", ["", "k", 'quote"and\\slash', "line\nbreak", "é你😀", "x" * 10_000])
def test_any_key_comes_back_exactly(log: EventLog, key: str) -> None:
    log.append("t", [Entry(key, b"1")])
    assert [r.key for r in everything(log)] == [key]


stamped_by_producers = pytest.mark.parametrize("open_log", STAMPED_BY_PRODUCERS, indirect=True)


@stamped_by_producers
def test_an_importer_gives_the_stamps(log: EventLog) -> None:
    log.append("t", [Entry("k", b"1", 5), Entry("k", b"2", 5), Entry("k", b"3", 9)])
    assert [r.appended_at_ms for r in everything(log)] == [5, 5, 9]


@stamped_by_producers
def test_a_stamp_behind_the_last_one_is_refused_naming_both(log: EventLog) -> None:
    log.append("t", [Entry("k", b"1", 100)])
    with pytest.raises(LogError, match=r"stamp 99 .* 100"):
        log.append("t", [Entry("k", b"2", 100), Entry("k", b"3", 99)])
    assert payloads(everything(log)) == [b"1"]


@stamped_by_producers
def test_the_clock_does_not_go_behind_an_importers_stamp(log: EventLog) -> None:
    future_ms = 10**14
    log.append("t", [Entry("k", b"1", future_ms)])
    log.append("t", [Entry("k", b"2")])
    assert [r.appended_at_ms for r in everything(log)] == [future_ms, future_ms]


def test_many_writers_at_once_lose_nothing(open_log: OpenLog, log: EventLog) -> None:
    def write(writer: int) -> None:
        mine = open_log()
        for i in range(40):
            mine.append("t", [Entry(f"k{i}", b'"%d/%d"' % (writer, i))])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(payloads(everything(log))) == sorted(b'"%d/%d"' % (w, i) for w in range(4) for i in range(40))
    for partition in range(3):
        stamps = [r.appended_at_ms for r in log.read("t", partition, 0, 1_000)]
        assert stamps == sorted(stamps)


def test_creating_a_topic_again_is_harmless(open_log: OpenLog, log: EventLog) -> None:
    log.append("t", [Entry("k", b"1")])
    open_log().create("t", 3)
    assert payloads(everything(log)) == [b"1"]


def test_creating_a_topic_with_another_number_of_partitions_is_refused(log: EventLog) -> None:
    with pytest.raises(LogError, match="3 partitions, not 4"):
        log.create("t", 4)


def test_a_topic_that_is_not_there(log: EventLog) -> None:
    for act in (
        lambda: log.partitions("nowhere"),
        lambda: log.append("nowhere", [Entry("k", b"1")]),
        lambda: log.read("nowhere", 0, 0, 1),
        lambda: log.end_offset("nowhere", 0),
    ):
        with pytest.raises(NoTopic, match="no topic 'nowhere'"):
            act()
    assert not has_topic(log, "nowhere")  # and asking did not make it


def test_a_partition_that_is_not_there(log: EventLog) -> None:
    with pytest.raises(LogError, match="no partition 3"):
        log.read("t", 3, 0, 1)


def test_an_offset_behind_the_end_is_an_error_not_silence(log: EventLog) -> None:
    log.append("t", [Entry("k", b"1")])
    (partition,) = {r.partition for r in everything(log)}
    with pytest.raises(LogError, match="offset 5 is past the end, 1"):
        log.read("t", partition, 5, 1)


def test_a_log_starts_at_0_and_has_no_gaps_while_nothing_was_deleted(log: EventLog) -> None:
    assert [log.start_offset("t", p) for p in range(3)] == [0, 0, 0]
    log.append("t", [Entry(f"k{i}", b"1") for i in range(30)])
    assert [log.start_offset("t", p) for p in range(3)] == [0, 0, 0]
    for partition, end in log.end_offsets("t").items():
        assert log.read("t", partition, end, 10) == []
        assert log.past_gap("t", partition, end) == end


def test_all_ends_at_once_are_those_asked_one_by_one(log: EventLog) -> None:
    log.append("t", [Entry(f"k{i}", b"1") for i in range(30)])
    assert log.end_offsets("t") == {p: log.end_offset("t", p) for p in range(3)}
    assert sum(log.end_offsets("t").values()) == 30


@pytest.mark.parametrize("name", ["", "../up", "UPPER", "a/b", ".hidden"])
def test_names_that_cannot_be_topics(log: EventLog, name: str) -> None:
    with pytest.raises(LogError, match="cannot create topic"):
        log.create(name, 1)

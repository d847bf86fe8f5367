"""Stream, archiver and trainer make of a log on Kafka what they make of the same log in files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.schema import (
    ActionDimension,
    Attribution,
    Bucket,
    Buckets,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Reward,
    Stream,
)
from pipeline.events import encode
from pipeline.learning.trainer import Pace, train
from pipeline.logs.kafka.kafka_log import KafkaLog
from pipeline.logs.lines import encode_line
from pipeline.logs.log import EVENTS, OUTPUTS, Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.records import Action, DecidedBy, Decision, Feedback, FeedbackKind, Impression, Item, State
from pipeline.streaming.archiver import archive
from pipeline.streaming.counts import Counts
from pipeline.streaming.embedded import Limits
from pipeline.streaming.outputs import identity, read_all
from pipeline.streaming.run import run_stream
from tests.cluster.broker import Broker

pytestmark = pytest.mark.cluster

PARTITIONS = 3
SESSIONS = 150
CONFIG = FeatureConfig(
    schema_version=1,
    name="feed",
    kv_prefix="t",
    features=(Dense("x", "user.x"),),
    fusion=PayPlusAPhi(1.0),
    action=(ActionDimension("a", baseline=1.0, range=(0.0, 2.0)),),
    reward=Reward({"click": 1.0, "order": 5.0}),
    algorithm=Ddpg(0.5, tower=(8,), head=(8,), batch_size=16, replay=200, updates_per_transition=0.1, actor_after=20),
    policies=(Policy("base", "baseline"), Policy("p1", "learned")),
    buckets=Buckets("salt", (Bucket("all", "base", (0, 99)),)),
    stream=Stream(
        attribution=Attribution(click=480_000, order=480_000),  # Kafka's stamps are of now: some pages are over by then
        lateness=30_000,
        clock_skew=200,
        session_gap=900_000,
        max_pages=4,
        remember_closed=900_000,
    ),
)


def _session(rng: random.Random, session: str, time_ms: int) -> Iterator[tuple[int, bytes]]:
    """(time of sending, payload): in disorder, some twice, some late, some on no page."""

    def send(event: Impression | Feedback) -> Iterator[tuple[int, bytes]]:
        lag_ms = rng.randrange(900) if rng.random() > 0.05 else rng.randrange(5_000, 30_000)
        for _ in range(1 + (rng.random() < 0.05)):
            yield event.time_ms + lag_ms, encode(event)

    def answer(page: int, kind: FeedbackKind, at_ms: int) -> Feedback:
        name = f"{session}/{rng.random()}"
        return Feedback(1, name, f"{session}/{page}", f"u-{session}", session, at_ms, kind, "i1")

    for page in range(rng.randrange(1, 7)):
        policy, action = ("p1", rng.uniform(0, 2)) if rng.random() < 0.5 else ("base", 1.0)
        decided = DecidedBy.POLICY if policy == "p1" else DecidedBy.BASELINE
        decision = Decision(decided, policy, "all", actions=(Action("a", action),))
        items = tuple(Item(f"i{n}", 0.1 * n, 0.01 * n) for n in range(3))
        state = State(user={"x": rng.random()})
        yield from send(
            Impression(1, f"{session}/{page}", f"u-{session}", session, time_ms, page, items, state, decision)
        )
        for _ in range(rng.randrange(4)):
            kind = rng.choice([FeedbackKind.CLICK, FeedbackKind.ORDER])
            yield from send(answer(page, kind, time_ms + rng.randrange(3_300)))
        time_ms += rng.randrange(500, 9_000)
    if rng.random() < 0.3:
        yield from send(answer(page, FeedbackKind.LEAVE, time_ms))
    if rng.random() < 0.2:
        yield from send(answer(99, FeedbackKind.CLICK, time_ms))


def produce(log: EventLog, end_ms: int) -> int:
    """Events of sessions of the last minutes, in the order of sending. Returns how many."""
    rng = random.Random(7)
    sent = [(end_ms, b'{"not": "an event"}'), (end_ms, b"\xff\xfe")]
    for number in range(SESSIONS):
        sent += _session(rng, f"s{number:04d}", end_ms - rng.randrange(10_000, 700_000))
    sent.sort()
    for start in range(0, len(sent), 100):
        log.append(EVENTS, [Entry(f"agent-{rng.randrange(9)}", payload) for _, payload in sent[start : start + 100]])
    return len(sent)


def copy_to_files(log: EventLog, folder: Path) -> str:
    """The same records with the same stamps, partitions and offsets; each log would choose partitions of its own."""
    for partition in range(PARTITIONS):
        target = folder / EVENTS / f"partition-{partition:04d}"
        target.mkdir(parents=True)
        records = log.read(EVENTS, partition, 0, 10**6)
        assert [record.offset for record in records] == list(range(len(records)))
        lines = [encode_line(record.appended_at_ms, record.key, record.payload) for record in records]
        (target / f"{0:020d}.jsonl").write_bytes(b"".join(lines))
    return f"file://{folder}"


class Loop:
    """What all parts, run to the end on one log, have made."""

    def __init__(self, url: str, folder: Path, clock_ms: int) -> None:
        self._url, self._folder = url, folder
        for part in range(3):  # a few bundles at a time, as if it were stopped and started again
            stop, final = threading.Event(), part == 2
            self.counts = self._stream(stop, clock_ms, stop_early=not final)
        self.archived = archive(url, folder / "archive", until_idle=True, stop=threading.Event())
        pace = Pace(poll=50, checkpoint_every=64)
        self.progress = train(CONFIG, url, folder / "train", until_idle=True, clock_ms=lambda: clock_ms, pace=pace)

    def _stream(self, stop: threading.Event, clock_ms: int, *, stop_early: bool) -> Counts | None:
        calls = [0]

        def clock() -> int:
            calls[0] += 1
            if stop_early and calls[0] > 6:
                stop.set()
            return clock_ms

        limits = Limits(records_per_bundle=60, timers_per_bundle=40)
        return run_stream(
            CONFIG, self._url, self._folder / "stream", until_idle=True, stop=stop, clock_ms=clock, limits=limits
        )

    def outputs(self) -> dict[str, list[tuple[str | None, bytes]]]:
        """By topic, (id, payload) in the order of ids."""
        log = open_log(self._url)
        found = {t: sorted((identity(t, r.payload), r.payload) for r in read_all(log, t)) for t in OUTPUTS}
        log.close()
        return found

    def rows(self) -> dict[str, list[str]]:
        """Of the archive, by table; without where and when the log put a record."""
        found: dict[str, list[str]] = {}
        for path in sorted((self._folder / "archive").rglob("*.parquet")):
            table = path.relative_to(self._folder / "archive").parts[0]
            rows = pq.ParquetFile(path).read().to_pylist()
            found.setdefault(table, []).extend(repr(row) for row in rows)
        return {table: sorted(rows) for table, rows in found.items()}

    def metrics(self) -> bytes:
        """The trainer's losses, to the last bit: each topic of outputs has one partition, so one order."""
        return (self._folder / "train" / "metrics.jsonl").read_bytes()


def test_the_outputs_are_those_of_the_same_log_in_files(kafka_broker: Broker, tmp_path: Path) -> None:
    url = kafka_broker.url("loop")
    log = KafkaLog(url)
    log.create(EVENTS, PARTITIONS)
    start_ms = _now_ms()
    events = produce(log, start_ms)
    files = copy_to_files(log, tmp_path / "files")
    log.close()
    clock_ms = _now_ms() + 3_600_000  # an hour later: everything is over
    on_kafka = Loop(url, tmp_path / "on-kafka", clock_ms)
    on_files = Loop(files, tmp_path / "on-files", clock_ms)

    outputs = on_kafka.outputs()
    assert outputs == on_files.outputs()
    assert all(outputs.values()), {topic: len(found) for topic, found in outputs.items()}
    assert on_kafka.counts == on_files.counts
    counts = on_kafka.counts
    assert counts is not None
    assert counts.read == events
    assert counts.read == counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    assert on_kafka.rows() == on_files.rows()
    assert on_kafka.archived == on_files.archived
    assert on_kafka.progress == on_files.progress
    assert on_kafka.progress.ingested == counts.transitions
    assert on_kafka.metrics() == on_files.metrics() != b""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

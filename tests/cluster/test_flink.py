"""The stream on a real Flink gives what it gives anywhere else, whatever happens to Flink or the log on the way.

Against the embedded runner and against the plain reference of the tests, id by id and byte by byte.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog
from pipeline.logs.log import DEAD_LETTERS, DUPLICATES, EVENTS, LATE, OUTPUTS, TRANSITIONS, EventLog
from pipeline.logs.opening import open_log
from tests.cluster import feed
from tests.cluster.broker import Broker
from tests.cluster.flink import Cluster, Stream

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1_800)]
StartStream = Callable[..., Stream]
START_MS = 1_700_000_000_000
PARTITIONS = 4
PATIENCE_S = 900.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
def config() -> FeatureConfig:
    return parse_config(feed.CONFIG)


@pytest.fixture
def log_url(kafka_broker: Broker) -> str:
    return kafka_broker.url(f"flink-{next(_numbers)}")


@pytest.fixture
def log(log_url: str) -> Iterator[EventLog]:
    with closing(open_log(log_url)) as log:
        create(log)
        yield log


def create(log: EventLog) -> None:
    for topic in (EVENTS, *OUTPUTS):
        log.create(topic, PARTITIONS)


def check(config: FeatureConfig, log: EventLog, stream: Stream, folder: Path, flink: Cluster | None = None) -> int:
    """All outputs there, each id with one content, the right one; and every event accounted for.

    Returns how many transitions there are.
    """
    assert flink is None or flink.broken_promises() == [], "records came too late: nothing can be compared"
    expected = feed.by_reference(config, log)
    feed.await_all(log, expected, PATIENCE_S, stream.check_alive)
    found = feed.found(log)
    dead = found.pop(DEAD_LETTERS)
    assert {topic: found[topic] for topic in found} == {topic: expected[topic] for topic in found}
    assert all(len(found[topic]) > 0 for topic in (TRANSITIONS, LATE, DUPLICATES))
    embedded = feed.by_embedded_runner(config, log, folder)
    assert {**found, DEAD_LETTERS: dead} == embedded
    feed.check_nothing_lost(log, folder)
    return len(found[TRANSITIONS])


def until(reached: Callable[[], object], stream: Stream) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        stream.check_alive()
        assert time.monotonic() < deadline_s, stream.said()
        time.sleep(0.2)


def transitions(log: EventLog) -> int:
    return sum(log.end_offsets(TRANSITIONS).values())


def in_the_middle(log: EventLog, flink: Cluster, stream: Stream) -> int:
    """Until a checkpoint holds open sessions. Returns how many transitions were written by then."""
    until(lambda: transitions(log) > 100, stream)
    taken = flink.checkpoints()
    until(lambda: flink.checkpoints() > taken, stream)
    return transitions(log)


def test_inside_the_job_server(config: FeatureConfig, start_stream: StartStream, tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    create(log)
    log.append(EVENTS, feed.make(1, 2_000, START_MS, 4_000))
    stream = start_stream((tmp_path / "log").as_uri())
    check(config, log, stream, tmp_path)
    assert "stopped; nothing is kept" in stream.stop()


def test_a_long_log(
    config: FeatureConfig, log: EventLog, log_url: str, flink: Cluster, start_stream: StartStream, tmp_path: Path
) -> None:
    stream = start_stream(log_url, flink, parallelism=2)
    until(flink.is_running, stream)
    with feed.live(log, seed=2, events=150_000, span_ms=60_000) as await_last:
        until(lambda: flink.state_of_sessions() > 200_000, stream)  # some are open
        await_last()
    assert sum(log.end_offsets(EVENTS).values()) >= 100_000
    check(config, log, stream, tmp_path, flink)
    until(lambda: flink.state_of_sessions() < 40_000, stream)  # without any it is 23 kB: thousands left nothing


def test_a_task_manager_is_killed(
    config: FeatureConfig, log: EventLog, log_url: str, flink: Cluster, start_stream: StartStream, tmp_path: Path
) -> None:
    stream = start_stream(log_url, flink, parallelism=2)
    until(flink.is_running, stream)
    with feed.live(log, seed=3, events=20_000, span_ms=40_000) as await_last:
        before = in_the_middle(log, flink, stream)
        flink.replace_task_manager(0)
        flink.await_task_managers()
        await_last()
    assert check(config, log, stream, tmp_path, flink) > before
    assert "/checkpoints/" in flink.restored()


def test_the_broker_is_away_for_a_while(
    config: FeatureConfig,
    log: EventLog,
    kafka_broker: Broker,
    log_url: str,
    flink: Cluster,
    start_stream: StartStream,
    tmp_path: Path,
) -> None:
    stream = start_stream(log_url, flink, parallelism=2)
    until(flink.is_running, stream)
    with feed.live(log, seed=4, events=20_000, span_ms=40_000) as await_last:
        before = in_the_middle(log, flink, stream)
        kafka_broker.kill()
        try:
            time.sleep(20)
        finally:
            kafka_broker.start()
        await_last()
    assert check(config, log, stream, tmp_path, flink) > before


def test_a_job_is_stopped_with_a_savepoint_or_cancelled_and_goes_on(
    config: FeatureConfig, log: EventLog, log_url: str, flink: Cluster, start_stream: StartStream, tmp_path: Path
) -> None:
    stream = start_stream(log_url, flink, parallelism=2)
    until(flink.is_running, stream)
    with feed.live(log, seed=5, events=20_000, span_ms=40_000) as await_last:
        before = in_the_middle(log, flink, stream)
        assert "stopped; the next start goes on from file:" in stream.stop()
        stream = start_stream(log_url, flink, parallelism=2)
        until(flink.is_running, stream)
        assert "/savepoints/" in flink.restored()
        until(flink.checkpoints, stream)
        flink.cancel_jobs()
        assert "CANCELED" in stream.failure()
        stream = start_stream(log_url, flink, parallelism=2)
        until(flink.is_running, stream)
        assert "/checkpoints/" in flink.restored()
        await_last()
    assert check(config, log, stream, tmp_path, flink) > before

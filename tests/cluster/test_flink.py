"""The stream on a real Flink gives what it gives anywhere else, whatever happens to Flink or the log on the way.

Against the embedded runner and against the plain reference of the tests, id by id and byte by byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog
from pipeline.logs.log import DEAD_LETTERS, DUPLICATES, EVENTS, LATE, OUTPUTS, TRANSITIONS, EventLog
from tests.cluster import feed
from tests.cluster.flink import Cluster, Stream

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1_800)]
StartStream = Callable[..., Stream]
START_MS = 1_700_000_000_000
PARTITIONS = 4
PATIENCE_S = 900.0


@pytest.fixture(scope="module")
def config() -> FeatureConfig:
    return parse_config(feed.CONFIG)


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path / "log")


def url(tmp_path: Path) -> str:
    return (tmp_path / "log").as_uri()


def fill(log: EventLog, seed: int, events: int) -> None:
    log.create(EVENTS, PARTITIONS)
    for topic in OUTPUTS:
        log.create(topic, PARTITIONS)
    log.append(EVENTS, feed.make(seed, events, START_MS, events * 2))


def check(config: FeatureConfig, log: EventLog, stream: Stream, folder: Path) -> None:
    """All outputs there, each id with one content, the right one; and every event accounted for."""
    expected = feed.by_reference(config, log)
    feed.await_all(log, expected, PATIENCE_S, stream.check_alive)
    found = feed.found(log)
    dead = found.pop(DEAD_LETTERS)
    assert {topic: found[topic] for topic in found} == {topic: expected[topic] for topic in found}
    assert all(len(found[topic]) > 0 for topic in (TRANSITIONS, LATE, DUPLICATES))
    embedded = feed.by_embedded_runner(config, log, folder)
    assert {**found, DEAD_LETTERS: dead} == embedded
    feed.check_nothing_lost(log, folder)


def await_outputs(log: EventLog, count: int, stream: Stream) -> None:
    """Until there are some transitions, so that what comes next comes in the middle."""
    deadline_s = time.monotonic() + PATIENCE_S
    while sum(log.end_offsets(TRANSITIONS).values()) < count:
        stream.check_alive()
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_flink_inside_the_job_server(
    config: FeatureConfig, log: FileLog, start_stream: StartStream, tmp_path: Path
) -> None:
    fill(log, 1, 2_000)
    stream = start_stream(url(tmp_path))
    check(config, log, stream, tmp_path)
    assert "nothing is kept" in stream.stop()


def test_a_task_manager_is_killed(
    config: FeatureConfig, log: FileLog, flink: Cluster, start_stream: StartStream, tmp_path: Path
) -> None:
    fill(log, 2, 20_000)
    stream = start_stream(url(tmp_path), flink.address, parallelism=2)
    await_outputs(log, 500, stream)
    flink.kill_task_manager(0)
    flink.add_task_manager()
    check(config, log, stream, tmp_path)


def test_a_job_is_stopped_with_a_savepoint_and_goes_on(
    config: FeatureConfig, log: FileLog, flink: Cluster, start_stream: StartStream, tmp_path: Path
) -> None:
    fill(log, 3, 20_000)
    stream = start_stream(url(tmp_path), flink.address, parallelism=2)
    await_outputs(log, 500, stream)
    assert "savepoints" in stream.stop()
    stopped_at = sum(log.end_offsets(TRANSITIONS).values())
    assert stopped_at < len(feed.by_reference(config, log)[TRANSITIONS])
    stream = start_stream(url(tmp_path), flink.address, parallelism=1)  # and in another shape
    check(config, log, stream, tmp_path)
    assert "goes on from file:" in stream.said()

"""Runs the stream on an event log, from wherever it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, OUTPUTS, EventLog, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.logs.ordered import OrderedReader
from pipeline.streaming.counts import Counts, count
from pipeline.streaming.embedded import EmbeddedRunner, Limits
from pipeline.streaming.job import build
from pipeline.streaming.progress import Progress
from pipeline.streaming.sinks import Outbox, WriteToOutbox
from pipeline.streaming.snapshot import Snapshot, SnapshotFile
from pipeline.streaming.sources import LogSource, Poll
from pipeline.transitions.session import STATE_VERSION


def run_stream(
    config: FeatureConfig,
    log_url: str,
    state_dir: Path,
    *,
    until_idle: bool,
    partitions: int = 1,
    stop: threading.Event,
    clock_ms: Callable[[], int] = wall_clock_ms,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
) -> Counts | None:
    """Join the log's events until stopped; None then, since a stop must be quick.

    With `until_idle`, return once all events are read, the watermark is where the clock allows it to be, and no
    decision is due; then with the counts. `partitions` is for topics that are not there yet.
    """
    log = open_log(log_url)
    try:
        with exclusive(state_dir):
            _create_topics(log, partitions, until_idle)
            _run(config, log, SnapshotFile(state_dir), until_idle, stop, clock_ms, limits)
            return None if stop.is_set() else count(log, state_dir)
    finally:
        log.close()


def job_of(config: FeatureConfig) -> dict[str, Any]:
    """What the stream's state and outputs depend on: a snapshot serves no job that differs in any of it."""
    settings = msgspec.json.encode({"stream": config.stream, "reward": config.reward})  # as they come back
    return {"session state format": STATE_VERSION, **dict(_flat("", msgspec.json.decode(settings)))}


def _flat(prefix: str, value: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs = []
    for name, inner in value.items():
        pairs += _flat(f"{prefix}{name}.", inner) if isinstance(inner, dict) else [(prefix + name, inner)]
    return pairs


def _create_topics(log: EventLog, partitions: int, until_idle: bool) -> None:
    if until_idle:
        log.partitions(EVENTS)  # LogError: without it there is nothing to read, and nobody will come
    for topic in (EVENTS, *OUTPUTS):
        ensure_topic(log, topic, partitions)


def _run(
    config: FeatureConfig,
    log: EventLog,
    file: SnapshotFile,
    until_idle: bool,
    stop: threading.Event,
    clock_ms: Callable[[], int],
    limits: Limits,
) -> None:
    snapshot, job = file.load(), job_of(config)
    if snapshot is not None:
        file.check(snapshot, job)
    progress = snapshot.progress if snapshot else None
    reader = OrderedReader(log, EVENTS, progress and progress.positions, clock_ms, config.stream.clock_skew)
    outbox = Outbox(log, OUTPUTS, snapshot.sinks if snapshot else None)

    def save(progress: Progress) -> None:
        log.sync()  # the snapshot must not outlive the outputs it takes for written
        file.save(Snapshot(job, progress, outbox.positions()))

    runner = EmbeddedRunner(save, resume=progress, until_idle=until_idle, stop=stop, limits=limits)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    build(pipeline, Poll(LogSource(reader, config.stream.lateness)), beam.ParDo(WriteToOutbox(outbox)), config)
    pipeline.run().wait_until_finish()

"""Runs the stream on an event log, from wherever it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, OUTPUTS, EventLog, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.logs.ordered import OrderedReader
from pipeline.monitoring.catalogue import STREAM
from pipeline.monitoring.metrics import Metrics
from pipeline.streaming.counts import Counts, count
from pipeline.streaming.embedded import EmbeddedRunner, Limits
from pipeline.streaming.job import build
from pipeline.streaming.progress import Progress
from pipeline.streaming.shards import Shard
from pipeline.streaming.sinks import Outbox, WriteToOutbox
from pipeline.streaming.snapshot import Snapshot, SnapshotStore
from pipeline.streaming.sources import LogSource, Poll
from pipeline.transitions.rules import Choosing
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
    shard: Shard = Shard(),  # noqa: B008
    metrics: Metrics | None = None,
) -> Counts | None:
    """Join the log's events until stopped; None then, since a stop must be quick.

    With `until_idle`, return once all events are read, the watermark is where the clock allows it to be, and no
    decision is due; then with the counts (None from a shard: only all together can be counted). `partitions` is for
    topics that are not there yet.
    """
    home = shard.folder(state_dir)
    with closing(open_log(log_url)) as log, exclusive(home):
        _create_topics(log, partitions, until_idle)
        follow(
            config,
            log,
            home,
            until_idle=until_idle,
            stop=stop,
            clock_ms=clock_ms,
            limits=limits,
            shard=shard,
            metrics=metrics,
        )
        return None if stop.is_set() or shard.count > 1 else count(log, state_dir)


def follow(
    config: FeatureConfig,
    log: EventLog,
    home: Path,
    *,
    until_idle: bool,
    stop: threading.Event,
    clock_ms: Callable[[], int] = wall_clock_ms,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    shard: Shard = Shard(),  # noqa: B008
    metrics: Metrics | None = None,
) -> None:
    """The same on a log whose topics are there, in a folder that nobody else has."""
    with closing(SnapshotStore(home)) as store:
        _submit(
            config, log, store, shard, until_idle, stop, clock_ms, limits, metrics or Metrics(STREAM)
        ).wait_until_finish()


def job_of(config: FeatureConfig) -> dict[str, Any]:
    """What the stream's state and outputs depend on: a snapshot serves no job that differs in any of it.

    Also what only decides which events can be read (`max_ahead`, `max_event_bytes`): the outputs are one function of
    the log. A stream that has lost its state makes them again and finds each as it was, and a back-fill gives what the
    live stream gave; neither would hold of outputs that two settings have made.
    """
    what: dict[str, Any] = {"stream": config.stream, "reward": config.reward}
    if (choosing := Choosing.of(config)) is not None:
        what["choosing"] = choosing
    settings = msgspec.json.encode(what)  # as they come back
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


def _submit(
    config: FeatureConfig,
    log: EventLog,
    store: SnapshotStore,
    shard: Shard,
    until_idle: bool,
    stop: threading.Event,
    clock_ms: Callable[[], int],
    limits: Limits,
    metrics: Metrics,
) -> PipelineResult:
    """Ready to run. What it goes on from, which is large, is let go of on return."""
    snapshot, job = store.load(), job_of(config)
    if snapshot is not None:
        store.check(snapshot, job)
    progress = snapshot.progress if snapshot else None
    reader = OrderedReader(log, EVENTS, progress and progress.positions, clock_ms, config.stream.clock_skew)
    whole = shard.count == 1
    source = LogSource(reader, config.stream.lateness, None if whole else shard.owns)
    outbox = Outbox(log, OUTPUTS, snapshot.sinks if snapshot else None, None if whole else shard.owns_session)

    def save(progress: Progress) -> None:
        began_s = time.monotonic()
        log.sync()  # the snapshot must not outlive the outputs it takes for written
        store.save(Snapshot(job, progress, outbox.positions()))
        metrics.observe("snapshot_seconds", time.monotonic() - began_s)
        _show(progress, outbox, metrics, clock_ms())

    runner = EmbeddedRunner(save, resume=progress, until_idle=until_idle, stop=stop, limits=limits)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    build(pipeline, Poll(source), beam.ParDo(WriteToOutbox(outbox)), config)
    return pipeline.run()


def _show(progress: Progress, outbox: Outbox, metrics: Metrics, now_ms: int) -> None:
    metrics.gauge("snapshot_timestamp_seconds", now_ms / 1000)
    metrics.gauge("watermark_timestamp_seconds", progress.watermark_ms / 1000)
    metrics.count_to("records_read", progress.read)
    for topic, total in outbox.appended.items():
        metrics.count_to("records_written", total, topic=topic)

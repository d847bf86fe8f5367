"""The stream's job over a range of the past: what it puts out is what the live job put out for that range.

It reads past both ends of the range (`reach.py` says how far) and leaves out what is filed under another time: a page
or transition under its page's time, an episode under its first page's, an event that was set aside, and a dead letter,
under its stamp. So ranges that adjoin each other give each output once.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions
from msgspec import Struct

from pipeline.config.schema import FeatureConfig
from pipeline.logs.log import (
    EPISODES,
    EVENTS,
    OUTPUTS,
    SAMPLES,
    TRANSITIONS,
    EventLog,
    LogError,
    Record,
    ensure_topic,
    has_topic,
)
from pipeline.streaming.bounded import Input
from pipeline.streaming.embedded import EmbeddedRunner, Limits
from pipeline.streaming.job import build
from pipeline.streaming.reach import Range, reach
from pipeline.streaming.sinks import Encoded, Outbox, WriteToOutbox
from pipeline.streaming.sources import Batch, Poll

_LOG = logging.getLogger(__name__)


class BackFill(NamedTuple):
    """What a back-fill did. Not `decided`: the input ends too early for some of the range to be final."""

    stamps: Range  # that it had to read
    read: int  # records
    outputs: Counter[str]  # by topic
    decided: bool


def backfill(
    config: FeatureConfig,
    source: Input,
    out: EventLog,
    pages: Range,
    *,
    stop: threading.Event,
    partitions: int = 1,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
) -> BackFill | None:
    """Write the range's outputs to a log of their own; None when stopped.

    One that was stopped is run again: what it wrote is not written twice.
    """
    if has_topic(out, EVENTS):
        message = "the outputs of a back-fill go to a log of their own; expected one without a topic 'events'"
        raise LogError(message)
    for topic in OUTPUTS:
        ensure_topic(out, topic, partitions)
    stamps = reach(config, pages, lambda low, high: _impressions(source, low, high), source.known)
    end_ms = min(stamps.to_ms, source.known.until_ms)
    _LOG.info("pages from %d to %d: reading what is stamped from %d to %d", *pages, stamps.from_ms, end_ms)
    if stamps.from_ms < source.known.first_ms and not source.whole:
        _LOG.warning("the input begins at %d, and no longer where the log began: what the range begins with may be "
                     "missing or differ", source.known.first_ms)  # fmt: skip
    records = _Stretch(source.records(stamps.from_ms, end_ms), end_ms, config.stream.lateness)
    outbox = RangeOutbox(out, pages)
    # no snapshots: what a stopped back-fill wrote is found in its outputs
    runner = EmbeddedRunner(None, until_idle=True, stop=stop, limits=limits)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    build(pipeline, Poll(records), beam.ParDo(WriteToOutbox(outbox)), config)
    pipeline.run().wait_until_finish()
    out.sync()
    return None if stop.is_set() else BackFill(stamps, records.read, outbox.filed, stamps.to_ms <= end_ms)


class _Stretch:
    """A polled source that ends."""

    positions: dict[int, int] = {}  # noqa: RUF012 (never read: there are no snapshots)

    def __init__(self, records: Iterator[Record], end_ms: int, lateness_ms: int) -> None:
        self._records, self._end_ms, self._lateness_ms = records, end_ms, lateness_ms
        self.read = 0

    def poll(self, limit: int) -> Batch:
        records = list(itertools.islice(self._records, limit))
        self.read += len(records)
        over = len(records) < limit
        low_ms = self._end_ms if over else records[-1].appended_at_ms
        return Batch(records, low_ms - self._lateness_ms, over)


class RangeOutbox(Outbox):
    """Takes only what is filed within the range."""

    def __init__(self, log: EventLog, pages: Range) -> None:
        super().__init__(log, OUTPUTS)
        self._pages = pages
        self.filed: Counter[str] = Counter()

    def add(self, output: Encoded) -> None:
        if self._pages.from_ms <= filed_ms(output.topic, output.payload) < self._pages.to_ms:
            self.filed[output.topic] += 1
            super().add(output)


# Times in records --------------------------------------------------------------------------------------------------


class _Timed(Struct):
    time_ms: int


class _Sample(Struct):
    impression: _Timed


class _Steps(Struct):
    steps: list[_Timed]


class _SetAside(Struct):
    appended_at_ms: int


class _Shown(Struct, tag_field="type", tag="impression"):
    session_id: str
    time_ms: int


_sample, _transition = msgspec.json.Decoder(_Sample), msgspec.json.Decoder(_Timed)
_episode, _aside, _shown = msgspec.json.Decoder(_Steps), msgspec.json.Decoder(_SetAside), msgspec.json.Decoder(_Shown)


def filed_ms(topic: str, payload: bytes) -> int:
    """The time under which an output is filed."""
    if topic == SAMPLES:
        return _sample.decode(payload).impression.time_ms
    if topic == TRANSITIONS:
        return _transition.decode(payload).time_ms
    if topic == EPISODES:
        return _episode.decode(payload).steps[0].time_ms
    return _aside.decode(payload).appended_at_ms


def _impressions(source: Input, low_ms: int, high_ms: int) -> Iterator[tuple[str, int]]:
    """(session, time) of what may be an impression; whether it is one, the job will see."""
    for record in source.records(low_ms, high_ms):
        try:
            shown = _shown.decode(record.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        yield shown.session_id, shown.time_ms

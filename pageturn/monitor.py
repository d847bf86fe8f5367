"""`pageturn monitor`: what flows through the log, and what each bucket earns, as metrics.

It reads the topics themselves, so it sees the same whichever engine runs the stream. It keeps nothing: it begins at the
end of each topic, and counts from there.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing

import click

from pageturn.options import options, stop_signal
from pageturn.user_clicks import UserClicks
from pageturn.waiting_clicks import WaitingClicks
from pipeline.events import EventError, decode
from pipeline.logs.log import (
    DEAD_LETTERS,
    DUPLICATES,
    EPISODES,
    EVENTS,
    LATE,
    ORPHANS,
    OUTPUTS,
    SAMPLES,
    TRANSITIONS,
    EventLog,
    LogError,
    NoTopic,
    Record,
)
from pipeline.logs.opening import open_log
from pipeline.monitoring.catalogue import MONITOR
from pipeline.monitoring.metrics import Metrics, exposed
from pipeline.records import DeadLetter, Decision, Episode, FeedbackKind, Page, SetAside, Transition

_BATCH = 1_000  # records of a partition at once
_PAUSE_S = 0.5  # between two looks at a log that has nothing new
_LOG = logging.getLogger(__name__)


class Memory:
    """What has to be known of earlier records."""

    def __init__(self) -> None:
        self.users, self.clicks = UserClicks(), WaitingClicks()


@click.command()
@options("log")
@click.option("--metrics", "metrics_address", required=True, help="HOST:PORT for Prometheus.")
def monitor(log_url: str, metrics_address: str) -> None:
    """Count what flows through the log, for Prometheus.

    Volume and age of each topic, late and unreadable events, and what each bucket's pages and visits come to.
    """
    metrics, stop = Metrics(MONITOR), stop_signal()
    with closing(open_log(log_url)) as log, exposed(metrics, metrics_address) as port:
        click.echo(f"metrics on port {port}")
        watch(log, metrics, stop)


def watch(log: EventLog, metrics: Metrics, stop: threading.Event) -> None:
    """Until stopped. Topics may come later, records may be deleted, and a log out of reach is waited for."""
    memory = Memory()
    readers = [_Topic(topic, log, metrics, memory) for topic in (EVENTS, *OUTPUTS)]
    while not stop.is_set():
        try:
            busy = [reader.advance() for reader in readers]
        except LogError as error:
            _LOG.warning("%s; trying again", error)
            busy = [False]
        if not any(busy):
            stop.wait(_PAUSE_S)


class _Topic:
    """One topic, from its end at the first look on."""

    def __init__(self, topic: str, log: EventLog, metrics: Metrics, memory: Memory) -> None:
        self._topic, self._log, self._metrics, self._memory = topic, log, metrics, memory
        self._positions: dict[int, int] | None = None

    def advance(self) -> bool:
        """Count what is new; whether there was anything."""
        if self._positions is None:
            try:
                self._positions = self._log.end_offsets(self._topic)
            except NoTopic:
                return False
        new = [self._read(partition) for partition in self._positions]
        return any(new)

    def _read(self, partition: int) -> bool:
        at = max(self._positions[partition], self._log.start_offset(self._topic, partition))
        records = self._log.read(self._topic, partition, at, _BATCH)
        for record in records:
            self._count(record)
        after = records[-1].offset + 1 if records else self._log.past_gap(self._topic, partition, at)
        self._positions[partition] = after
        return bool(records)

    def _count(self, record: Record) -> None:
        self._metrics.count("records", topic=self._topic)
        self._metrics.gauge("last_record_timestamp_seconds", record.appended_at_ms / 1000, topic=self._topic)
        try:
            count_record(self._topic, record, self._metrics, self._memory)
        except EventError as error:  # it was counted; the reader that needs it says what is wrong
            _LOG.warning("%s/%d:%d: %s", self._topic, record.partition, record.offset, error)


def count_record(topic: str, record: Record, metrics: Metrics, memory: Memory) -> None:
    """What a record says beyond its being there. Raises EventError where it is not what its topic holds."""
    if topic == SAMPLES:
        _page(decode(record.payload, Page), metrics, memory)
    elif topic == TRANSITIONS:
        _transition(decode(record.payload, Transition), record, metrics, memory)
    elif topic == EPISODES:
        _visit(decode(record.payload, Episode), metrics)
    elif topic in (LATE, ORPHANS, DUPLICATES):
        aside = decode(record.payload, SetAside)
        metrics.count("set_aside", fate=aside.fate.value, reason=aside.reason)
    elif topic == DEAD_LETTERS:
        metrics.count("dead_letters", reason=decode(record.payload, DeadLetter).reason)


def _page(page: Page, metrics: Metrics, memory: Memory) -> None:
    decision = page.impression.decision
    bucket = decision.bucket
    metrics.count("pages", bucket=bucket, decided_by=decision.decided_by.value)
    metrics.count("pages_shown", int(page.shown), bucket=bucket)
    clicked = any(labels.clicks for labels in page.labels)
    metrics.count("pages_with_click", clicked, bucket=bucket)
    if page.shown:
        for name, share in memory.users.add(page.impression.time_ms, bucket, page.impression.user_id, clicked):
            metrics.gauge("user_click_rate", share, bucket=name)
    metrics.count("clicks", sum(labels.clicks for labels in page.labels), bucket=bucket)
    metrics.count("orders", sum(labels.orders for labels in page.labels), bucket=bucket)
    metrics.count("order_value", max(sum(labels.order_value for labels in page.labels), 0), bucket=bucket)
    memory.clicks.closed(page.id, tuple(f.time_ms for f in page.feedback if f.kind is FeedbackKind.CLICK))
    dwelt = sum(each.value for each in page.feedback if each.kind is FeedbackKind.DWELL)
    metrics.count("dwell_seconds", max(dwelt, 0), bucket=bucket)


def _transition(transition: Transition, record: Record, metrics: Metrics, memory: Memory) -> None:
    whose = _whose(transition.decision)
    metrics.count("transitions", **whose)
    metrics.add("reward", transition.reward, **whose)
    metrics.observe("join_seconds", (record.appended_at_ms - transition.time_ms) / 1000)
    for clicked_ms in memory.clicks.arrived(transition.request_id):
        metrics.observe("click_to_transition_seconds", (record.appended_at_ms - clicked_ms) / 1000)


def _visit(episode: Episode, metrics: Metrics) -> None:
    first = episode.steps[0].decision
    metrics.count("visits", **_whose(first), ending=episode.ending.value)
    metrics.observe("visit_pages", len(episode.steps), bucket=first.bucket)


def _whose(decision: Decision) -> dict[str, str]:
    return {"bucket": decision.bucket, "decided_by": decision.decided_by.value}

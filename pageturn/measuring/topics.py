"""One pass over the log: what every figure that comes from it needs, without decoding more of a record than that."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from msgspec import Raw, Struct

from pipeline.config.schema import FeatureConfig
from pipeline.logs.log import (
    DEAD_LETTERS,
    DUPLICATES,
    EVENTS,
    LATE,
    ORPHANS,
    OUTPUTS,
    SAMPLES,
    TRANSITIONS,
    EventLog,
    Record,
    has_topic,
)
from pipeline.records import Stamp
from pipeline.streaming.counts import Counts, count, open_sessions
from pipeline.streaming.outputs import read_all
from pipeline.streaming.snapshot import Snapshot, SnapshotStore

_SET_ASIDE = (LATE, ORPHANS, DUPLICATES)
_OF_TRAINER = f"{TRANSITIONS}/"  # what its dead letters' ids begin with


class _Propensity(Struct):
    mean: float


class _Action(Struct):
    name: str
    value: float
    propensity: _Propensity | None = None


class _Decision(Struct):
    decided_by: str
    policy: str
    actions: list[_Action] = []


class _Impression(Struct):
    request_id: str
    time_ms: int
    decision: _Decision


class _Feedback(Struct):
    event_id: str
    time_ms: int
    kind: str


class _Page(Struct):
    impression: _Impression
    closed_ms: int
    feedback: list[_Feedback] = []


class _Executed(Struct):
    decided_by: str
    actions: list[Raw] = []
    ranked: dict[str, Raw] | None = None


class _Transition(Struct):
    id: str
    request_id: str
    decision: _Executed


class _Event(Struct):
    """Either kind of event."""

    type: str
    request_id: str
    event_id: str | None = None


class _SetAside(Struct):
    event: _Event


class _DeadLetter(Struct):
    id: str
    payload: bytes


class Ids:
    """A set of ids by their 64-bit hashes: there may be millions."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, text: str) -> None:
        self._hashes.append(xxhash.xxh3_64_intdigest(text.encode()))

    @property
    def hashes(self) -> np.ndarray:
        """Each once, ascending."""
        return np.unique(np.frombuffer(self._hashes, np.uint64))

    def without(self, other: Ids) -> np.ndarray:
        return np.setdiff1d(self.hashes, other.hashes, assume_unique=True)


class Seen(Struct, frozen=True):
    """When a page closed, and when it was clicked on."""

    closed_ms: int
    clicks_ms: tuple[int, ...]


class Drawn(Struct):
    """Of each page that a policy decided: when, and per action dimension what was executed and what was meant."""

    times_ms: array[int]
    executed: array[float]  # [pages, dimensions], flat
    means: array[float]


class Topics:
    """What a log holds. `counts` is None where there is no stream yet."""

    def __init__(self, config: FeatureConfig) -> None:
        self.counts: Counts | None = None
        self.pages: dict[str, Seen] = {}  # by request id
        self.drawn = {name: Drawn(array("q"), array("d"), array("d")) for name in config.learned_policies()}
        self.events, self.requests = Ids(), Ids()  # found anywhere: feedback and impressions
        self._dimensions = [dimension.name for dimension in config.action]
        self._transitions: list[tuple[Stamp, str, str]] = []  # that can be learned from; id, request id
        self._refused: set[str] = set()  # dead letters of the trainer
        self._decoders: dict[str, Any] = {
            SAMPLES: (msgspec.json.Decoder(_Page), self._page),
            TRANSITIONS: (msgspec.json.Decoder(_Transition), self._transition),
            DEAD_LETTERS: (msgspec.json.Decoder(_DeadLetter), self._dead_letter),
        } | dict.fromkeys(_SET_ASIDE, (msgspec.json.Decoder(_SetAside), self._set_aside))

    def take(self, topic: str, record: Record) -> None:
        if topic in self._decoders:
            decoder, hear = self._decoders[topic]
            hear(decoder.decode(record.payload), record)

    def transitions(self) -> Iterator[tuple[str, str, int]]:
        """Id, request id and stamp (ms) of those that the trainer learns from, in its order."""
        for stamp, identity, request_id in sorted(self._transitions):
            if f"{_OF_TRAINER}{stamp.partition}:{stamp.offset}" not in self._refused:
                yield identity, request_id, stamp.appended_at_ms

    def event(self, event: _Event) -> None:
        """Found, whatever became of it."""
        if event.event_id is None:
            self.requests.add(event.request_id)
        else:
            self.events.add(event.event_id)

    def _page(self, page: _Page, _: Record) -> None:
        shown = page.impression
        self.requests.add(shown.request_id)
        for feedback in page.feedback:
            self.events.add(feedback.event_id)
        self.pages[shown.request_id] = Seen(
            page.closed_ms, tuple(feedback.time_ms for feedback in page.feedback if feedback.kind == "click")
        )
        if shown.decision.decided_by == "policy" and shown.decision.policy in self.drawn:
            self._draw(self.drawn[shown.decision.policy], shown)

    def _draw(self, drawn: Drawn, shown: _Impression) -> None:
        actions = {action.name: action for action in shown.decision.actions}
        if actions.keys() != set(self._dimensions):
            return
        drawn.times_ms.append(shown.time_ms)
        for name in self._dimensions:
            action = actions[name]
            drawn.executed.append(action.value)
            drawn.means.append(action.propensity.mean if action.propensity else action.value)

    def _transition(self, transition: _Transition, record: Record) -> None:
        decision = transition.decision
        if decision.actions or decision.ranked is not None or decision.decided_by != "fallback":
            stamp = Stamp(record.appended_at_ms, record.partition, record.offset)
            self._transitions.append((stamp, transition.id, transition.request_id))

    def _set_aside(self, aside: _SetAside, _: Record) -> None:
        self.event(aside.event)

    def _dead_letter(self, letter: _DeadLetter, _: Record) -> None:
        if letter.id.startswith(_OF_TRAINER):
            self._refused.add(letter.id)
        else:
            self.raw_event(letter.payload)

    def raw_event(self, payload: bytes) -> None:
        """Bytes that say of which event they are, at least; others are nobody's."""
        try:
            self.event(msgspec.json.decode(payload, type=_Event))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return


def read_topics(config: FeatureConfig, log: EventLog, stream: Path) -> Topics:
    """The snapshot first, then what it does not cover, then the outputs, which only grow: a stream at work moves
    events from the one to the other meanwhile, but never out of sight. Raises: SnapshotError, LogError."""
    topics = Topics(config)
    if not has_topic(log, EVENTS):
        return topics
    snapshot = SnapshotStore(stream).load()
    if snapshot is not None:
        _open_events(snapshot, topics)
    for record in read_all(log, EVENTS, snapshot.progress.positions if snapshot else None):
        topics.raw_event(record.payload)
    if all(has_topic(log, topic) for topic in OUTPUTS):
        topics.counts = count(log, stream, topics.take)
    return topics


def _open_events(snapshot: Snapshot, topics: Topics) -> None:
    for state in open_sessions(snapshot):
        for bucket in state.joiner.buckets.values():
            for copy in bucket.copies:
                topics.requests.add(copy.impression.request_id)
            for heard in bucket.heard:
                topics.events.add(heard.feedback.event_id)

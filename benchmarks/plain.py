"""The stream without an engine: one loop over the pure logic, a dict and a heap. It keeps nothing for a restart."""

from __future__ import annotations

import heapq

from pipeline.config.schema import FeatureConfig
from pipeline.events import Refusal, encode, parse
from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import DEAD_LETTERS, EVENTS, Entry, EventLog, Record
from pipeline.logs.ordered import OrderedReader
from pipeline.records import DeadLetter, Stamp
from pipeline.transitions.session import (
    Rules,
    SessionState,
    Stamped,
    Turn,
    on_events,
    on_watermark,
    topic_of,
)

_RECORDS = 2_000  # at a time


class _Loop:
    def __init__(self, config: FeatureConfig, log: EventLog) -> None:
        self._log, self._stream, self._rules = log, config.stream, Rules.of(config)
        self._states: dict[str, SessionState] = {}
        self._wakes: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._out: dict[str, list[Entry]] = {}

    def take(self, records: list[Record]) -> None:
        sessions: dict[str, list[Stamped]] = {}
        for record in records:
            parsed = parse(record.payload, self._stream.max_event_bytes, record.appended_at_ms + self._stream.max_ahead)
            if isinstance(parsed, Refusal):
                self._refuse(record, parsed)
            else:
                stamp = Stamp(record.appended_at_ms, record.partition, record.offset)
                sessions.setdefault(parsed.session_id, []).append(Stamped(stamp, parsed))
        for session_id, events in sessions.items():
            self._settle(session_id, on_events(self._rules, self._states.get(session_id), events))

    def advance(self, watermark_ms: int) -> None:
        heap, wakes = self._heap, self._wakes
        while heap and heap[0][0] <= watermark_ms:
            wake_ms, session_id = heapq.heappop(heap)
            if wakes.get(session_id) == wake_ms:
                del wakes[session_id]
                self._settle(session_id, on_watermark(self._rules, self._states[session_id], wake_ms))

    def flush(self) -> None:
        for topic, entries in self._out.items():
            self._log.append(topic, entries)
        self._out = {}

    def _settle(self, session_id: str, turn: Turn) -> None:
        if turn.state is None:
            self._states.pop(session_id, None)
        else:
            self._states[session_id] = turn.state
        if turn.wake_at_ms is None:
            self._wakes.pop(session_id, None)
        elif self._wakes.get(session_id) != turn.wake_at_ms:
            self._wakes[session_id] = turn.wake_at_ms
            heapq.heappush(self._heap, (turn.wake_at_ms, session_id))
        for output in turn.outputs:
            self._out.setdefault(topic_of(output), []).append(Entry(session_id, encode(output)))

    def _refuse(self, record: Record, refusal: Refusal) -> None:
        name = f"{record.partition}:{record.offset}"
        letter = DeadLetter(name, refusal.reason, refusal.detail, record.appended_at_ms, record.key, record.payload)
        self._out.setdefault(DEAD_LETTERS, []).append(Entry(record.key, encode(letter)))


def plain_loop(config: FeatureConfig, log: EventLog) -> None:
    """All events of the log, to its end."""
    reader = OrderedReader(log, EVENTS, None, wall_clock_ms, config.stream.clock_skew)
    loop = _Loop(config, log)
    done = False
    while not done:
        loop.take(reader.poll(_RECORDS))
        loop.flush()
        loop.advance(reader.low_stamp_ms - config.stream.lateness)
        loop.flush()
        done = reader.caught_up()

"""The stream as one Beam graph, the same on every engine: parse and group, one stateful step per session, write.

Sources give lists of log records; the engine's event time is the watermark of the log (DESIGN, "Log stamp"). No
windows, no grouping, no second keyed stage: all rules are in `pipeline.transitions`, which knows nothing of Beam.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    ReadModifyWriteRuntimeState,
    ReadModifyWriteStateSpec,
    RuntimeTimer,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.timestamp import Timestamp

from pipeline.config.schema import FeatureConfig, Stream
from pipeline.events import Refusal, encode, parse
from pipeline.logs.log import DEAD_LETTERS, Record
from pipeline.records import DeadLetter, Stamp
from pipeline.streaming.coders import SessionCoder
from pipeline.streaming.sinks import Encoded
from pipeline.streaming.snapshot import SESSION_STATE
from pipeline.transitions.session import (
    Rules,
    Stamped,
    Turn,
    on_events,
    on_watermark,
    output_id,
    topic_of,
)

_DEAD = "dead"


@beam.typehints.with_input_types(list[Record])
@beam.typehints.with_output_types(tuple[str, list[Stamped]])
class Parse(beam.DoFn):
    """Records to (session, its events in the order read); what cannot be read goes to the side output."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._max_event_bytes, self._max_ahead_ms = stream.max_event_bytes, stream.max_ahead

    def process(self, element: list[Record]) -> Iterator[object]:
        sessions: dict[str, list[Stamped]] = {}
        for record in element:
            parsed = parse(record.payload, self._max_event_bytes, record.appended_at_ms + self._max_ahead_ms)
            if isinstance(parsed, Refusal):
                yield beam.pvalue.TaggedOutput(_DEAD, _dead_letter(record, parsed))
            else:
                stamp = Stamp(record.appended_at_ms, record.partition, record.offset)
                sessions.setdefault(parsed.session_id, []).append(Stamped(stamp, parsed))
        yield from sessions.items()


@beam.typehints.with_input_types(tuple[str, list[Stamped]])
@beam.typehints.with_output_types(Encoded)
class Sessions(beam.DoFn):
    """(session, events) to outputs, encoded at once: their bytes must not depend on what an engine does to objects."""

    STATE = ReadModifyWriteStateSpec(SESSION_STATE, SessionCoder())
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def process(
        self,
        element: tuple[str, list[Stamped]],
        state: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008 (Beam's way)
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> list[Encoded]:
        session_id, events = element
        return _settle(session_id, on_events(self._rules, state.read(), events), state, wake)

    @on_timer(WAKE)
    def on_wake(
        self,
        session_id: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        state: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> list[Encoded]:
        """The watermark has reached the timer's time, and that is all a session may know of the watermark."""
        session = state.read()
        if session is None:
            return []
        return _settle(session_id, on_watermark(self._rules, session, timestamp.micros // 1000), state, wake)


@beam.typehints.with_input_types(list[Record])
@beam.typehints.with_output_types(Encoded)
class StreamRecords(beam.PTransform):
    """Lists of log records to encoded outputs of all topics."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        parse_step = beam.ParDo(Parse(self._config.stream))
        parsed = records | "Parse" >> parse_step.with_outputs(_DEAD, main="sessions")
        outputs = parsed.sessions | "Sessions" >> beam.ParDo(Sessions(Rules.of(self._config)))
        return (outputs, parsed[_DEAD]) | beam.Flatten()


def build(
    pipeline: beam.Pipeline, source: beam.PTransform, sink: beam.PTransform, config: FeatureConfig
) -> beam.PCollection:
    """The whole graph: `source` gives lists of Record, `sink` takes Encoded. Returns what the sink returns."""
    return pipeline | "Read" >> source | "Stream" >> StreamRecords(config) | "Write" >> sink


def _settle(session_id: str, turn: Turn, state: ReadModifyWriteRuntimeState, wake: RuntimeTimer) -> list[Encoded]:
    """Write the state back and arm the timer for its next decision."""
    if turn.state is None:
        state.clear()
    else:
        state.write(turn.state)
    if turn.wake_at_ms is None:
        wake.clear()
    else:
        wake.set(Timestamp(micros=turn.wake_at_ms * 1000))
    return [Encoded(topic_of(o), session_id, output_id(o), encode(o)) for o in turn.outputs]


def _dead_letter(record: Record, refusal: Refusal) -> Encoded:
    letter = DeadLetter(
        id=f"{record.partition}:{record.offset}",
        reason=refusal.reason,
        detail=refusal.detail,
        appended_at_ms=record.appended_at_ms,
        key=record.key,
        payload=record.payload,
    )
    return Encoded(DEAD_LETTERS, record.key, letter.id, encode(letter))

"""The stream as one Beam graph, the same on every engine: parse and group, one stateful step per session, encode.

Sources give lists of log records; the engine's event time is the watermark of the log (DESIGN, "Log stamp"). No
windows, no grouping, no second keyed stage: all rules are in `pipeline.transitions`, which knows nothing of Beam.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    ReadModifyWriteRuntimeState,
    ReadModifyWriteStateSpec,
    RuntimeTimer,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.timestamp import Timestamp

from pipeline.config.schema import FeatureConfig
from pipeline.events import Refusal, encode, parse
from pipeline.logs.log import DEAD_LETTERS, Record
from pipeline.records import DeadLetter, Stamp
from pipeline.streaming.sinks import Encoded
from pipeline.streaming.snapshot import SESSION_STATE, session_state
from pipeline.transitions.session import (
    Output,
    Rules,
    SessionState,
    Stamped,
    Turn,
    encode_state,
    on_events,
    on_watermark,
    output_id,
    topic_of,
)

_DEAD = "dead"


class SessionCoder(Coder):
    """Session states as versioned msgpack."""

    def encode(self, value: SessionState) -> bytes:
        return encode_state(value)

    def decode(self, encoded: bytes) -> SessionState:
        return session_state(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return SessionState


@beam.typehints.with_input_types(list[Record])
@beam.typehints.with_output_types(tuple[str, list[Stamped]])
class Parse(beam.DoFn):
    """Records to (session, its events in the order read); what cannot be read goes to the side output."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__()
        self._max_event_bytes = max_event_bytes

    def process(self, element: list[Record]) -> Iterator[object]:
        sessions: dict[str, list[Stamped]] = {}
        for record in element:
            parsed = parse(record.payload, self._max_event_bytes)
            if isinstance(parsed, Refusal):
                yield beam.pvalue.TaggedOutput(_DEAD, (record.key, _dead_letter(record, parsed)))
            else:
                stamp = Stamp(record.appended_at_ms, record.partition, record.offset)
                sessions.setdefault(parsed.session_id, []).append(Stamped(stamp, parsed))
        yield from sessions.items()


@beam.typehints.with_input_types(tuple[str, list[Stamped]])
@beam.typehints.with_output_types(tuple[str, object])
class Sessions(beam.DoFn):
    """(session, events) to (session, output)."""

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
    ) -> list[tuple[str, Output]]:
        session_id, events = element
        return _settle(session_id, on_events(self._rules, state.read(), events), state, wake)

    @on_timer(WAKE)
    def on_wake(
        self,
        session_id: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        state: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> list[tuple[str, Output]]:
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
        parse_step = beam.ParDo(Parse(self._config.stream.max_event_bytes))
        parsed = records | "Parse" >> parse_step.with_outputs(_DEAD, main="sessions")
        outputs = parsed.sessions | "Sessions" >> beam.ParDo(Sessions(Rules.of(self._config)))
        return (outputs, parsed[_DEAD]) | beam.Flatten() | "Encode" >> beam.Map(_encode).with_output_types(Encoded)


def build(
    pipeline: beam.Pipeline, source: beam.PTransform, sink: beam.PTransform, config: FeatureConfig
) -> beam.PCollection:
    """The whole graph: `source` gives lists of Record, `sink` takes Encoded. Returns what the sink returns."""
    return pipeline | "Read" >> source | "Stream" >> StreamRecords(config) | "Write" >> sink


def _settle(session_id: str, turn: Turn, state: ReadModifyWriteRuntimeState, wake: RuntimeTimer) -> list[object]:
    """Write the state back and arm the timer for its next decision."""
    if turn.state is None:
        state.clear()
    else:
        state.write(turn.state)
    if turn.wake_at_ms is None:
        wake.clear()
    else:
        wake.set(Timestamp(micros=turn.wake_at_ms * 1000))
    return [(session_id, output) for output in turn.outputs]


def _dead_letter(record: Record, refusal: Refusal) -> DeadLetter:
    return DeadLetter(
        id=f"{record.partition}:{record.offset}",
        reason=refusal.reason,
        detail=refusal.detail,
        appended_at_ms=record.appended_at_ms,
        key=record.key,
        payload=record.payload,
    )


def _encode(keyed: tuple[str, Output | DeadLetter]) -> Encoded:
    key, output = keyed
    if isinstance(output, DeadLetter):
        return Encoded(DEAD_LETTERS, key, output.id, encode(output))
    return Encoded(topic_of(output), key, output_id(output), encode(output))

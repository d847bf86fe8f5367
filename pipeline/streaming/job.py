"""The stream as one Beam graph, the same on every engine: parse and group, one stateful step, write.

That step is keyed by session, or by groups of sessions (`pipeline.streaming.groups`). Sources give lists of log
records; the engine's event time is the watermark of the log (DESIGN, "Log stamp"). No windows, no grouping, no second
keyed stage: all rules are in `pipeline.transitions`, which knows nothing of Beam.
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
from pipeline.streaming.grouped import Groups
from pipeline.streaming.groups import group_of
from pipeline.streaming.sinks import Encoded, encoded
from pipeline.streaming.snapshot import SESSION_STATE
from pipeline.transitions.session import (
    Rules,
    Stamped,
    Turn,
    on_events,
    on_watermark,
)

_DEAD = "dead"


@beam.typehints.with_input_types(list[Record])
@beam.typehints.with_output_types(tuple[str, list[Stamped]])
class Parse(beam.DoFn):
    """Records to (session or group of sessions, its events in the order read).

    What cannot be read goes to the side output.
    """

    def __init__(self, stream: Stream, groups: int | None = None) -> None:
        super().__init__()
        self._max_event_bytes, self._max_ahead_ms = stream.max_event_bytes, stream.max_ahead
        self._groups = groups

    def process(self, element: list[Record]) -> Iterator[object]:
        keys: dict[str, list[Stamped]] = {}
        for record in element:
            parsed = parse(record.payload, self._max_event_bytes, record.appended_at_ms + self._max_ahead_ms)
            if isinstance(parsed, Refusal):
                yield beam.pvalue.TaggedOutput(_DEAD, _dead_letter(record, parsed))
            else:
                stamp = Stamp(record.appended_at_ms, record.partition, record.offset)
                keys.setdefault(self._key(parsed.session_id), []).append(Stamped(stamp, parsed))
        yield from keys.items()

    def _key(self, session_id: str) -> str:
        return session_id if self._groups is None else group_of(session_id, self._groups)


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
    """Lists of log records to encoded outputs of all topics.

    `groups`: how many sessions are spread over, as keys of the state. Without, each session is a key.
    """

    def __init__(self, config: FeatureConfig, groups: int | None = None) -> None:
        super().__init__()
        self._config, self._groups = config, groups

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        parse_step, rules = beam.ParDo(Parse(self._config.stream, self._groups)), Rules.of(self._config)
        parsed = records | "Parse" >> parse_step.with_outputs(_DEAD, main="events")
        step = (
            "Sessions" >> beam.ParDo(Sessions(rules)) if self._groups is None else "Groups" >> beam.ParDo(Groups(rules))
        )
        return (parsed.events | step, parsed[_DEAD]) | beam.Flatten()


def build(
    pipeline: beam.Pipeline,
    source: beam.PTransform,
    sink: beam.PTransform,
    config: FeatureConfig,
    groups: int | None = None,
) -> beam.PCollection:
    """The whole graph: `source` gives lists of Record, `sink` takes Encoded. Returns what the sink returns."""
    return pipeline | "Read" >> source | "Stream" >> StreamRecords(config, groups) | "Write" >> sink


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
    return [encoded(session_id, output) for output in turn.outputs]


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

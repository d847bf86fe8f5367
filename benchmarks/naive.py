"""The stream's graph as one writes it first: one element per event, and the state pickled on every access.

It stays here to be measured against. A drop-in for `pipeline.streaming.job.StreamRecords` on any engine.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.coders import BytesCoder
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
from pipeline.events import encode
from pipeline.logs.log import Record
from pipeline.streaming.job import Parse
from pipeline.streaming.sinks import Encoded
from pipeline.transitions.session import Rules, Stamped, Turn, on_events, on_watermark, output_id, topic_of


def one_by_one(records: list[Record]) -> Iterable[list[Record]]:
    return ([record] for record in records)


@beam.typehints.with_input_types(tuple[str, list[Stamped]])
@beam.typehints.with_output_types(Encoded)
class Sessions(beam.DoFn):
    STATE = ReadModifyWriteStateSpec("session", BytesCoder())
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def process(
        self,
        element: tuple[str, list[Stamped]],
        state: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008 (Beam's way)
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[Encoded]:
        session_id, events = element
        pickled = state.read()
        session = None if pickled is None else pickle.loads(pickled)
        yield from _settle(session_id, on_events(self._rules, session, events), state, wake)

    @on_timer(WAKE)
    def on_wake(
        self,
        session_id: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        state: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[Encoded]:
        session = pickle.loads(state.read())
        yield from _settle(session_id, on_watermark(self._rules, session, timestamp.micros // 1000), state, wake)


@beam.typehints.with_input_types(list[Record])
@beam.typehints.with_output_types(Encoded)
class NaiveRecords(beam.PTransform):
    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        single = records | "One" >> beam.FlatMap(one_by_one).with_output_types(list[Record])
        parsed = single | "Parse" >> beam.ParDo(Parse(self._config.stream)).with_outputs("dead", main="sessions")
        outputs = parsed.sessions | "Sessions" >> beam.ParDo(Sessions(Rules.of(self._config)))
        return (outputs, parsed.dead) | beam.Flatten()


def _settle(session_id: str, turn: Turn, state: ReadModifyWriteRuntimeState, wake: RuntimeTimer) -> Iterator[Encoded]:
    if turn.state is None:
        state.clear()
    else:
        state.write(pickle.dumps(turn.state))
    if turn.wake_at_ms is None:
        wake.clear()
    else:
        wake.set(Timestamp(micros=turn.wake_at_ms * 1000))
    for output in turn.outputs:
        yield Encoded(topic_of(output), session_id, output_id(output), encode(output))

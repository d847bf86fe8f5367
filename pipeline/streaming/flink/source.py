"""The event log as an unbounded source: a stateful step that a timer calls again and again, one key for a partition.

Its state, the next offset and the watermark, is Flink's: it is in every checkpoint and savepoint. A splittable DoFn
would be the usual way. But up to Beam 2.75 each deferral of one leaves an entry in Flink's state for good, and in any
version Flink gets a deferral's delay and watermark in whole seconds only.

The watermark of a partition trails the last stamp read by the lateness. One that is read to its end advances with the
clock: whatever comes later is stamped no earlier than the clock's reading before the end was asked for, minus the skew
between clocks. Flink takes the minimum of all partitions. The order in which partitions are read is left to Flink: the
stream's outputs do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    ReadModifyWriteRuntimeState,
    ReadModifyWriteStateSpec,
    RuntimeTimer,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, EventLog, Record
from pipeline.logs.opening import open_log
from pipeline.logs.reading import check_not_past_end, read_on
from pipeline.streaming.coders import MsgpackCoder

_BEGINNING_MS = MIN_TIMESTAMP.micros // 1000 + 1


class Pace(NamedTuple):
    """How much one call may read. A checkpoint waits for the call that is under way, downstream for its end."""

    records_per_element: int = 500
    records_per_call: int = 4_000
    idle_ms: int = 100  # until a partition that is read to its end is looked at again


class Reached(NamedTuple):
    offset: int  # the next
    watermark_ms: int


@beam.typehints.with_input_types(tuple[int, int])
@beam.typehints.with_output_types(list[Record])
class ReadPartition(beam.DoFn):
    """(partition, anything) to the partition's records, in lists, without end."""

    REACHED = ReadModifyWriteStateSpec("reached", MsgpackCoder(Reached))
    AGAIN = TimerSpec("again", TimeDomain.REAL_TIME)

    def __init__(
        self,
        log_url: str,
        lateness_ms: int,
        skew_ms: int,
        pace: Pace = Pace(),  # noqa: B008 (immutable)
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        super().__init__()
        self._log_url, self._lateness_ms, self._skew_ms = log_url, lateness_ms, skew_ms
        self._pace, self._clock_ms = pace, clock_ms

    def setup(self) -> None:
        self._log: EventLog = open_log(self._log_url)

    def teardown(self) -> None:
        self._log.close()

    def process(
        self,
        element: tuple[int, int],
        reached: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(REACHED),  # noqa: B008 (Beam's way)
        again: RuntimeTimer = beam.DoFn.TimerParam(AGAIN),  # noqa: B008
    ) -> None:
        """Begin. A restored job may be told to begin once more: what was reached stays."""
        here = reached.read() or Reached(self._log.start_offset(EVENTS, element[0]), _BEGINNING_MS)
        reached.write(here)
        arm(again, self._clock_ms(), here.watermark_ms)

    @on_timer(AGAIN)
    def on_again(
        self,
        partition: int = beam.DoFn.KeyParam,
        reached: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(REACHED),  # noqa: B008
        again: RuntimeTimer = beam.DoFn.TimerParam(AGAIN),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        here, taken, more = reached.read(), 0, True
        while more and taken < self._pace.records_per_call:
            records, there, more = self._read(partition, here)
            if records:
                yield TimestampedValue(records, _timestamp(here.watermark_ms))  # none that a watermark has passed
            here, taken = there, taken + len(records)
        reached.write(here)
        arm(again, self._clock_ms() + (0 if more else self._pace.idle_ms), here.watermark_ms)

    def _read(self, partition: int, here: Reached) -> tuple[list[Record], Reached, bool]:
        """Records, what is reached with them, and whether there is more."""
        idle_ms = self._clock_ms() - self._skew_ms  # the clock first, then the end: see above
        end = self._log.end_offset(EVENTS, partition)
        check_not_past_end(EVENTS, partition, here.offset, end)
        records, following = read_on(self._log, EVENTS, partition, here.offset, self._pace.records_per_element)
        low_ms = records[-1].appended_at_ms if records else _BEGINNING_MS
        if following >= end:
            low_ms = max(low_ms, idle_ms)
        there = Reached(following, max(here.watermark_ms, low_ms - self._lateness_ms))
        return records, there, here.offset < following < end


def arm(timer: RuntimeTimer, due_ms: int, hold_ms: int) -> None:
    """Set a timer in processing time that holds the watermark back to `hold_ms`.

    Beam's model has that; its Python has no argument for it, and takes the time of the input that sets the timer:
    tests/beam/test_flink_parts.py pins it.
    """
    timer._input_timestamp = _timestamp(hold_ms)
    timer.set(_timestamp(due_ms))


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(micros=milliseconds * 1000)


class ReadLog(beam.PTransform):
    """Unbounded: lists of records of the topic `events`."""

    def __init__(self, log_url: str, partitions: int, lateness_ms: int, skew_ms: int) -> None:
        super().__init__()
        self._partitions = partitions
        self._read = ReadPartition(log_url, lateness_ms, skew_ms)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        numbers = [(number, 0) for number in range(self._partitions)]
        return (
            pbegin
            | "Start" >> beam.Impulse()
            | "Partitions" >> beam.FlatMap(lambda _: numbers).with_output_types(tuple[int, int])
            | "Poll" >> beam.ParDo(self._read)
        )

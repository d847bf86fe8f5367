"""The event log as an unbounded source that checkpoints itself: a splittable DoFn, one restriction for a partition.

Flink's runner never splits one, nor asks it to checkpoint, so each call reads a bounded share and defers the rest. What
is deferred, the next offset and the watermark, is Flink's state: it is in every checkpoint and savepoint. Flink takes
watermarks in whole seconds (rounded down), and delays, too: a short one would be none, so that a call that finds
nothing waits by itself before it defers.

The watermark of a partition trails the last stamp read by the lateness. One that is read to its end advances with the
clock: whatever comes later is stamped no earlier than the clock's reading before the end was asked for, minus the skew
between clocks. Flink takes the minimum of all partitions. The order in which partitions are read is left to Flink: the
stream's outputs do not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.coders import Coder
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, EventLog, Record
from pipeline.logs.opening import open_log
from pipeline.logs.reading import check_not_past_end, read_on

_NO_END = 2**62
_BEGINNING_MS = MIN_TIMESTAMP.micros // 1000 + 1


class Pace(NamedTuple):
    """How much one call may read. A checkpoint waits for the call that is under way, downstream for its end."""

    records_per_element: int = 500
    records_per_call: int = 4_000
    idle_wait_s: float = 0.2  # in steps: a call that finds nothing looks again until then
    step_s: float = 0.02


class RangeCoder(Coder):
    def encode(self, value: OffsetRange) -> bytes:
        return msgspec.msgpack.encode((value.start, value.stop))

    def decode(self, encoded: bytes) -> OffsetRange:
        return OffsetRange(*msgspec.msgpack.decode(encoded, type=tuple[int, int]))

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return OffsetRange


@beam.typehints.with_input_types(int)
@beam.typehints.with_output_types(list[Record])
class ReadPartition(beam.DoFn, RestrictionProvider):
    """A partition's number to its records, in lists."""

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

    def initial_restriction(self, element: int) -> OffsetRange:
        """What is left of the partition, without end. (Beam asks instances for it that were not set up.)"""
        with closing(open_log(self._log_url)) as log:
            return OffsetRange(log.start_offset(EVENTS, element), _NO_END)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return 1  # one partition is as much work as another

    def restriction_coder(self) -> Coder:
        return RangeCoder()

    def truncate(self, element: int, restriction: OffsetRange) -> None:
        """A drain ends the reading. It also ends every session: `stop with savepoint` does not."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: beam.transforms.core.RestrictionTrackerView = beam.DoFn.RestrictionParam(),  # noqa: B008 (Beam's way)
        watermark: ManualWatermarkEstimator = beam.DoFn.WatermarkEstimatorParam(  # noqa: B008
            ManualWatermarkEstimator.default_provider()  # noqa: B008
        ),
    ) -> Iterator[TimestampedValue]:
        position, taken, until_s = tracker.current_restriction().start, 0, time.monotonic() + self._pace.idle_wait_s
        while taken < self._pace.records_per_call:
            records, following, low_ms = self._read(element, position)
            if following > position:
                if not tracker.try_claim(following - 1):
                    return
                if records:
                    yield TimestampedValue(records, watermark.current_watermark() or _timestamp(_BEGINNING_MS))
            _advance(watermark, low_ms - self._lateness_ms)
            taken, position = taken + len(records), following
            if not records:
                if taken or time.monotonic() > until_s:
                    break
                time.sleep(self._pace.step_s)
        tracker.defer_remainder()

    def _read(self, partition: int, position: int) -> tuple[list[Record], int, int]:
        """Records, the offset after them, and the lowest stamp that any record to come may have."""
        idle_ms = self._clock_ms() - self._skew_ms  # the clock first, then the end: see above
        end = self._log.end_offset(EVENTS, partition)
        check_not_past_end(EVENTS, partition, position, end)
        records, following = read_on(self._log, EVENTS, partition, position, self._pace.records_per_element)
        low_ms = records[-1].appended_at_ms if records else _BEGINNING_MS
        return records, following, max(low_ms, idle_ms) if following >= end else low_ms


def _advance(watermark: ManualWatermarkEstimator, to_ms: int) -> None:
    """Never backwards. Not at all before the first record that says how far time has come."""
    to = _timestamp(max(to_ms, _BEGINNING_MS))
    if watermark.current_watermark() is None or to > watermark.current_watermark():
        watermark.set_watermark(to)


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(micros=milliseconds * 1000)


class ReadLog(beam.PTransform):
    """Unbounded: lists of records of the topic `events`."""

    def __init__(self, log_url: str, partitions: int, lateness_ms: int, skew_ms: int, pace: Pace = Pace()) -> None:  # noqa: B008 (immutable)
        super().__init__()
        self._log_url, self._partitions = log_url, partitions
        self._read = ReadPartition(log_url, lateness_ms, skew_ms, pace)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        numbers = list(range(self._partitions))
        return (
            pbegin
            | "Start" >> beam.Impulse()
            | "Partitions" >> beam.FlatMap(lambda _: numbers).with_output_types(int)
            | "Poll" >> beam.ParDo(self._read)
        )

"""The event log as an unbounded source that checkpoints itself: a splittable DoFn, one restriction for a reader.

A reader has some of the partitions, and reads them in turn. Flink's runner never splits a restriction, nor asks for a
checkpoint, so each call reads a bounded share and defers the rest. What is deferred, the next offsets and the
watermark, is Flink's state: it is in every checkpoint and savepoint. Flink takes watermarks in whole seconds (rounded
down), and delays, too: a short one would be none. So a call lasts about a second, and reads at its end what has come:
shorter ones would bring nothing, and each may leave something behind in Flink's state (docs/flink.md).

The watermark of a partition trails the last stamp read by the lateness. One that is read to its end advances with the
clock: whatever comes later is stamped no earlier than the clock's reading before the end was asked for, minus the skew
between clocks. A reader's is the minimum of its partitions, and Flink takes the minimum of the readers. The order in
which partitions are read does not matter: the stream's outputs do not depend on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.coders import Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from pipeline.logs.files import wall_clock_ms
from pipeline.logs.log import EVENTS, EventLog, Record
from pipeline.logs.opening import open_log
from pipeline.logs.reading import check_not_past_end, read_on

_LOG = logging.getLogger(__name__)
_BEGINNING_MS = MIN_TIMESTAMP.micros // 1000 + 1
Offsets = dict[int, int]  # partition -> the offset of the next record


class Pace(NamedTuple):
    """How much one call may read. A checkpoint waits for the call that is under way."""

    records_per_element: int = 500
    records_per_call: int = 4_000
    call_s: float = 1.0


class OffsetsTracker(RestrictionTracker):
    """Where a reader is. It never is through; what it leaves to the next call is all that it did not claim."""

    def __init__(self, offsets: Offsets) -> None:
        self._offsets = offsets
        self._deferred = False

    def current_restriction(self) -> Offsets:
        return self._offsets

    def try_claim(self, position: tuple[int, int]) -> bool:
        """(partition, the offset after what was read of it)."""
        if self._deferred:
            return False
        self._offsets = {**self._offsets, **dict([position])}
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Offsets, Offsets] | None:
        """Only of all that is left: what is claimed is past, and no part of a restriction any more."""
        if self._deferred or fraction_of_remainder > 0:
            return None
        self._deferred = True
        return self._offsets, self._offsets

    def check_done(self) -> None:
        if not self._deferred:
            message = "a reader of the event log has ended without deferring the rest"
            raise ValueError(message)

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def is_bounded(self) -> bool:
        return False


class OffsetsCoder(Coder):
    def encode(self, value: Offsets) -> bytes:
        return msgspec.msgpack.encode(value)

    def decode(self, encoded: bytes) -> Offsets:
        return msgspec.msgpack.decode(encoded, type=Offsets)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return dict


@beam.typehints.with_input_types(int)
@beam.typehints.with_output_types(list[Record])
class ReadPartitions(beam.DoFn, RestrictionProvider):
    """A reader's number to the records of its partitions, in lists."""

    def __init__(
        self,
        log_url: str,
        shares: Sequence[Sequence[int]],
        lateness_ms: int,
        skew_ms: int,
        pace: Pace = Pace(),  # noqa: B008 (immutable)
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """`shares`: the partitions of each reader, where it begins."""
        super().__init__()
        self._log_url, self._shares, self._lateness_ms, self._skew_ms = log_url, shares, lateness_ms, skew_ms
        self._pace, self._clock_ms = pace, clock_ms

    def setup(self) -> None:
        self._log: EventLog = open_log(self._log_url)

    def teardown(self) -> None:
        self._log.close()

    def initial_restriction(self, element: int) -> Offsets:
        """What is left of the partitions. (Beam asks instances for it that were not set up.)"""
        with closing(open_log(self._log_url)) as log:
            return {partition: log.start_offset(EVENTS, partition) for partition in self._shares[element]}

    def create_tracker(self, restriction: Offsets) -> OffsetsTracker:
        return OffsetsTracker(restriction)

    def restriction_size(self, element: int, restriction: Offsets) -> int:
        return len(restriction)  # one partition is as much work as another

    def restriction_coder(self) -> Coder:
        return OffsetsCoder()

    def truncate(self, element: int, restriction: Offsets) -> None:
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
        taken, until_s = 0, time.monotonic() + self._pace.call_s
        while True:
            low_ms, found = [], 0
            for partition, position in tracker.current_restriction().items():
                records, following, low = self._read(partition, position)
                low_ms.append(low)
                if following > position and not tracker.try_claim((partition, following)):
                    return
                if records:
                    found += len(records)
                    self._warn_of_broken_promises(records, watermark.current_watermark())
                    yield TimestampedValue(records, watermark.current_watermark() or _timestamp(_BEGINNING_MS))
            _advance(watermark, min(low_ms) - self._lateness_ms)
            taken, left_s = taken + found, until_s - time.monotonic()
            if taken >= self._pace.records_per_call or left_s <= 0:
                break
            if found < self._pace.records_per_element:  # has caught up: what comes now is read just before the end
                time.sleep(left_s)
        tracker.defer_remainder()

    def _read(self, partition: int, position: int) -> tuple[list[Record], int, int]:
        """Records, the offset after them, and the lowest stamp that any record to come may have."""
        idle_ms = self._clock_ms() - self._skew_ms  # the clock first, then the end: see above
        end = self._log.end_offset(EVENTS, partition)
        check_not_past_end(EVENTS, partition, position, end)
        records, following = read_on(self._log, EVENTS, partition, position, self._pace.records_per_element)
        low_ms = records[-1].appended_at_ms if records else _BEGINNING_MS
        return records, following, max(low_ms, idle_ms) if following >= end else low_ms

    def _warn_of_broken_promises(self, records: list[Record], watermark: Timestamp | None) -> None:
        """As the reader of the embedded runner does."""
        if watermark is None:
            return
        promised_ms = watermark.micros // 1000 + self._lateness_ms
        behind_ms = [promised_ms - record.appended_at_ms for record in records if record.appended_at_ms < promised_ms]
        if behind_ms:
            _LOG.warning(
                "topic %r: %d records stamped up to %d ms before a time that was taken to be over: a clock is further "
                "off than the skew of %d ms, or stamped records were not to be seen for longer",
                EVENTS, len(behind_ms), max(behind_ms), self._skew_ms,
            )  # fmt: skip


def _advance(watermark: ManualWatermarkEstimator, to_ms: int) -> None:
    """Never backwards. Not at all before the first record that says how far time has come."""
    to = _timestamp(max(to_ms, _BEGINNING_MS))
    if watermark.current_watermark() is None or to > watermark.current_watermark():
        watermark.set_watermark(to)


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(micros=milliseconds * 1000)


class ReadLog(beam.PTransform):
    """Unbounded: lists of records of the topic `events`, by as many readers as find partitions."""

    def __init__(
        self,
        log_url: str,
        partitions: int,
        readers: int,
        lateness_ms: int,
        skew_ms: int,
        pace: Pace = Pace(),  # noqa: B008 (immutable)
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        super().__init__()
        shares = [list(range(partitions))[reader::readers] for reader in range(min(readers, partitions))]
        self._readers = len(shares)
        self._read = ReadPartitions(log_url, shares, lateness_ms, skew_ms, pace, clock_ms)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        numbers = list(range(self._readers))
        return (
            pbegin
            | "Start" >> beam.Impulse()
            | "Readers" >> beam.FlatMap(lambda _: numbers).with_output_types(int)
            | "Poll" >> beam.ParDo(self._read)
        )

"""Where a stream comes from: something that is polled for records and says how far event time has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.logs.log import Record
from pipeline.logs.ordered import OrderedReader


class Batch(NamedTuple):
    records: list[Record]
    watermark_ms: int  # every record stamped before this + the allowed lateness has been given out
    caught_up: bool  # nothing more can be had at the moment
    passed_over: int = 0  # records that were read as well, and are not for this stream


class PolledSource(Protocol):
    @property
    def positions(self) -> dict[int, int]:
        """Next offset by partition: what is before it has been given out."""

    def poll(self, limit: int) -> Batch:
        """At most `limit` records. Never blocks."""


class LogSource:
    """The topic's records in the order of their stamps; the watermark trails them by the allowed lateness.

    Of what is read, the records that `owns` does not want are passed over.
    """

    def __init__(self, reader: OrderedReader, lateness_ms: int, owns: Callable[[Record], bool] | None = None) -> None:
        self._reader, self._lateness_ms, self._owns = reader, lateness_ms, owns

    @property
    def positions(self) -> dict[int, int]:
        return self._reader.positions

    def poll(self, limit: int) -> Batch:
        records = self._reader.poll(limit)
        own = records if self._owns is None else [record for record in records if self._owns(record)]
        watermark_ms = self._reader.low_stamp_ms - self._lateness_ms
        return Batch(own, watermark_ms, self._reader.caught_up(), len(records) - len(own))


class Poll(beam.PTransform):
    """Unbounded: lists of records from a polled source. Only the embedded runner can run it, others refuse it."""

    def __init__(self, source: PolledSource) -> None:
        super().__init__()
        self.source = source

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return beam.PCollection(pbegin.pipeline, is_bounded=False, element_type=list[Record])

    def get_windowing(self, inputs: object) -> beam.Windowing:
        return beam.Windowing(GlobalWindows())

    def to_runner_api_parameter(self, context: object) -> NoReturn:
        """Every other runner translates the graph first. Some would run it, and fire timers early without a word."""
        message = "a polled source runs on the embedded runner only: other engines need a source of their own"
        raise NotImplementedError(message)

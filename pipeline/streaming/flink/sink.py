"""Outputs to their topics, at least once.

What Flink repeats after a failure comes again with the same ids and the same bytes, so readers that know ids by heart
(the trainer, the counts) take each once.
"""

from __future__ import annotations

import apache_beam as beam

from pipeline.logs.log import Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.streaming.sinks import Encoded


@beam.typehints.with_input_types(Encoded)
class AppendToLog(beam.DoFn):
    """Appends at the end of each bundle. Flink takes no checkpoint before the bundle has ended."""

    def __init__(self, log_url: str) -> None:
        super().__init__()
        self._log_url = log_url

    def setup(self) -> None:
        self._log: EventLog = open_log(self._log_url)

    def start_bundle(self) -> None:
        self._waiting: dict[str, list[Entry]] = {}

    def process(self, element: Encoded) -> None:
        self._waiting.setdefault(element.topic, []).append(Entry(element.key, element.payload))

    def finish_bundle(self) -> None:
        for topic, entries in self._waiting.items():
            self._log.append(topic, entries)
        self._waiting = {}

    def teardown(self) -> None:
        self._log.close()

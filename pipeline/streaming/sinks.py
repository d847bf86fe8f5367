"""Where a stream's outputs go. Written at least once by nature; here each record ends up in its topic once.

A job that starts from a snapshot repeats what it wrote after it. So it first reads what its topics hold behind the
offsets in the snapshot, and skips those records when they come again, which they do with the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import apache_beam as beam
import xxhash

from pipeline.events import encode
from pipeline.logs.log import DEAD_LETTERS, Entry, EventLog
from pipeline.streaming.errors import TwoContentsError
from pipeline.streaming.outputs import identity, read_all
from pipeline.transitions.session import Output, output_id, topic_of

Offsets = dict[str, dict[int, int]]  # topic -> partition -> offset


class Encoded(NamedTuple):
    """An output on its way to the log."""

    topic: str
    key: str
    id: str
    payload: bytes


def encoded(session_id: str, output: Output) -> Encoded:
    return Encoded(topic_of(output), session_id, output_id(output), encode(output))


class Outbox:
    """Collects outputs and appends them to their topics when told to."""

    def __init__(
        self,
        log: EventLog,
        topics: Sequence[str],
        since: Offsets | None = None,
        owns_session: Callable[[str], bool] | None = None,
    ) -> None:
        """`owns_session` tells the sessions whose outputs come here, where that is not all."""
        self._log, self._topics = log, topics
        self._written = _written(log, topics, since or {}, owns_session)
        self._waiting: dict[str, list[Entry]] = {}
        self.appended: Counter[str] = Counter()  # records since the start, by topic

    def add(self, output: Encoded) -> None:
        if not self._written or not self._was_written(output):
            self._waiting.setdefault(output.topic, []).append(Entry(output.key, output.payload))

    def flush(self) -> None:
        for topic, entries in self._waiting.items():
            self._log.append(topic, entries)
            self.appended[topic] += len(entries)
        self._waiting = {}

    def positions(self) -> Offsets:
        return {topic: self._log.end_offsets(topic) for topic in self._topics}

    def _was_written(self, output: Encoded) -> bool:
        """An id may stand for several records in turn (a request repeated long after it was forgotten)."""
        name = output.topic, output.key, output.id
        digests = self._written.get(name)
        if not digests:
            return False
        digest = xxhash.xxh3_128_digest(output.payload)
        if digest not in digests:
            found = f"{output.topic} record {output.id!r} was written before with other bytes than it has now"
            cause = "the events, the config or the program have changed since"
            message = f"{found}: {cause}; go back to those, or start anew with new output topics"
            raise TwoContentsError(message)
        digests.remove(digest)
        if not digests:
            del self._written[name]
        return True


class WriteToOutbox(beam.DoFn):
    """Appends to the log at the end of each bundle, so that a snapshot never is ahead of the outputs."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def process(self, element: Encoded) -> None:
        self._outbox.add(element)

    def finish_bundle(self) -> None:
        self._outbox.flush()


def _written(
    log: EventLog, topics: Iterable[str], since: Offsets, owns_session: Callable[[str], bool] | None
) -> dict[tuple[str, str, str], list[bytes]]:
    """Digests of the records behind the offsets, by topic, key and id, in the order in which they were written."""
    written: dict[tuple[str, str, str], list[bytes]] = {}
    for topic in topics:
        for record in read_all(log, topic, since.get(topic)):
            if owns_session is not None and topic != DEAD_LETTERS and not owns_session(record.key):
                continue
            name = identity(topic, record.payload)
            if name is not None:
                digest = xxhash.xxh3_128_digest(record.payload)
                written.setdefault((topic, record.key, name), []).append(digest)
    return written

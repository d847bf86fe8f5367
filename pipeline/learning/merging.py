"""Several topics in one order: by stamp, then topic, partition and offset, however they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline.logs.log import EventLog
from pipeline.logs.ordered import OrderedReader


class Told(NamedTuple):
    """A record, and whose it is."""

    partition: int
    offset: int
    appended_at_ms: int
    key: str
    payload: bytes
    topic: str


class MergedReader:
    """Reads each topic from its positions. A record is given out once no topic can have one that comes before it."""

    def __init__(
        self, log: EventLog, positions: Mapping[str, Mapping[int, int]], clock_ms: Callable[[], int], skew_ms: int
    ) -> None:
        """Topics of equal stamps come in the order of `positions`. Raises LogError where one is not there."""
        self._readers = {topic: OrderedReader(log, topic, at, clock_ms, skew_ms) for topic, at in positions.items()}
        self._held: dict[str, deque[Told]] = {topic: deque() for topic in positions}

    def poll(self, limit: int) -> list[Told]:
        """At most `limit` records, next in the order; empty when none can be given out yet. Never blocks."""
        for topic, reader in self._readers.items():
            held = self._held[topic]
            held.extend(Told(*record, topic) for record in reader.poll(max(0, limit - len(held))))
        released: list[Told] = []
        while len(released) < limit and (first := self._first()) is not None:
            released.append(self._held[first].popleft())
        return released

    def caught_up(self) -> bool:
        """Whether all was given out that the log held when it was last polled."""
        return not any(self._held.values()) and all(reader.caught_up() for reader in self._readers.values())

    def _first(self) -> str | None:
        """The topic whose next record comes first; None while another may have an earlier one to come."""
        lows = []
        for order, (topic, reader) in enumerate(self._readers.items()):
            held = self._held[topic]
            lows.append((held[0].appended_at_ms if held else reader.low_stamp_ms, order, topic))
        topic = min(lows)[2]
        return topic if self._held[topic] else None

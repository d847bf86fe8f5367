"""Reading output topics back, without decoding more of a record than is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Raw, Struct

from pipeline.logs.log import SAMPLES, EventLog, Record

_READ = 250  # records, of up to 1 MB each


class PageHead(Struct):
    request_id: str
    session_id: str


class PageIdentity(Struct):
    impression: PageHead
    feedback: list[Raw] = []

    @property
    def id(self) -> str:
        return self.impression.request_id


class Identity(Struct):
    id: str


_page = msgspec.json.Decoder(PageIdentity)
_other = msgspec.json.Decoder(Identity)


def page_identity(payload: bytes) -> PageIdentity:
    return _page.decode(payload)


def identity(topic: str, payload: bytes) -> str | None:
    """The id of a record; None for bytes that are no record (a line of the log that was damaged)."""
    try:
        return (_page if topic == SAMPLES else _other).decode(payload).id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_all(log: EventLog, topic: str, since: Mapping[int, int] | None = None) -> Iterator[Record]:
    """All records of a topic that are there now, from the offsets on."""
    for partition, end in end_offsets(log, topic).items():
        offset = (since or {}).get(partition, 0)
        while offset != end:  # an offset behind the end is the log's to complain about
            records = log.read(topic, partition, offset, min(_READ, max(end - offset, 1)))
            yield from records
            offset += len(records)


def end_offsets(log: EventLog, topic: str) -> dict[int, int]:
    return {partition: log.end_offset(topic, partition) for partition in range(log.partitions(topic))}

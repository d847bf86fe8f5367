"""Reading output topics back, without decoding more of a record than is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Raw, Struct

from pipeline.logs.log import SAMPLES, EventLog, Record
from pipeline.logs.reading import check_not_past_end, read_on

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
    """All records of a topic that are there now, from the offsets on; from what is left of its start without them."""
    for partition, end in log.end_offsets(topic).items():
        start = (since or {}).get(partition)
        offset = log.start_offset(topic, partition) if start is None else start
        check_not_past_end(topic, partition, offset, end)
        while offset < end:
            records, following = read_on(log, topic, partition, offset, min(_READ, end - offset))
            yield from records
            if following == offset:  # the rest is not committed yet
                break
            offset = following

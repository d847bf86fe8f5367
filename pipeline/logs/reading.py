"""What all readers of a log have in common."""

from __future__ import annotations

from pipeline.logs.log import EventLog, LogError, Record


def read_on(log: EventLog, topic: str, partition: int, offset: int, limit: int) -> tuple[list[Record], int]:
    """Records, and the offset to go on from. Offsets may have gaps, so that counting records does not give it."""
    records = log.read(topic, partition, offset, limit)
    return records, records[-1].offset + 1 if records else log.past_gap(topic, partition, offset)


def check_not_past_end(topic: str, partition: int, offset: int, end: int) -> None:
    if offset > end:
        found = f"offset {offset} is past the end, {end}"
        message = f"topic {topic!r}, partition {partition}: {found}; the log was cut or replaced"
        raise LogError(message)

"""The replay's records, read again from the log after a restart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.learning.progress import Saved
from pipeline.learning.replay import Origins
from pipeline.logs.log import TRANSITIONS, EventLog, Record
from pipeline.logs.reading import read_on

_READ_AT_ONCE = 512


def origins_of(saved: Saved) -> Origins:
    return Origins(np.frombuffer(saved.partitions, "<i4"), np.frombuffer(saved.offsets, "<i8"))


def held_out_origins_of(saved: Saved) -> Origins:
    return Origins(np.frombuffer(saved.held_out_partitions, "<i4"), np.frombuffer(saved.held_out_offsets, "<i8"))


def reread(log: EventLog, origins: Origins) -> Iterator[Record | None]:
    """The record of each origin, in order; None for one that the log no longer has.

    Origins of one partition increase in offset, so every partition is read once, from its first origin on.
    """
    cursors: dict[int, Iterator[Record]] = {}
    for partition in np.unique(origins.partitions).tolist():
        of_it = origins.offsets[origins.partitions == partition]
        cursors[partition] = _range(log, partition, int(of_it[0]), int(of_it[-1]))
    ahead: dict[int, Record | None] = {p: next(cursor, None) for p, cursor in cursors.items()}
    for partition, offset in zip(origins.partitions.tolist(), origins.offsets.tolist(), strict=True):
        while (record := ahead[partition]) is not None and record.offset < offset:
            ahead[partition] = next(cursors[partition], None)
        yield record if record is not None and record.offset == offset else None


def _range(log: EventLog, partition: int, first: int, last: int) -> Iterator[Record]:
    offset = max(first, log.start_offset(TRANSITIONS, partition))
    while offset <= last:
        records, following = read_on(log, TRANSITIONS, partition, offset, min(_READ_AT_ONCE, last - offset + 1))
        yield from records
        if following == offset:
            return
        offset = following

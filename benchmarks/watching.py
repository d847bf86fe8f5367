"""What is seen of a stream at work, from outside: its load, how fresh its samples are; and its log kept short."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pipeline.logs.log import SAMPLES, EventLog
from pipeline.streaming.outputs import read_all


class Load(NamedTuple):
    rss_mb: float
    cpu_s: float  # in all, since each process began
    starved_s: float  # the same, of the time in which its main thread could have run, and had no core


def load(pids: Sequence[int]) -> Load:
    """Of the processes together, as Linux tells it."""
    pages, ticks, waited_ns = 0, 0, 0
    for pid in pids:
        pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # proc(5): utime and stime, fields 14 and 15
        waited_ns += int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    return Load(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, ticks / os.sysconf("SC_CLK_TCK"), waited_ns / 1e9)


class _Closed(Struct):
    closed_ms: int


class Fresh:
    """Of the samples that were written since it was last asked: when, after they could be decided."""

    def __init__(self, log: EventLog, lateness_ms: int) -> None:
        self._log, self._lateness_ms = log, lateness_ms
        self._ends = log.end_offsets(SAMPLES)

    def lags_ms(self) -> Iterator[float]:
        for record in read_all(self._log, SAMPLES, self._ends):
            closed_ms = msgspec.json.decode(record.payload, type=_Closed).closed_ms
            self._ends[record.partition] = record.offset + 1
            yield record.appended_at_ms - closed_ms - self._lateness_ms


def delete_old(log: Path, kept_s: float) -> None:
    """Segments of a file log that have not been written for so long, but for each partition's last."""
    for partition in log.glob("*/partition-*"):
        for segment in sorted(partition.glob("*.jsonl"))[:-1]:
            if time.time() - segment.stat().st_mtime > kept_s:
                segment.unlink()

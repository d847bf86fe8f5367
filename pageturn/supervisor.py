"""The parts of a loop on one machine: each is started again when it ends, whatever ended it.

For laptops, tests and single machines; in a cluster that is the cluster's work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from pageturn.processes import Process

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_SETTLED_S = 20.0  # a part that ran for so long is started again at once


class Part(NamedTuple):
    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    repeats: bool = True  # False: it may end by itself, with status 0


class PartEvent(Struct, frozen=True, omit_defaults=True):
    """A line of the journal."""

    time_ms: int
    part: str
    event: Literal["started", "ended"]
    pid: int
    status: int | None = None  # of one that ended; negative: the signal


class PartState(NamedTuple):
    name: str
    pid: int | None  # None: it has ended, and is started again after a pause, or was not to run for ever
    starts: int


class _Kept:
    """A part and its present process."""

    def __init__(self, part: Part, process: Process, now_s: float) -> None:
        self.part, self.process = part, process
        self.started_s, self.starts = now_s, 1
        self.pause_s = _FIRST_PAUSE_S
        self.again_at_s: float | None = None  # while it has ended
        self.done = False


class Supervisor:
    """Parts are stopped in the reverse order of `add`. `watch` begins to start again what ends."""

    def __init__(self, logs: Path, journal: Path) -> None:
        self._logs, self._journal = logs, journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, _Kept] = {}
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, part: Part) -> None:
        with self._turn:
            process = self._process(part)
            self._kept[part.name] = _Kept(part, process, time.monotonic())
            self._record(PartEvent(_now_ms(), part.name, "started", process.pid))

    def check(self) -> None:
        """Raise ProcessError if a part has ended: before `watch`, that is a mistake in how it was started."""
        for kept in list(self._kept.values()):
            if not kept.done:
                kept.process.check()

    def watch(self) -> None:
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def states(self) -> list[PartState]:
        with self._turn:
            return [
                PartState(name, None if kept.again_at_s or kept.done else kept.process.pid, kept.starts)
                for name, kept in self._kept.items()
            ]

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._turn:
            for kept in reversed(self._kept.values()):
                if kept.process.status is None:
                    kept.process.stop()
                    self._ended(kept)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with self._turn:
                for kept in self._kept.values():
                    self._look(kept, time.monotonic())

    def _look(self, kept: _Kept, now_s: float) -> None:
        if kept.done:
            return
        if kept.again_at_s is not None:
            if now_s >= kept.again_at_s:
                self._start_again(kept, now_s)
            return
        if kept.process.status is None:
            return
        self._ended(kept)
        if not kept.part.repeats and kept.process.status == 0:
            kept.done = True
            return
        kept.pause_s = (
            _FIRST_PAUSE_S if now_s - kept.started_s > _SETTLED_S else min(2 * kept.pause_s, _LONGEST_PAUSE_S)
        )
        kept.again_at_s = now_s + kept.pause_s
        _LOG.warning("%s ended with status %d; see %s", kept.part.name, kept.process.status, kept.process.log)

    def _start_again(self, kept: _Kept, now_s: float) -> None:
        kept.process = self._process(kept.part)
        kept.started_s, kept.again_at_s = now_s, None
        kept.starts += 1
        self._record(PartEvent(_now_ms(), kept.part.name, "started", kept.process.pid))

    def _process(self, part: Part) -> Process:
        return Process(part.name, part.command, self._logs, part.env)

    def _ended(self, kept: _Kept) -> None:
        self._record(PartEvent(_now_ms(), kept.part.name, "ended", kept.process.pid, kept.process.status))

    def _record(self, event: PartEvent) -> None:
        with self._journal.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")


def read_journal(journal: Path) -> Iterator[PartEvent]:
    """Whole lines: the last one may be on its way."""
    if journal.exists():
        for line in journal.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=PartEvent)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

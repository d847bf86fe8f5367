"""The parts of a loop on one machine: each is started again when it ends, whatever ended it. One that has an end of its
own may come to it: it is done when it ends well.

For laptops, tests and single machines; in a cluster that is the cluster's work.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from pageturn.lines import lines_of
from pageturn.processes import Process, ProcessError
from pipeline import durable

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_SETTLED_S = 20.0  # a part that ran for so long is started again at once
_HOPELESS = 6  # short lives in a row


class Part(NamedTuple):
    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    has_end: bool = False  # it is not started again after it has ended with status 0
    grace_s: float = 30.0  # from SIGTERM to SIGKILL; the trainer writes a checkpoint first


class PartEvent(Struct, frozen=True, omit_defaults=True):
    """A line of the journal."""

    time_ms: int
    part: str
    event: Literal["started", "ended"]
    pid: int
    status: int | None = None  # of one that ended; negative: the signal


class PartState(NamedTuple):
    name: str
    pid: int | None  # None: it has ended, and is started again after a pause unless it is done
    starts: int


class _Kept:
    """A part and its present process."""

    def __init__(self, part: Part, process: Process, now_s: float) -> None:
        self.part, self.process = part, process
        self.started_s, self.starts = now_s, 1
        self.short_lives = 0  # in a row
        self.again_at_s: float | None = None  # set while it has ended; infinite: it is done

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.again_at_s is None else None


class Supervisor:
    """Belongs to one thread, which starts, watches and stops the parts: the kernel ends them with that thread.

    Others may ask for `states`.
    """

    def __init__(self, logs: Path, journal: Path) -> None:
        self._logs, self._journal = logs, journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, _Kept] = {}

    def add(self, part: Part) -> None:
        process = self._process(part)
        self._kept[part.name] = _Kept(part, process, time.monotonic())
        self._record(PartEvent(_now_ms(), part.name, "started", process.pid))

    def check(self) -> None:
        """Raise ProcessError if a part has ended. Before `watch` that is a mistake in how it was started."""
        for kept in self._kept.values():
            kept.process.check()

    def watch(
        self, stop: threading.Event, seconds: float = math.inf, enough: Callable[[], bool] = lambda: False
    ) -> bool:
        """Start again what ends, for so long, or until it is enough or `stop` is set; returns whether it is set."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and not enough():
            for kept in self._kept.values():
                self._look(kept, time.monotonic())
            if stop.wait(min(_LOOK_S, left_s)):
                return True
        return stop.is_set()

    def check_settled(self) -> None:
        """Raise ProcessError if a part ends again and again as soon as it is started."""
        for kept in self._kept.values():
            if kept.short_lives >= _HOPELESS:
                raise ProcessError(kept.process.report(f"ended soon {kept.short_lives} times in a row"))

    def states(self) -> list[PartState]:
        return [PartState(name, kept.pid, kept.starts) for name, kept in self._kept.items()]

    def is_done(self, name: str) -> bool:
        return self._kept[name].again_at_s == math.inf

    def hold(self, name: str) -> None:
        """Stop a part, and leave it so until `release`."""
        kept = self._kept[name]
        kept.process.stop(kept.part.grace_s)
        if kept.again_at_s is None:
            self._ended(kept)
        kept.again_at_s = math.inf

    def release(self, name: str) -> None:
        """Start a part that was held; `watch` does it."""
        self._kept[name].again_at_s = time.monotonic()

    def stop(self) -> None:
        """The part that was added last is stopped first."""
        for kept in reversed(self._kept.values()):
            kept.process.stop(kept.part.grace_s)
            if kept.again_at_s is None:
                self._ended(kept)

    def _look(self, kept: _Kept, now_s: float) -> None:
        try:
            if kept.again_at_s is None and kept.process.status is not None:
                self._ended(kept)
                if kept.part.has_end and kept.process.status == 0:
                    kept.again_at_s = math.inf
                    return
                kept.again_at_s = now_s + self._pause_s(kept, now_s)
                _LOG.warning("%s ended with status %d; see %s", kept.part.name, kept.process.status, kept.process.log)
            elif kept.again_at_s is not None and now_s >= kept.again_at_s:
                self._start_again(kept, now_s)
        except OSError as error:  # no process to be had, no file for its output
            _LOG.error("%s cannot be started again yet: %s", kept.part.name, error)
            kept.again_at_s = now_s + _LONGEST_PAUSE_S

    def _pause_s(self, kept: _Kept, now_s: float) -> float:
        settled = now_s - kept.started_s > _SETTLED_S
        kept.short_lives = 0 if settled else kept.short_lives + 1
        return float(min(_FIRST_PAUSE_S * 2**kept.short_lives, _LONGEST_PAUSE_S))

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
        try:
            durable.append_line(self._journal, msgspec.json.encode(event))
        except OSError as error:  # a full disk is no reason to leave parts alone
            _LOG.error("%s cannot be written: %s", self._journal, error)


def read_journal(journal: Path) -> Iterator[PartEvent]:
    return lines_of(journal, PartEvent)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

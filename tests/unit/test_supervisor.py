"""Parts that end are started again, with growing pauses; what is stopped stays so."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageturn import supervisor as module
from pageturn.processes import Process, ProcessError
from pageturn.supervisor import Part, PartEvent, Supervisor, read_journal
from pipeline.durable import appending

STAYS = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
ENDS = [sys.executable, "-c", ""]
FAILS = [sys.executable, "-c", "raise SystemExit('what went wrong')"]
PATIENCE_S = 250  # nothing rests on it


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    kept = Supervisor(tmp_path, tmp_path / "parts.jsonl")
    yield kept
    kept.stop()


def watch_until(supervisor: Supervisor, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        supervisor.watch(threading.Event(), 0.05)


def events(tmp_path: Path, part: str) -> list[PartEvent]:
    return [event for event in read_journal(tmp_path / "parts.jsonl") if event.part == part]


def pid(supervisor: Supervisor, part: str = "a") -> int | None:
    return next(state.pid for state in supervisor.states() if state.name == part)


def killed_and_back(supervisor: Supervisor, part: str = "a") -> tuple[int, int]:
    """The process that was, and the one that is."""
    before = pid(supervisor, part)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    watch_until(supervisor, lambda: pid(supervisor, part) not in (None, before))
    after = pid(supervisor, part)
    assert after is not None
    return before, after


def test_a_killed_part_is_started_again(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.add(Part("a", STAYS))
    before, after = killed_and_back(supervisor)
    told = [(event.event, event.pid, event.status) for event in events(tmp_path, "a")]
    assert told == [("started", before, None), ("ended", before, -9), ("started", after, None)]


def test_a_part_that_has_come_to_its_end_is_done(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.add(Part("a", ENDS, has_end=True))
    supervisor.add(Part("b", ENDS))
    watch_until(supervisor, lambda: len(events(tmp_path, "b")) >= 3)
    assert [supervisor.is_done(name) for name in "ab"] == [True, False]
    assert pid(supervisor) is None
    supervisor.stop()
    assert [(event.event, event.status) for event in events(tmp_path, "a")] == [("started", None), ("ended", 0)]


@pytest.mark.parametrize("command", [FAILS, STAYS])
def test_one_that_ends_before_is_started_again(tmp_path: Path, supervisor: Supervisor, command: list[str]) -> None:
    supervisor.add(Part("a", command, has_end=True))
    if command is STAYS:
        killed_and_back(supervisor)
    watch_until(supervisor, lambda: len(events(tmp_path, "a")) >= 3)
    assert not supervisor.is_done("a")


def test_enough_is_seen_at_once(supervisor: Supervisor) -> None:
    supervisor.add(Part("a", ENDS, has_end=True))
    assert not supervisor.watch(threading.Event(), 600, lambda: supervisor.is_done("a"))
    assert supervisor.is_done("a")


class Ticking:
    """In the place of `time`, one clock for all: it goes on when it is asked for, however long that takes here."""

    def __init__(self) -> None:
        self._now_ms = 0

    def monotonic(self) -> float:
        self._now_ms += 10
        return self._now_ms / 1000

    def time_ns(self) -> int:
        return self._now_ms * 1_000_000


def test_pauses_grow_while_it_fails(tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Ticking())
    monkeypatch.setattr(module, "_SETTLED_S", math.inf)  # however long Python takes to start
    supervisor.add(Part("a", FAILS))
    watch_until(supervisor, lambda: len(events(tmp_path, "a")) >= 7)
    times = {(event.event, i // 2): event.time_ms for i, event in enumerate(events(tmp_path, "a"))}
    pauses = [times["started", i + 1] - times["ended", i] for i in range(3)]
    first_ms = 1000 * module._FIRST_PAUSE_S
    assert pauses[0] >= 2 * first_ms
    assert pauses[1] >= 4 * first_ms
    assert pauses[2] >= 8 * first_ms


def test_a_part_that_never_settles_is_told(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    supervisor.add(Part("a", FAILS))
    supervisor.check_settled()
    watch_until(supervisor, lambda: len(events(tmp_path, "a")) >= 2 * module._HOPELESS)
    with pytest.raises(ProcessError, match=r"a ended soon 6 times in a row(.|\n)*what went wrong"):
        supervisor.check_settled()


def test_what_cannot_be_started_again_is_tried_again_and_the_others_are_looked_after(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.5)
    for name in ("a", "b"):
        supervisor.add(Part(name, STAYS))
    usual, refusals = supervisor._process, [OSError("no process to be had")]

    def process(part: Part) -> Process:
        if part.name == "a" and refusals:
            raise refusals.pop()
        return usual(part)

    monkeypatch.setattr(supervisor, "_process", process)
    killed_and_back(supervisor, "a")
    assert not refusals
    killed_and_back(supervisor, "b")


def test_watching_ends_when_it_is_told_to(supervisor: Supervisor) -> None:
    stop = threading.Event()
    assert not supervisor.watch(stop, 0.01)
    stop.set()
    assert supervisor.watch(stop, 600)
    assert supervisor.watch(stop)


def test_before_it_watches_an_end_is_a_mistake_that_is_shown(supervisor: Supervisor) -> None:
    supervisor.add(Part("a", FAILS))
    deadline = time.monotonic() + PATIENCE_S
    while supervisor._kept["a"].process.status is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ProcessError, match=r"a ended with status 1(.|\n)*what went wrong"):
        supervisor.check()


def test_parts_are_stopped_the_last_first(tmp_path: Path, supervisor: Supervisor) -> None:
    """Also those that were started again."""
    for name in ("first", "second", "third"):
        supervisor.add(Part(name, STAYS))
    killed_and_back(supervisor, "second")
    supervisor.stop()
    ends = [(event.part, event.status) for event in read_journal(tmp_path / "parts.jsonl") if event.event == "ended"]
    assert ends == [("second", -9), ("third", -15), ("second", -15), ("first", -15)]


def test_a_part_has_the_environment_that_it_is_given(tmp_path: Path, supervisor: Supervisor) -> None:
    code = "import os, time; print(os.environ['GIVEN'], flush=True); time.sleep(600)"
    supervisor.add(Part("a", [sys.executable, "-c", code], {"GIVEN": "yes"}))
    watch_until(supervisor, lambda: (tmp_path / "a.log").read_text() == "yes\n")


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    journal = tmp_path / "parts.jsonl"
    assert list(read_journal(journal)) == []
    journal.write_text('{"time_ms":1,"part":"a","event":"started","pid":2}\n{"time_ms":2,"pa')
    assert list(read_journal(journal)) == [PartEvent(1, "a", "started", 2)]
    with appending(journal) as file:  # its writer was killed
        file.write(b'{"time_ms":3,"part":"a","event":"started","pid":4}\n')
    assert [event.time_ms for event in read_journal(journal)] == [1, 3]

"""Parts that end are started again, with growing pauses; what is stopped stays so."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageturn import supervisor as module
from pageturn.processes import ProcessError
from pageturn.supervisor import Part, PartEvent, Supervisor, read_journal

STAYS = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
ENDS_WELL = [sys.executable, "-c", "print('done')"]
FAILS = [sys.executable, "-c", "raise SystemExit('what went wrong')"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    kept = Supervisor(tmp_path, tmp_path / "parts.jsonl")
    yield kept
    kept.stop()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def events(tmp_path: Path, part: str) -> list[PartEvent]:
    return [event for event in read_journal(tmp_path / "parts.jsonl") if event.part == part]


def pid(supervisor: Supervisor) -> int | None:
    [state] = supervisor.states()
    return state.pid


def test_a_killed_part_is_started_again(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.add(Part("a", STAYS))
    supervisor.watch()
    first = pid(supervisor)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pid(supervisor) not in (None, first))
    told = [(event.event, event.pid, event.status) for event in events(tmp_path, "a")]
    assert told == [("started", first, None), ("ended", first, -9), ("started", pid(supervisor), None)]


def test_pauses_grow_while_it_fails(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.add(Part("a", FAILS))
    supervisor.watch()
    eventually(lambda: len(events(tmp_path, "a")) >= 7)
    times = {(event.event, i // 2): event.time_ms for i, event in enumerate(events(tmp_path, "a"))}
    pauses = [times["started", i + 1] - times["ended", i] for i in range(3)]
    assert pauses[0] >= 1000 * 2 * module._FIRST_PAUSE_S
    assert pauses[1] >= 2 * 1000 * 2 * module._FIRST_PAUSE_S
    assert pauses[2] >= 4 * 1000 * 2 * module._FIRST_PAUSE_S


def test_a_part_that_may_end_is_left_alone_when_it_ends_well(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.add(Part("a", ENDS_WELL, repeats=False))
    supervisor.watch()
    eventually(lambda: pid(supervisor) is None)
    supervisor.check()  # no complaint
    time.sleep(0.5)
    assert [event.event for event in events(tmp_path, "a")] == ["started", "ended"]


def test_before_it_watches_an_end_is_a_mistake_that_is_shown(supervisor: Supervisor) -> None:
    supervisor.add(Part("a", FAILS))

    def ended() -> bool:
        try:
            supervisor.check()
        except ProcessError as error:
            return "a ended with status 1" in str(error) and "what went wrong" in str(error)
        return False

    eventually(ended)


def test_parts_are_stopped_the_last_first(tmp_path: Path, supervisor: Supervisor) -> None:
    for name in ("first", "second", "third"):
        supervisor.add(Part(name, STAYS))
    supervisor.watch()
    supervisor.stop()
    ends = [event.part for event in read_journal(tmp_path / "parts.jsonl") if event.event == "ended"]
    assert ends == ["third", "second", "first"]
    assert all(event.status == -signal.SIGTERM for event in events(tmp_path, "first") if event.event == "ended")


def test_a_part_has_the_environment_that_it_is_given(tmp_path: Path, supervisor: Supervisor) -> None:
    code = "import os, time; print(os.environ['GIVEN'], flush=True); time.sleep(600)"
    supervisor.add(Part("a", [sys.executable, "-c", code], {"GIVEN": "yes"}))
    eventually(lambda: (tmp_path / "a.log").read_text() == "yes\n")


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    journal = tmp_path / "parts.jsonl"
    assert list(read_journal(journal)) == []
    journal.write_text('{"time_ms":1,"part":"a","event":"started","pid":2}\n{"time_ms":2,"pa')
    assert list(read_journal(journal)) == [PartEvent(1, "a", "started", 2)]

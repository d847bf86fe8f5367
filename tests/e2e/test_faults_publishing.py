"""Faults on the way from the trainer to what is served, one after another in one loop. See faulty_matrix.py."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from model_export.candidate import MODEL, RECORD, CandidateError, decode_candidate, encode_candidate, file_digests
from tests.e2e.faulty_loop import Loop, eventually
from tests.e2e.faulty_matrix import Fault, agent, check_whole, controller, decided_pages, endure, publish
from tests.unit.test_publisher import STEPS

DAY_MS = 86_400_000
LITTLE_ROOM = 4_096  # bytes that any file may grow to on a disk that is nearly full
pytestmark = [pytest.mark.timeout(900), pytest.mark.needs_redis]


# Controllers -----------------------------------------------------------------------------------------------------


def controller_dies_at_every_step(loop: Loop) -> Iterator[None]:
    """Each that is started goes on with what the one before has left, and dies after the next step."""
    loop.order("one", _dies_after(STEPS[0]))
    candidate = loop.trainer.candidate()
    try:
        for step, coming in zip(STEPS, (*STEPS[1:], None), strict=True):
            eventually(lambda: loop.ended("one") is not None, f"death of the controller after {step}")
            assert loop.ended("one") == -signal.SIGKILL
            if coming == STEPS[-1]:
                break
            loop.start_controller("one", _dies_after(coming))
    finally:
        loop.bring_back()
    eventually(lambda: loop.verdicts().get(candidate) == "accepted", "the version that nine controllers published")
    assert len(loop.candidates()) == len(set(loop.candidates().values()))  # once
    yield


def _dies_after(step: str) -> str:
    return f"{int(signal.SIGKILL)} {step}"


def controller_dies_when_all_is_done(loop: Loop) -> Iterator[None]:
    loop.order("one", _dies_after(STEPS[-1]))
    candidate = loop.trainer.candidate()
    try:
        eventually(lambda: loop.ended("one") is not None, "death of the controller after the last step")
        assert loop.verdicts()[candidate] == "accepted"
        yield
    finally:
        loop.bring_back()
    publish(loop)


def two_controllers(loop: Loop) -> Iterator[None]:
    """The first stands still while it publishes, until the second has taken over; then it wants to go on."""
    loop.start_controller("two")
    loop.order("one", f"{int(signal.SIGSTOP)} requested")
    try:
        candidate = loop.trainer.candidate()
        eventually(lambda: loop.stands_still("one"), "a controller that stands still")
        eventually(lambda: loop.told("resumed", "two") == 1, "the second controller at work")
        eventually(lambda: loop.verdicts().get(candidate) == "accepted", "the version")
        fence = loop.fence()
        loop.signal_controller("one", signal.SIGCONT)
        yield
        assert loop.fence() == fence  # it has written nothing
        assert (loop.told("holds_lease"), loop.told("holds_lease", "two")) == (0, 1)
    finally:
        loop.bring_back()
        loop.dismiss_controller("two")
    eventually(lambda: loop.told("holds_lease") == 1, "the first controller in charge")


# Disks and files -------------------------------------------------------------------------------------------------


def disk_is_full_at_the_controller(loop: Loop) -> Iterator[None]:
    with little_room(loop.controller_pid()):
        candidate = loop.trainer.candidate()
        yield
        assert candidate not in loop.candidates().values()
    eventually(lambda: loop.verdicts().get(candidate) == "accepted", "the version, once there is room")


def disk_is_full_at_the_trainer(loop: Loop) -> Iterator[None]:
    """And at the agent, whose events wait for room."""
    known = set(loop.verdicts())
    with little_room(os.getpid()):
        with pytest.raises(CandidateError, match="cannot be written"):
            loop.trainer.candidate()
        yield
    assert set(loop.verdicts()) == known
    publish(loop)


@contextmanager
def little_room(pid: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (LITTLE_ROOM, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def model_is_corrupt(loop: Loop) -> Iterator[None]:
    """Once on its way to staging, once already when its digests were taken."""

    def torn(folder: Path) -> None:
        model = folder / MODEL / "saved_model.pb"
        model.write_bytes(model.read_bytes()[:1_000])

    def torn_from_the_first(folder: Path) -> None:
        torn(folder)
        record = msgspec.structs.replace(decode_candidate(folder / RECORD), files=file_digests(folder / MODEL))
        (folder / RECORD).write_bytes(encode_candidate(record))

    before = loop.pointer().stable
    for spoil, reason in ((torn, "unusable"), (torn_from_the_first, "load_failed")):
        candidate = loop.trainer.candidate(spoil)
        eventually(lambda refused=candidate: refused in loop.verdicts(), "a verdict")
        assert (loop.verdicts()[candidate], loop.pointer().stable) == (reason, before)
    yield


# Clocks ----------------------------------------------------------------------------------------------------------


def clock_jumps_back(loop: Loop) -> Iterator[None]:
    """A day, at agent and controller. The lease is renewed all the same: the store's clock goes on."""
    term = loop.told("terms_ended", cause="lease")
    loop.offset_ms.value -= DAY_MS
    yield
    left_ms = loop.lease_left_ms()
    eventually(lambda: loop.lease_left_ms() > left_ms, "a lease that was renewed")
    publish(loop)
    assert loop.told("terms_ended", cause="lease") == term


def trainer_stands_still_for_days(loop: Loop) -> Iterator[None]:
    """By the clocks of agent and controller. The old version goes on; nothing else is there."""
    stable, since = loop.pointer().stable, len(loop.pages)
    assert stable is not None
    loop.offset_ms.value += 2 * DAY_MS
    eventually(lambda: loop.policy_decides(since, stable.version), "pages by the old version")
    yield
    publish(loop)  # the gauge comes after the verdict, and after the pages
    eventually(lambda: loop.told("served_version") > stable.version, "a gauge of the new version")
    assert days_served(loop) == 0


def days_served(loop: Loop) -> float:
    """What an alert on an old version looks at."""
    since_ms = 1000 * loop.told("served_since_timestamp_seconds")
    return (loop.now_ms() - since_ms) // DAY_MS if since_ms else 0


# The tests -------------------------------------------------------------------------------------------------------

FAULTS = (
    Fault(controller_dies_at_every_step, controller("resumed")),
    Fault(controller_dies_when_all_is_done, lambda loop: 1 - loop.told("holds_lease")),
    Fault(two_controllers, controller("terms_ended", cause="lease")),
    Fault(disk_is_full_at_the_controller, controller("terms_ended", cause="volume")),
    Fault(disk_is_full_at_the_trainer, agent("event_log_errors")),
    Fault(model_is_corrupt, controller("verdicts", outcome="refused")),
    Fault(clock_jumps_back, controller("clock_jumps")),
    Fault(trainer_stands_still_for_days, days_served),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_page_fails_and_the_policy_decides_again(loop: Loop, fault: Fault) -> None:
    endure(loop, fault)


def test_after_all_of_it_versions_go_out_as_before(loop: Loop) -> None:
    publish(loop)


def test_every_decision_was_made_with_one_version_whole(loop: Loop) -> None:
    decided = decided_pages(loop)
    assert len(decided) > len(FAULTS)
    check_whole(loop, decided)

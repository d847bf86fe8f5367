"""What counts as what: the balance of events is over raw events only."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from pipeline.events import encode
from pipeline.logs.log import DEAD_LETTERS, OUTPUTS, Entry
from pipeline.logs.opening import open_log
from pipeline.records import DeadLetter
from pipeline.streaming.counts import count


@pytest.mark.parametrize(("letter_id", "dead"), [("0:7", 1), ("transitions/0:7", 0)])
def test_a_transition_that_the_trainer_refused_is_no_lost_event(tmp_path: Path, letter_id: str, dead: int) -> None:
    log = open_log(f"file://{tmp_path}/log")
    for topic in OUTPUTS:
        log.create(topic, 1)
    letter = DeadLetter(letter_id, "malformed", "", 5, "s", b"x")
    log.append(DEAD_LETTERS, [Entry("s", encode(letter)), Entry("s", encode(letter))])
    assert count(log, tmp_path / "state").dead == dead


def test_counting_does_not_hold_the_log_in_memory(tmp_path: Path) -> None:
    log = open_log(f"file://{tmp_path}/log")
    for topic in OUTPUTS:
        log.create(topic, 1)
    size = 50_000
    for number in range(2_000):
        letter = DeadLetter(f"0:{number}", "malformed", "", 5, "s", b"x" * size)
        log.append(DEAD_LETTERS, [Entry("s", encode(letter))])
    tracemalloc.start()
    try:
        assert count(log, tmp_path / "state").dead == 2_000
        assert tracemalloc.get_traced_memory()[1] < 1_000 * size
    finally:
        tracemalloc.stop()


def test_who_wants_to_know_more_hears_of_every_record_once(tmp_path: Path) -> None:
    log = open_log(f"file://{tmp_path}/log")
    for topic in OUTPUTS:
        log.create(topic, 1)
    letters = [encode(DeadLetter(f"0:{n}", "malformed", "", 5, "s", b"x")) for n in (1, 2, 1)]
    log.append(DEAD_LETTERS, [Entry("s", letter) for letter in letters])
    heard: list[tuple[str, bytes]] = []
    count(log, tmp_path / "state", lambda topic, record: heard.append((topic, record.payload)))
    assert heard == [(DEAD_LETTERS, letter) for letter in letters[:2]]

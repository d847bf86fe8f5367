"""SIGTERM to each process of a loop while users come: it ends in order, and of what was acknowledged nothing is lost.

`pytest -s` shows the figures. How the archiver and the monitor end is in test_ending.py, what SIGKILL does in
test_live.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pageturn.measures import measure
from pageturn.run import new_run
from pageturn.supervisor import PartEvent, read_journal
from pageturn.table import render
from tests.e2e.test_live import QUICK, RECOVERED, ROOT, Live, eventually, now_ms

pytestmark = pytest.mark.timeout(900)


class Ending(NamedTuple):
    part: str
    took_ms: int
    status: int | None


ENDINGS: list[Ending] = []


@pytest.fixture(scope="module")
def live(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("sigterm")
    text = (ROOT / "feature_configs" / "simulated.yaml").read_text()
    for usual, quick in QUICK.items():
        text = text.replace(usual, quick)
    (folder / "quick.yaml").write_text(text)
    live = Live(new_run(folder / "run", folder / "quick.yaml", seed=4, redis=True))
    live.start()
    yield live
    live.stop()


def end_of(live: Live, part: str, pid: int) -> PartEvent:
    found = [e for e in read_journal(live.run.journal) if (e.part, e.event, e.pid) == (part, "ended", pid)]
    return found[0]


@pytest.mark.parametrize("part", RECOVERED)
def test_a_part_that_is_told_to_end_does_so_in_order_and_the_next_goes_on(live: Live, part: str) -> None:
    eventually(lambda: live.policy_decides(0) and live.trained() > 0, "a loop at work")
    pid, told_ms = live.pid(part), now_ms()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: live.pid(part) not in (None, pid), f"{part} started again")
    again_ms, before, ended = now_ms(), live.done(), end_of(live, part, pid)
    ENDINGS.append(Ending(part, ended.time_ms - told_ms, ended.status))
    assert ended.status == 0
    eventually(lambda: RECOVERED[part](live, again_ms, before), f"{part} at work again")


def test_nothing_is_lost(live: Live) -> None:
    """Of an agent that ends in order not even the impressions of its last answers; of one that is killed, those are."""
    live.stop()
    measures = measure(live.run)
    counts, accounting = measures.counts, measures.accounting
    assert counts is not None
    assert accounting is not None
    rows = [(ending.part, f"ended after {ending.took_ms / 1000:.1f} s, status {ending.status}") for ending in ENDINGS]
    rows += [
        ("answered pages, lost", f"{accounting.answered}, {accounting.lost}"),
        ("acknowledged events, missing", f"{accounting.acknowledged}, {accounting.missing}"),
    ]
    print("\n" + render(rows, "SIGTERM to each part, one after another, while users come"))
    assert accounting.answered > 500
    assert accounting.acknowledged > 500
    assert (accounting.lost, accounting.missing) == (0, 0)
    assert counts.read == counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    assert {ending.part for ending in ENDINGS} == set(RECOVERED)

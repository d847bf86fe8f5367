"""A short closed loop with Redis, on simulated users; its parts are killed, each in turn."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from model_export.verdicts import read_verdicts
from pageturn.loop import running
from pageturn.measures import measure
from pageturn.processes import pageturn
from pageturn.run import Run, new_run
from pageturn.simulating import AskedPage, read_pages
from pageturn.supervisor import Part, Supervisor, read_journal
from pipeline.logs.log import SAMPLES, has_topic
from pipeline.logs.opening import open_log

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"every: 5s": "every: 2s", "min_transitions: 200": "min_transitions: 50"}
PATIENCE_S = 90.0
FLUSHED_S = 2.0  # by then what users saw is in its file
STOPPED = ["traffic", "controller", "agent", "model-server", "trainer", "stream", "store"]  # in this order
LEARNED = {"rl_a", "rl_b"}


class Done(NamedTuple):
    trained: int
    joined: int


class Live:
    """A loop that is up, with users. Its supervisor has a thread of its own."""

    def __init__(self, run: Run) -> None:
        self.run, self.up, self._stop = run, threading.Event(), threading.Event()
        self.supervisor: Supervisor | None = None
        self._thread = threading.Thread(target=self._supervise)

    def start(self) -> None:
        self._thread.start()
        while not self.up.wait(0.1):
            assert self._thread.is_alive(), "the loop did not come up"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _supervise(self) -> None:
        with running(self.run, self._stop, lambda _: None) as self.supervisor:
            users = pageturn("simulate", "--run", str(self.run.folder), "--visits-per-s", "20")
            self.supervisor.add(Part("traffic", users))
            self.up.set()
            self.supervisor.watch(self._stop)

    def pid(self, part: str) -> int | None:
        assert self.supervisor is not None
        return next(state.pid for state in self.supervisor.states() if state.name == part)

    def kill(self, part: str) -> int:
        """SIGKILL; returns the process that was, and is no more."""
        pid = self.pid(part)
        assert pid is not None, part
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.pid(part) != pid, f"end of {part}")
        return pid

    def pages(self, since_ms: int) -> list[AskedPage]:
        return [page for page in read_pages(self.run.traffic) if page.time_ms >= since_ms]

    def by_policy(self, since_ms: int) -> float:
        """Share of the learned buckets' pages; unanswered ones count as theirs."""
        decided = [page.decided_by for page in self.pages(since_ms) if page.bucket in {*LEARNED, None}]
        return decided.count("policy") / len(decided) if decided else 0.0

    def done(self) -> Done:
        return Done(self.trained(), self.joined())

    def joined(self) -> int:
        """Pages."""
        with closing(open_log(self.run.log_url)) as log:
            return log.end_offset(SAMPLES, 0) if has_topic(log, SAMPLES) else 0

    def accepted_since(self, since_ms: int) -> int:
        return sum(v.outcome == "accepted" and v.time_ms > since_ms for v in read_verdicts(self.run.models))

    def trained(self) -> int:
        """Transitions, as of the last line of the trainer's metrics."""
        metrics = self.run.trainer / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        return int(msgspec.json.decode(lines[-1])["transitions"]) if lines else 0


@pytest.fixture(scope="module")
def live(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    text = (ROOT / "feature_configs" / "simulated.yaml").read_text()
    for usual, quick in QUICK.items():
        assert usual in text
        text = text.replace(usual, quick)
    (folder / "quick.yaml").write_text(text)
    run = new_run(folder / "run", folder / "quick.yaml", seed=3, redis=True)
    live = Live(run)
    live.start()
    yield live
    live.stop()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:.0f} s"
        time.sleep(0.1)


def test_it_learns_and_publishes_while_users_come(live: Live) -> None:
    began_ms = now_ms()
    eventually(lambda: live.accepted_since(began_ms) >= 4, "four versions")
    eventually(lambda: any((page.version or 0) >= 2 for page in live.pages(began_ms)), "a page by a new version")
    assert live.by_policy(now_ms() - 3000) > 0.9


# What shows that a part is at work again, given when it was started again and what it had done when it was killed.
RECOVERED: dict[str, Callable[[Live, int, Done], bool]] = {
    "trainer": lambda live, again_ms, before: live.trained() > before.trained,
    "model-server": lambda live, again_ms, before: live.by_policy(max(again_ms, now_ms() - 1000)) > 0.9,
    "stream": lambda live, again_ms, before: live.joined() > before.joined,
    "controller": lambda live, again_ms, before: live.accepted_since(again_ms) > 0,
    "store": lambda live, again_ms, before: live.accepted_since(again_ms) > 0,
    "agent": lambda live, again_ms, before: live.by_policy(max(again_ms, now_ms() - 1000)) > 0.9,
}


@pytest.mark.parametrize("part", RECOVERED)
def test_a_killed_part_is_back_without_a_person(live: Live, part: str) -> None:
    killed_ms, pid = now_ms(), live.kill(part)
    before = live.done()  # what it had done: it is dead
    eventually(lambda: live.pid(part) not in (None, pid), f"{part} started again")
    again_ms = now_ms()
    eventually(lambda: RECOVERED[part](live, again_ms, before), f"{part} at work again")
    time.sleep(FLUSHED_S)
    unanswered = [page for page in live.pages(killed_ms) if page.bucket is None]
    if part == "agent":
        assert {page.trouble for page in unanswered} <= {"UNAVAILABLE", "CANCELLED"}
    else:  # an agent that lives answers every page, whatever else is down; but a machine may hesitate
        assert not [page for page in unanswered if page.trouble != "DEADLINE_EXCEEDED"]
        assert len(unanswered) <= 0.01 * len(live.pages(killed_ms))


def test_afterwards_the_policy_decides_again_and_goes_on_learning(live: Live) -> None:
    began_ms = now_ms()
    eventually(lambda: live.accepted_since(began_ms) >= 2, "two more versions")
    assert live.by_policy(began_ms) >= 0.9


def test_nothing_is_lost(live: Live) -> None:
    live.stop()
    measures = measure(live.run)
    counts, accounting = measures.counts, measures.accounting
    assert counts is not None
    assert accounting is not None
    fates = (counts.joined, counts.duplicate, counts.late, counts.orphan, counts.dead, counts.open)
    assert counts.read == sum(fates) > 0
    assert accounting.acknowledged > 1000
    assert accounting.missing == 0
    assert accounting.lost <= 20  # pages that the agent had just answered when it was killed, some 20 ms of them
    ends = [event for event in read_journal(live.run.journal) if event.event == "ended"]
    assert {event.part for event in ends if event.status == -signal.SIGKILL} == set(RECOVERED)
    assert [event.part for event in ends[-len(STOPPED) :]] == STOPPED  # also those that were started again

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
LEARNED = {"rl_a", "rl_b"}


class Done(NamedTuple):
    trained: int
    joined: int


class Live:
    """A loop that is up, with users."""

    def __init__(self, run: Run, supervisor: Supervisor) -> None:
        self.run, self.supervisor = run, supervisor

    def pid(self, part: str) -> int | None:
        return next(state.pid for state in self.supervisor.states() if state.name == part)

    def kill(self, part: str) -> int:
        """SIGKILL; returns the process that was."""
        pid = self.pid(part)
        assert pid is not None, part
        os.kill(pid, signal.SIGKILL)
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
    with running(run, threading.Event(), lambda _: None) as supervisor:
        users = pageturn("simulate", "--run", str(run.folder), "--visits-per-s", "20")
        supervisor.add(Part("traffic", users))
        yield Live(run, supervisor)


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
    before, killed_ms, pid = live.done(), now_ms(), live.kill(part)
    eventually(lambda: live.pid(part) not in (None, pid), f"{part} started again")
    again_ms = now_ms()
    eventually(lambda: RECOVERED[part](live, again_ms, before), f"{part} at work again")
    unanswered = [page for page in live.pages(killed_ms) if page.bucket is None]
    if part == "agent":
        assert {page.trouble for page in unanswered} <= {"UNAVAILABLE", "CANCELLED"}
    else:
        assert not unanswered  # an agent that lives answers every page, whatever else is down


def test_afterwards_the_policy_decides_again_and_goes_on_learning(live: Live) -> None:
    began_ms = now_ms()
    eventually(lambda: live.accepted_since(began_ms) >= 2, "two more versions")
    assert live.by_policy(began_ms) >= 0.9


def test_nothing_is_lost(live: Live) -> None:
    live.supervisor.stop()
    measures = measure(live.run)
    assert measures.counts.read > 0
    assert measures.accounting.acknowledged > 1000
    assert measures.accounting.missing == 0
    ends = [event for event in read_journal(live.run.journal) if event.event == "ended"]
    assert {event.part for event in ends if event.status == -signal.SIGKILL} == set(RECOVERED)

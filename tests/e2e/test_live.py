"""A short closed loop with Redis, on simulated users; its parts are killed, each in turn.

No verdict rests on how fast the machine is. Users wait for an answer as long as it takes, so a page without one was
failed by the agent, and not by a machine that hesitates; shares are taken over so many pages, and not over seconds; and
where something has to happen by itself, there is a deadline only so that the test ends if it never does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from model_export.verdicts import read_verdicts
from pageturn.lines import Tail
from pageturn.loop import running
from pageturn.measures import measure
from pageturn.measuring.accounting import ids
from pageturn.measuring.learning import learning_rows
from pageturn.measuring.topics import read_topics
from pageturn.processes import pageturn
from pageturn.run import Run, new_run
from pageturn.supervisor import Part, Supervisor, read_journal
from pageturn.traffic_log import PAGES, AskedPage
from pipeline.logs.log import SAMPLES, has_topic
from pipeline.logs.opening import open_log

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"every: 5s": "every: 2s", "min_transitions: 200": "min_transitions: 50"}
PATIENCE_S = 300.0
ANSWER_MS = 30_000  # how long users wait for a page: whatever is down meanwhile, the agent has its own order to show
ENOUGH = 150  # pages of learned buckets, to take a share of
AT_ONCE = 64  # pages that users may ask for: answers within so many of each other are in no order
HELD_UP_MS = 5000  # a thread between its look at the clock and its call
STOPPED = ["traffic", "controller", "agent", "model-server", "trainer", "stream", "store"]  # in this order
LEARNED = {"rl_a", "rl_b"}
pytestmark = pytest.mark.timeout(900)


class Done(NamedTuple):
    trained: int
    joined: int


class Live:
    """A loop that is up, with users. Its supervisor has a thread of its own."""

    def __init__(self, run: Run) -> None:
        self.run, self.up, self._stop = run, threading.Event(), threading.Event()
        self.supervisor: Supervisor | None = None
        self.outage_ms: tuple[int, int] | None = None  # of the agent: from its kill until it was seen at work again
        self._thread = threading.Thread(target=self._supervise)
        self._asked: list[AskedPage] = []
        self._asking = Tail(run.traffic / PAGES, AskedPage)

    def start(self) -> None:
        self._thread.start()
        while not self.up.wait(0.1):
            assert self._thread.is_alive(), "the loop did not come up"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _supervise(self) -> None:
        with running(self.run, self._stop, lambda _: None) as self.supervisor:
            words = ("--run", str(self.run.folder), "--visits-per-s", "20", "--patience-ms", str(ANSWER_MS))
            self.supervisor.add(Part("traffic", pageturn("simulate", *words)))
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

    def pages(self, since_ms: int = 0) -> list[AskedPage]:
        """In the order of their answers."""
        self._asked += self._asking.lines()
        return [page for page in self._asked if page.time_ms >= since_ms]

    def policy_decides(self, since_ms: int) -> bool:
        """At least nine in ten of the newest pages of learned buckets since then; unanswered ones count as theirs."""
        decided = [page.decided_by for page in self.pages(since_ms) if page.bucket in {*LEARNED, None}][-ENOUGH:]
        return len(decided) == ENOUGH and decided.count("policy") >= 0.9 * ENOUGH

    def done(self) -> Done:
        return Done(self.trained(), self.joined())

    def joined(self) -> int:
        """Pages."""
        with closing(open_log(self.run.log_url)) as log:
            return log.end_offset(SAMPLES, 0) if has_topic(log, SAMPLES) else 0

    def accepted_since(self, since_ms: int) -> int:
        return sum(v.outcome == "accepted" and v.time_ms > since_ms for v in read_verdicts(self.run.models))

    def trained(self) -> int:
        """Transitions."""
        rows = learning_rows(self.run.trainer)
        return int(rows[-1]["transitions"]) if rows else 0


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
    eventually(lambda: live.policy_decides(began_ms), "pages by the policies")


# What shows that a part is at work again, given when it was started again and what it had done when it was killed.
RECOVERED: dict[str, Callable[[Live, int, Done], bool]] = {
    "trainer": lambda live, again_ms, before: live.trained() > before.trained,
    "model-server": lambda live, again_ms, before: live.policy_decides(again_ms),
    "stream": lambda live, again_ms, before: live.joined() > before.joined,
    "controller": lambda live, again_ms, before: live.accepted_since(again_ms) > 0,
    "store": lambda live, again_ms, before: live.accepted_since(again_ms) > 0,
    "agent": lambda live, again_ms, before: live.policy_decides(again_ms),
}


@pytest.mark.parametrize("part", RECOVERED)
def test_a_killed_part_is_back_without_a_person(live: Live, part: str) -> None:
    killed_ms, pid = now_ms(), live.kill(part)
    before = live.done()  # what it had done: it is dead
    eventually(lambda: live.pid(part) not in (None, pid), f"{part} started again")
    again_ms = now_ms()
    eventually(lambda: RECOVERED[part](live, again_ms, before), f"{part} at work again")
    if part == "agent":
        live.outage_ms = killed_ms, now_ms()


def test_afterwards_the_policy_decides_again_and_goes_on_learning(live: Live) -> None:
    began_ms = now_ms()
    eventually(lambda: live.accepted_since(began_ms) >= 2, "two more versions")
    eventually(lambda: live.policy_decides(began_ms), "pages by the policies")


def test_an_agent_that_lives_answers_every_page(live: Live) -> None:
    """Whatever else was down."""
    live.stop()
    assert live.outage_ms is not None
    killed_ms, back_ms = live.outage_ms
    unanswered = [page for page in live.pages() if page.bucket is None]
    assert [p for p in unanswered if p.time_ms + p.wait_ms + HELD_UP_MS < killed_ms or p.time_ms > back_ms] == []
    assert {page.trouble for page in unanswered} == {"UNAVAILABLE"}


def test_only_the_last_impressions_of_a_killed_agent_are_lost(live: Live) -> None:
    """It writes them in their order, and an answer does not wait for that."""
    live.stop()
    ended_ms = next(e.time_ms for e in read_journal(live.run.journal) if (e.part, e.event) == ("agent", "ended"))
    answered = [page for page in live.pages() if page.decided_by is not None]
    with closing(open_log(live.run.log_url)) as log:
        found = read_topics(live.run.config(), log, live.run.stream).requests
    lost = set(ids(page.request_id for page in answered).without(found).tolist())
    places = [place for place, page in enumerate(answered) if int(ids([page.request_id]).hashes[0]) in lost]
    by_the_killed = sum(page.time_ms <= ended_ms for page in answered)
    assert len(places) == len(lost)
    assert all(by_the_killed - len(lost) - AT_ONCE <= place < by_the_killed for place in places)


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
    ends = [event for event in read_journal(live.run.journal) if event.event == "ended"]
    assert {event.part for event in ends if event.status == -signal.SIGKILL} == set(RECOVERED)
    assert [event.part for event in ends[-len(STOPPED) :]] == STOPPED  # also those that were started again

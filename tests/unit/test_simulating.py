"""Simulated users against an agent over gRPC, and what is left of them in the folder of a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pageturn.found_agent import FoundAgent
from pageturn.lines import Tail, lines_of
from pageturn.simulating import simulate
from pageturn.traffic_log import (
    CLAIMS,
    EVENTS,
    PAGES,
    VISITS,
    AskedPage,
    Claimed,
    Drive,
    TrafficLog,
    Visit,
    read_acknowledged,
    read_drives,
    read_pages,
    read_past,
    read_unacknowledged,
    read_visits,
)
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server
from pipeline.agent.requests import PageRequest
from pipeline.config.reading import load_config
from pipeline.durable import BusyError, appending, exclusive
from pipeline.errors import PageturnError
from pipeline.records import Feedback, FeedbackKind, Item
from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import World
from pipeline.simulation.returning import Claim, after
from pipeline.simulation.traffic import Flow, Traffic, VirtualClock

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml")
WORLD = World.of(CONFIG)
LONG_S = 250.0  # nothing rests on it
pytestmark = pytest.mark.timeout(900)
QUICK = {"seed": 4, "users": 12, "visits_per_s": 400.0, "pace": 0.001, "transport_ms": 0, "disorder_ms": 1}


class SmallAgent(AgentServicer):
    """Shows candidates as they are sent; keeps what is reported."""

    def __init__(self) -> None:
        self.answer = pb.DecideResponse(bucket="rl_a", decided_by=pb.DECIDED_BY_POLICY, model_version=7)
        self.trouble: grpc.StatusCode | None = None  # of a page
        self.deaf: grpc.StatusCode | None = None  # to reports
        self.asked: list[str] = []
        self.reported: set[str] = set()
        self.on_page: Callable[[], None] = lambda: None  # sees each page come
        self._one_by_one = threading.Lock()

    def Decide(self, request, context):  # noqa: N802
        with self._one_by_one:
            self.asked.append(request.request_id)
            self.on_page()
        if self.trouble is not None:
            context.abort(self.trouble, "no")
        answer = pb.DecideResponse(order=range(len(request.items)))
        answer.MergeFrom(self.answer)
        return answer

    def Report(self, request, context):  # noqa: N802
        if self.deaf is not None:
            context.abort(self.deaf, "no")
        self.reported.update(each.event_id for each in request.feedback)
        return pb.ReportResponse()


class Served(SmallAgent):
    def __init__(self) -> None:
        super().__init__()
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_AgentServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait(LONG_S)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for limit in ("_FINISH_S", "_LAST_REPORTS_S"):  # what is tested is no matter of speed
        monkeypatch.setattr(f"pageturn.simulating.{limit}", LONG_S)
    agent = Served()
    yield agent
    agent.stop()


def drive(
    agent: Served, folder: Path, visits: int | None, stop: threading.Event | None = None, **changes: object
) -> Drive:
    flow, stop = Flow(**(QUICK | changes)), stop or threading.Event()  # type: ignore[arg-type]
    return simulate(CONFIG, lambda: agent.target, folder, flow, stop, visits=visits, decide_s=LONG_S)


def outcomes_of(folder: Path) -> list[Outcome]:
    return sorted((visit.outcome for visit in read_visits(folder)), key=lambda o: (o.user_id, o.visit))


def expected(visits: int) -> list[Outcome]:
    flow, in_order = Flow(**QUICK), list(range(WORLD.params.candidates))  # type: ignore[arg-type]
    found: list[Outcome] = []
    Traffic(
        WORLD, flow, lambda page: in_order, lambda event: None, VirtualClock(), lambda outcome, _: found.append(outcome)
    ).run(visits)
    return sorted(found, key=lambda o: (o.user_id, o.visit))


def test_everything_is_recorded(agent: Served, tmp_path: Path) -> None:
    done = drive(agent, tmp_path, 30)
    assert outcomes_of(tmp_path) == expected(30)
    pages = {page.request_id: page for page in read_pages(tmp_path)}
    assert set(pages) == set(agent.asked)
    for name, page in pages.items():
        assert (page.bucket, page.decided_by, page.reason, page.version, page.trouble) == (
            "rl_a",
            "policy",
            None,
            7,
            None,
        )
        assert page.user_id == f"user-{name.split('-')[1]}"
    assert max(page.late_ms for page in pages.values()) == done.worst_late_ms
    assert set(read_acknowledged(tmp_path)) == agent.reported
    assert list(read_unacknowledged(tmp_path)) == []
    assert list(read_drives(tmp_path)) == [done]
    assert (done.visits, done.unfinished, done.pages, done.unacknowledged) == (30, 0, len(pages), 0)
    outcomes = outcomes_of(tmp_path)
    assert done.sessions == sum(outcome.exposed for outcome in outcomes)
    assert done.reward == pytest.approx(sum(outcome.reward for outcome in outcomes))
    assert done.reported >= len(agent.reported)
    said = (
        f"30 visits, {done.sessions} sessions, reward per session {done.reward / done.sessions:.3f}\n400.0 visits per"
    )
    assert str(done).startswith(said)


def test_a_second_driver_goes_on_where_the_first_has_ended(agent: Served, tmp_path: Path) -> None:
    drive(agent, tmp_path, 17, prefix="a")
    drive(agent, tmp_path, 23, prefix="b")
    assert outcomes_of(tmp_path) == expected(40)
    drive(agent, tmp_path, 3, prefix="c", seed=5)  # other users
    assert sorted(v.outcome.visit for v in read_visits(tmp_path) if v.seed == 5) == [0, 0, 0]


def test_a_fallback_is_told(agent: Served, tmp_path: Path) -> None:
    agent.answer = pb.DecideResponse(bucket="rl_a", decided_by=pb.DECIDED_BY_FALLBACK, fallback_reason="model_timeout")
    drive(agent, tmp_path, 4)
    for page in read_pages(tmp_path):
        assert (page.bucket, page.decided_by, page.reason, page.version) == ("rl_a", "fallback", "model_timeout", None)


def test_a_page_without_an_answer_is_told(agent: Served, tmp_path: Path) -> None:
    agent.trouble = grpc.StatusCode.RESOURCE_EXHAUSTED
    done = drive(agent, tmp_path, 6)
    pages = list(read_pages(tmp_path))
    assert len(pages) == done.pages > 0
    assert {(page.bucket, page.decided_by, page.trouble) for page in pages} == {(None, None, "RESOURCE_EXHAUSTED")}
    assert all(page.user_id for page in pages)
    assert not agent.reported


def test_events_that_are_not_acknowledged_are_told_from_lost_ones(
    agent: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pageturn.simulating._LAST_REPORTS_S", 0.0)
    agent.deaf = grpc.StatusCode.UNAVAILABLE
    done = drive(agent, tmp_path, 8, duplicated=0)
    left = list(read_unacknowledged(tmp_path))
    assert len(left) == len(set(left)) == done.unacknowledged == done.reported > 0
    assert list(read_acknowledged(tmp_path)) == []
    assert f"{len(left)} of {len(left)} events not acknowledged" in str(done)


def test_told_to_stop_it_finishes_the_visits_under_way(agent: Served, tmp_path: Path) -> None:
    stop = threading.Event()
    agent.on_page = lambda: stop.set() if len(agent.asked) > 20 else None
    done = drive(agent, tmp_path, None, stop, users=3000)
    assert done.unfinished == 0
    assert len(list(read_visits(tmp_path))) == done.visits
    drive(agent, tmp_path, 5, users=3000)
    whos = [(o.user_id, o.visit) for o in outcomes_of(tmp_path)]
    assert len(set(whos)) == len(whos) == done.visits + 5


def test_a_folder_has_one_driver(agent: Served, tmp_path: Path) -> None:
    with exclusive(tmp_path / "traffic"), pytest.raises(BusyError, match="in use by another process"):
        drive(agent, tmp_path / "traffic", 1)


# After a kill ----------------------------------------------------------------------------------------------------


def visit(user: int, number: int, clicks: int, exposed: bool = True, seed: int = 4) -> Visit:
    return Visit(1000 + number, seed, Outcome(f"user-{user}", True, exposed, exposed * 2, clicks, visit=number))


def click(number: int) -> Feedback:
    return Feedback(1, f"e{number}", "r", "u", "s", number, FeedbackKind.CLICK, "x")


def test_a_killed_driver_leaves_a_run_that_can_be_read_and_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TrafficLog(tmp_path) as log:
        log.visit(visit(1, 0, 3))
        log.page(AskedPage(1, "r1", 2.5, user_id="user-1"))
        log.acknowledged([click(1)])
    for name in (VISITS, PAGES, EVENTS):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"time_ms":17,"re')
    with TrafficLog(tmp_path) as log:
        log.visit(visit(2, 0, 0))
        log.page(AskedPage(2, "r2", 0.5))
        log.acknowledged([click(2)])
    assert not caplog.records
    assert [v.outcome.user_id for v in read_visits(tmp_path)] == ["user-1", "user-2"]
    assert [(p.request_id, p.user_id) for p in read_pages(tmp_path)] == [("r1", "user-1"), ("r2", "")]
    assert list(read_acknowledged(tmp_path)) == ["e1", "e2"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name}: skipped 1 lines that are not whole" for name in (VISITS, PAGES, EVENTS)
    ]


def test_the_past_of_the_users_is_that_of_their_seed(tmp_path: Path) -> None:
    with TrafficLog(tmp_path) as log:
        for each in (visit(1, 1, 0), visit(1, 0, 3), visit(2, 0, 0, exposed=False), visit(1, 9, 5, seed=8)):
            log.visit(each)
    past = read_past(tmp_path, WORLD.params, Flow(seed=4, users=10))
    start = WORLD.params.loyalty_start
    twice = after(WORLD.params, after(WORLD.params, start, visit(1, 0, 3).outcome), visit(1, 1, 0).outcome)
    assert past.loyalty == {1: twice}  # in the order of the visits; who has not seen the feed is as before
    assert twice not in (start, after(WORLD.params, start, visit(1, 0, 3).outcome))
    assert past.first == 12


def test_what_a_killed_driver_has_begun_does_not_come_again(
    agent: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_kill: list[tuple[str, bytes]] = []

    def look() -> None:
        if len(agent.asked) == 10:
            at_the_kill.extend((name, (tmp_path / "a" / name).read_bytes()) for name in (VISITS, PAGES, CLAIMS))

    agent.on_page = look
    drive(agent, tmp_path / "a", 30, prefix="a")
    (tmp_path / "b").mkdir()
    for name, content in at_the_kill:
        (tmp_path / "b" / name).write_bytes(content)
    asked = {name.rpartition("-")[0][1:] for name in agent.asked[:10]}
    agent.asked.clear()
    drive(agent, tmp_path / "b", 30, prefix="b")
    assert len(asked) > 2
    assert not asked & {name.rpartition("-")[0][1:] for name in agent.asked}


def test_the_last_claim_holds(tmp_path: Path) -> None:
    flow = Flow(seed=4, users=10)
    with TrafficLog(tmp_path) as log:
        for seed, upto in ((4, 100), (4, 57), (5, 300)):
            log.claim(Claimed(1, seed, Claim(10, upto)))
            assert read_past(tmp_path, WORLD.params, flow).first == (100 if upto == 100 else 57)


def test_a_file_that_grows_is_read_as_far_as_its_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    tail = Tail(path, int)
    assert list(tail.lines()) == list(lines_of(path, int)) == []
    for content, found in ((b"1\n2", [1]), (b"0\n", [20]), (b'"x"\n\xff\n\n3\n', [3]), (b"", [])):
        with path.open("ab") as file:
            file.write(content)
        assert list(tail.lines()) == found
    assert tail.skipped == 3
    assert list(lines_of(path, int)) == [1, 20, 3]


def test_a_file_that_was_put_aside_is_read_from_its_new_beginning(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_bytes(b"1\n2\n")
    tail = Tail(path, int)
    assert list(tail.lines()) == [1, 2]
    path.replace(tmp_path / "numbers.jsonl.1")
    path.write_bytes(b"3\n")
    assert list(tail.lines()) == [3]
    assert list(tail.lines()) == []


@pytest.mark.parametrize(("before", "then"), [(b"", b"2\n"), (b"1\n", b"1\n2\n"), (b"1", b"1\n2\n")])
def test_who_appends_closes_a_torn_line(tmp_path: Path, before: bytes, then: bytes) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_bytes(before)
    with appending(path) as file:
        file.write(b"2\n")
    assert path.read_bytes() == then


# An agent that moves ---------------------------------------------------------------------------------------------


class Gone(grpc.RpcError):
    pass


class Address:
    """In the place of a client of one target."""

    def __init__(self, target: str, up: set[str]) -> None:
        self.target, self._up = target, up

    def decide(self, request: PageRequest, timeout_s: float) -> str:
        if self.target not in self._up:
            raise Gone
        return self.target

    def report(self, feedback: list[Feedback], timeout_s: float) -> None:
        self.decide(None, timeout_s)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


class Moving:
    """A loop that may be somewhere else, or nowhere."""

    def __init__(self) -> None:
        self.up, self.where, self.now_s, self.looks = {"one"}, "one", 100.0, 0
        self.agent = FoundAgent(self.find, connect=lambda t: Address(t, self.up), now_s=lambda: self.now_s)  # type: ignore[arg-type,return-value]
        self.looks = 0

    def find(self) -> str:
        self.looks += 1
        if not self.where:
            raise PageturnError("the loop is not up")
        return self.where

    def ask(self, after_s: float) -> str | None:
        self.now_s += after_s
        try:
            return self.agent.decide(PageRequest("r", "u", "s", 0, (Item("x"),)), 0.1)  # type: ignore[return-value]
        except grpc.RpcError:
            return None


def test_an_agent_that_went_elsewhere_is_found() -> None:
    loop = Moving()
    assert loop.ask(0) == "one"
    loop.up, loop.where = {"two"}, "two"
    loop.agent._clients[0]._up = loop.up  # type: ignore[attr-defined]
    assert [loop.ask(s) for s in (1, 1, 2.9)] == [None] * 3
    assert loop.looks == 0  # it may be back in a moment
    assert loop.ask(0.2) is None
    assert loop.looks == 1
    assert loop.ask(0.1) == "two"
    loop.agent.report([click(1)], 0.1)
    assert loop.agent.target == "two"


def test_a_loop_that_stays_down_ends_the_traffic_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    loop = Moving()
    loop.up.clear()
    loop.where = ""
    assert [loop.ask(10) for _ in range(6)] == [None] * 6
    assert "no page was answered for 10 s: the loop is not up" in caplog.text
    with pytest.raises(PageturnError, match="the loop is not up"):
        loop.ask(10)


def test_one_that_is_up_and_does_not_answer_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    loop = Moving()
    loop.up.clear()
    assert [loop.ask(1) for _ in range(120)] == [None] * 120
    assert loop.looks == 24
    assert len(loop.agent._clients) == 1
    loop.up.add("one")
    assert loop.ask(1) == "one"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_users_of_a_loop_that_is_not_up_do_not_come(tmp_path: Path) -> None:
    def find() -> str:
        raise PageturnError("the loop is not up")

    with pytest.raises(PageturnError, match="the loop is not up"):
        simulate(CONFIG, find, tmp_path, Flow(), threading.Event(), visits=1)

"""The Python client: what a message says is what was meant, and no event is lost on its way to the agent unseen."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import msgspec
import numpy as np
import pytest

from pipeline.agent import agent_pb2 as pb
from pipeline.agent import agent_pb2_grpc
from pipeline.agent.client import _OPTIONS, AgentClient, Reporter
from pipeline.agent.requests import AgentRequestError, PageRequest
from pipeline.agent.translate import from_feedback, from_page, to_feedback, to_page
from pipeline.records import Feedback, FeedbackKind, Item

LONG_S = 30.0
RAW = {
    "number": 0.5, "whole": 2.0, "negative": -3, "largest": 2**63 - 1, "least": -(2**63), "bits": 2**64 - 1,
    "text": "ü", "empty": "", "yes": True, "no": False, "zero": 0, "absent": None, "nothing": (),
    "list": ("a", 1, 2.5, False, 2**64 - 1), "texts": ("a", "ü"), "empty ones": ("a", "", ""),
}  # fmt: skip


def click(number: int, **changes) -> Feedback:
    plain = Feedback(1, f"e{number}", "r", "u", "s", number, FeedbackKind.CLICK, "x")
    return msgspec.structs.replace(plain, **changes)


# Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_ms", [None, 0, 5])
def test_a_page_is_the_same_after_its_way_through_a_message(time_ms: int | None):
    items = (Item("x", 0.25, 0.0), Item("y"), Item("z", 0.0, None, RAW))
    request = PageRequest("r", "u", "s", 3, items, RAW, {"c": 1}, {"p": "q"}, time_ms)
    again = to_page(from_page(request))
    assert again == request
    for features in (again.user, again.items[2].features):
        assert {name: type(value) for name, value in features.items()} == {n: type(v) for n, v in RAW.items()}
        assert [type(each) for each in features["list"]] == [str, int, float, bool, int]


def test_a_list_is_sent_as_a_tuple_is():
    assert from_page(PageRequest("r", "u", "s", 0, (), {"f": [1, 2]})) == from_page(
        PageRequest("r", "u", "s", 0, (), {"f": (1, 2)})
    )


@pytest.mark.parametrize("kind", FeedbackKind)
@pytest.mark.parametrize("changes", [{}, {"item_id": None}, {"value": 0.0}, {"value": -2.5}, {"time_ms": 0}])
def test_feedback_is_the_same_after_its_way_through_a_message(kind: FeedbackKind, changes):
    feedback = click(1, kind=kind, **changes)
    assert to_feedback(from_feedback(feedback), now_ms=99) == feedback


class Stub:
    """In the place of the generated stub: keeps the messages."""

    def __init__(self) -> None:
        self.sent = []

    def Decide(self, message, timeout):  # noqa: N802
        self.sent.append(message)

    def Report(self, message, timeout):  # noqa: N802
        self.sent.append(message)


@pytest.fixture
def client() -> Iterator[AgentClient]:
    with AgentClient("127.0.0.1:1") as client:
        client._stub = Stub()
        yield client


def test_the_client_sends_what_the_library_takes(client: AgentClient):
    user = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "nan": math.nan, "ids": [np.int32(1), 2]}
    client.decide(PageRequest("r", "u", "s", 0, (Item("x", np.float32(0.5), 1),), user), LONG_S)
    [message] = client._stub.sent
    sent = to_page(message)
    assert sent.user == {"f": 0.5, "i": 3, "b": True, "nan": None, "ids": (1, 2)}
    assert sent.items == (Item("x", 0.5, 1.0),)


def test_what_is_wrong_is_told_without_a_call(client: AgentClient):
    with pytest.raises(AgentRequestError, match=r"user\.big: expected a number of 64 bits"):
        client.decide(PageRequest("r", "u", "s", 0, (Item("x"),), {"big": 2**64}), LONG_S)
    with pytest.raises(AgentRequestError, match="event_id: expected text"):
        client.report([click(1), click(2, event_id="")], LONG_S)
    assert client._stub.sent == []


class Counted(agent_pb2_grpc.AgentServicer):
    def __init__(self) -> None:
        self.asked = 0

    def Decide(self, request, context):  # noqa: N802
        self.asked += 1
        return pb.DecideResponse(request_id=request.request_id)


def test_all_agents_of_a_name_are_asked():
    agents, servers, ports = [Counted(), Counted()], [], []
    for agent in agents:
        server = grpc.server(ThreadPoolExecutor(1))
        agent_pb2_grpc.add_AgentServicer_to_server(agent, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        servers.append(server)
    page, deadline_s = PageRequest("r", "u", "s", 0, (Item("x"),)), time.monotonic() + LONG_S
    try:
        with AgentClient("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as client:
            while not all(agent.asked for agent in agents) and time.monotonic() < deadline_s:
                client.decide(page, LONG_S)
            before = [agent.asked for agent in agents]
            for _ in range(10):
                client.decide(page, LONG_S)
            assert [agent.asked - asked for agent, asked in zip(agents, before, strict=True)] == [5, 5]
    finally:
        for server in servers:
            server.stop(None).wait()


# Reports ---------------------------------------------------------------------------------------------------------


class Trouble(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


AWAY = Trouble(grpc.StatusCode.UNAVAILABLE, "connection refused")


class FakeAgent:
    """Logs what it is sent, unless `trouble` raises."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.logged: list[str] = []
        self.trouble: Callable[[Sequence[Feedback]], None] = lambda feedback: None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def report(self, feedback: Sequence[Feedback], timeout_s: float) -> None:
        self.calls.append(ids(feedback))
        self.entered.set()
        assert self.gate.wait(LONG_S)
        self.trouble(feedback)
        self.logged.extend(ids(feedback))


def ids(feedback: Sequence[Feedback]) -> list[str]:
    return [each.event_id for each in feedback]


def in_turn(*errors: Exception) -> Callable[[Sequence[Feedback]], None]:
    left = list(errors)

    def trouble(feedback: Sequence[Feedback]) -> None:
        if left:
            raise left.pop(0)

    return trouble


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def reporter(agent: FakeAgent, heard: list[str]) -> Iterator[Reporter]:
    reporter = Reporter(agent, lambda feedback: heard.extend(ids(feedback)), capacity=2_000)
    yield reporter
    agent.gate.set()
    reporter.close(0.0)


def names(*numbers: int) -> list[str]:
    return [f"e{number}" for number in numbers]


def test_events_are_gathered_and_arrive_once_and_in_order(agent: FakeAgent, reporter: Reporter, heard: list[str]):
    for number in range(1_200):
        reporter(click(number))
    assert reporter.close(LONG_S) == 0
    assert agent.logged == heard == names(*range(1_200))
    assert max(map(len, agent.calls)) == 500
    assert (reporter.pending, reporter.dropped) == (0, 0)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_events_are_sent_again_until_they_are_acknowledged(
    agent: FakeAgent, reporter: Reporter, heard: list[str], code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
):
    agent.trouble = in_turn(*[Trouble(code, "not now")] * 2)
    for number in range(3):
        reporter(click(number))
    assert reporter.close(LONG_S) == 0
    assert agent.logged == heard == names(0, 1, 2)
    assert [call[0] for call in agent.calls[:3]] == ["e0"] * 3
    assert "not acknowledged, and sent again: not now" in caplog.text


def test_an_agent_that_stays_away_is_not_told_of_at_every_call(
    agent: FakeAgent, reporter: Reporter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.agent.client._LONGEST_PAUSE_S", 0.0)
    for expected in (4, 5):  # 1, 2, 4, 8 of the calls; then 1 more, after it had been back
        agent.trouble = in_turn(*[AWAY] * (9 if expected == 4 else 1))
        reporter(click(expected))
        with reporter._changed:
            assert reporter._changed.wait_for(lambda: reporter.pending == 0, LONG_S)
        assert len([r for r in caplog.records if "sent again" in r.message]) == expected


def test_events_that_come_meanwhile_keep_their_place(agent: FakeAgent, reporter: Reporter, heard: list[str]):
    agent.gate.clear()
    agent.trouble = in_turn(AWAY, AWAY)
    reporter(click(0))
    assert agent.entered.wait(LONG_S)
    reporter(click(1))
    agent.gate.set()
    assert reporter.close(LONG_S) == 0
    assert agent.logged == heard == names(0, 1)


@pytest.mark.parametrize("culprits", [{0}, {57}, {99}, {0, 1, 50, 99}])
def test_only_what_is_refused_is_dropped_and_it_is_found_quickly(
    agent: FakeAgent, heard: list[str], culprits: set[int], caplog: pytest.LogCaptureFixture
):
    def refuse(feedback: Sequence[Feedback]) -> None:
        if any(each.time_ms in culprits for each in feedback):
            raise Trouble(grpc.StatusCode.INVALID_ARGUMENT, "kind: expected another")

    agent.trouble = refuse
    reporter = Reporter(agent, lambda feedback: heard.extend(ids(feedback)))
    for number in range(100):
        reporter(click(number))
    assert reporter.close(LONG_S) == reporter.dropped == len(culprits)
    assert agent.logged == heard == names(*(n for n in range(100) if n not in culprits))
    assert len(agent.calls) < 40 * len(culprits)
    assert f"event e{min(culprits)} was dropped, 1 so far: the agent refused it: kind: expected another" in caplog.text


def test_while_the_agent_is_away_the_oldest_are_kept_and_the_rest_is_dropped_and_counted(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
):
    agent.gate.clear()
    reporter = Reporter(agent, capacity=3)
    for number in range(8):
        reporter(click(number))
    assert (reporter.pending, reporter.dropped) == (3, 5)
    assert [r.message.partition(":")[0] for r in caplog.records if r.levelno == logging.ERROR] == [
        "event e3 was dropped, 1 so far",
        "event e4 was dropped, 2 so far",
        "event e6 was dropped, 4 so far",
    ]
    agent.gate.set()
    assert reporter.close(LONG_S) == 5
    assert agent.logged == names(0, 1, 2)


def test_there_is_room_again_after_an_acknowledgement(agent: FakeAgent):
    heard = threading.Semaphore(0)
    reporter = Reporter(agent, lambda feedback: heard.release(), capacity=1)
    reporter(click(0))
    assert heard.acquire(timeout=LONG_S)
    with reporter._changed:
        assert reporter._changed.wait_for(lambda: reporter.pending == 0, LONG_S)
    reporter(click(1))
    assert reporter.close(LONG_S) == 0
    assert agent.logged == names(0, 1)


def test_closing_gives_up_in_time_and_says_how_many_are_left(agent: FakeAgent, reporter: Reporter, heard: list[str]):
    agent.trouble = in_turn(*[AWAY] * 10_000)
    for number in range(5):
        reporter(click(number))
    assert agent.entered.wait(LONG_S)
    assert reporter.close(1.0) == 5
    calls = len(agent.calls)
    assert 1 <= calls < 10  # it did not hammer the agent meanwhile
    reporter(click(5))
    assert (reporter.dropped, reporter.close(0.0)) == (1, 6)
    assert not reporter._thread.is_alive()
    assert heard == []


def test_closing_does_not_wait_for_the_search_of_a_culprit(agent: FakeAgent, reporter: Reporter):
    agent.gate.clear()
    agent.trouble = in_turn(*[Trouble(grpc.StatusCode.INVALID_ARGUMENT, "kind: expected another")] * 10_000)
    for number in range(64):
        reporter(click(number))
    assert agent.entered.wait(LONG_S)
    left: list[int] = []
    closing = threading.Thread(target=lambda: left.append(reporter.close(0.0)))
    closing.start()
    assert reporter._closing.wait(LONG_S)
    agent.gate.set()
    closing.join(LONG_S)
    assert len(agent.calls) == 1
    assert left == [64]
    assert ids(reporter.unacknowledged) == names(*range(64))


def test_nothing_is_heard_after_closing_returned(agent: FakeAgent, reporter: Reporter, heard: list[str]):
    agent.gate.clear()
    reporter(click(0))
    assert agent.entered.wait(LONG_S)
    left: list[int] = []
    closing = threading.Thread(target=lambda: left.append(reporter.close(0.0)))
    closing.start()
    assert reporter._closing.wait(LONG_S)
    assert left == heard == []
    agent.gate.set()
    closing.join(LONG_S)
    assert (left, heard) == ([0], names(0))


def test_a_wrong_event_is_told_to_who_brings_it(agent: FakeAgent, reporter: Reporter):
    with pytest.raises(AgentRequestError, match="session_id: expected text"):
        reporter(click(0, session_id=""))
    reporter(click(1))
    assert reporter.close(LONG_S) == 0
    assert agent.logged == names(1)


def test_a_listener_that_fails_stops_no_events(agent: FakeAgent, caplog: pytest.LogCaptureFixture):
    def listen(feedback: Sequence[Feedback]) -> None:
        raise OSError("disk full")

    reporter = Reporter(agent, listen)
    for number in range(600):  # two calls
        reporter(click(number))
    assert reporter.close(LONG_S) == 0
    assert agent.logged == names(*range(600))
    assert "disk full" in caplog.text


def test_a_reporter_whose_client_is_gone_says_so_and_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture):
    client = AgentClient("127.0.0.1:1")
    client.close()
    reporter = Reporter(client)
    reporter(click(0))
    reporter._thread.join(LONG_S)
    reporter(click(1))
    assert reporter.close(600.0) == 2
    assert reporter.dropped == 1
    assert "the reporter died; events are dropped from now on" in caplog.text


def test_an_agent_that_is_silent_is_noticed_within_seconds():
    """Measured with one of two agents behind a line that swallows everything: without keepalive half of the pages were
    lost for as long as one looked, with it for a minute, with all three for five seconds."""
    options = dict(_OPTIONS)
    assert options["grpc.keepalive_time_ms"] == 10_000  # twice as much as the agent allows
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 5_000

"""The model server is asked again where that may help, and left alone where it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from pipeline.agent.agent import AgentSettings
from pipeline.agent.guarding import Breaker, GuardedServer, noted
from pipeline.monitoring.catalogue import AGENT
from pipeline.monitoring.metrics import Metrics
from pipeline.records import DecidedBy
from pipeline.serving.client import Prediction
from pipeline.serving.errors import BadRequest, NotServed, ServingError, TooLate, Unavailable
from tests.unit.agent_fakes import LONG_S, TREATED, World, page, raising

LIMIT, PAUSE_S = 3, 1.0
ANSWER = Prediction(7, {})


class Server:
    """Gives one reply after another; every call takes a tenth of a second, one that is too late all of its time."""

    def __init__(self, replies: Sequence[ServingError | None] = ()) -> None:
        self.replies = list(replies)
        self.timeouts: list[float] = []
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def predict(self, model, inputs, *, version=None, timeout_s) -> Prediction:
        self.timeouts.append(round(timeout_s, 6))
        reply = self.replies.pop(0) if self.replies else None
        self.now_s += timeout_s if isinstance(reply, TooLate) else 0.1
        if reply is not None:
            raise reply
        return ANSWER


def guarded(server: Server, metrics: Metrics | None = None, first_attempt: float = 1.0) -> Callable[..., Prediction]:
    metrics = metrics or Metrics(AGENT)
    breaker = Breaker(LIMIT, PAUSE_S, server.monotonic, noted(metrics))
    made = GuardedServer(server, breaker, metrics, server.monotonic, first_attempt)
    return lambda timeout_s=1.0: made.predict("m", {}, version=7, timeout_s=timeout_s)


def ends(call: Callable[[], Prediction]) -> str:
    try:
        call()
    except ServingError as error:
        return type(error).__name__
    return "answer"


def test_where_nobody_answers_the_page_asks_once_more_within_its_time():
    server, metrics = Server([Unavailable("gone")]), Metrics(AGENT)
    assert guarded(server, metrics)() is ANSWER
    assert server.timeouts == [1.0, 0.9]
    assert metrics.total("second_attempts") == 1


def test_there_is_no_third_attempt_and_none_without_time():
    server = Server([Unavailable("gone")] * 2)
    assert ends(guarded(server)) == "Unavailable"
    server = Server([Unavailable("gone")])
    assert ends(lambda: guarded(server)(0.1)) == "Unavailable"
    assert server.timeouts == [0.1]


def test_a_slow_replica_is_made_up_for_by_another():
    server = Server([TooLate("slow")])
    assert guarded(server, first_attempt=0.5)() is ANSWER
    assert server.timeouts == [0.5, 0.5]


def test_the_only_server_has_all_of_the_time():
    server = Server([TooLate("slow")])
    assert ends(guarded(server)) == "TooLate"
    assert server.timeouts == [1.0]


@pytest.mark.parametrize("error", [BadRequest("no"), NotServed("no such version"), ServingError("?")])
def test_what_a_server_says_is_an_answer(error: ServingError):
    server = Server([error] * 10)
    call = guarded(server)
    assert {ends(call) for _ in range(10)} == {type(error).__name__}
    assert len(server.timeouts) == 10


def test_after_failures_in_a_row_it_is_left_alone_until_one_call_is_answered():
    server, metrics = Server([TooLate("hangs")] * (LIMIT + 1)), Metrics(AGENT)
    call = guarded(server, metrics)
    assert [ends(call) for _ in range(LIMIT)] == ["TooLate"] * LIMIT
    assert (metrics.total("breaker_opened"), metrics.total("breaker_open")) == (1, 1)
    assert [ends(call) for _ in range(5)] == ["Avoided"] * 5
    server.now_s += PAUSE_S
    assert [ends(call) for _ in range(5)] == ["TooLate", "answer", "answer", "answer", "answer"]
    assert (metrics.total("breaker_opened"), metrics.total("breaker_open")) == (1, 0)


def test_an_attempt_that_opens_it_and_the_call_that_is_let_through_are_not_repeated():
    server = Server([Unavailable("gone")] * 10)
    call = guarded(server)
    assert [ends(call) for _ in range(2)] == ["Unavailable"] * 2  # two attempts, and one
    assert len(server.timeouts) == LIMIT
    server.now_s += PAUSE_S
    assert ends(call) == "Unavailable"
    assert len(server.timeouts) == LIMIT + 1


def test_while_it_is_open_one_call_per_pause_is_let_through():
    server = Server()
    breaker = Breaker(1, PAUSE_S, server.monotonic)
    breaker.failed()
    assert not breaker.admits()
    server.now_s += PAUSE_S
    assert [breaker.admits() for _ in range(3)] == [True, False, False]
    breaker.answered()
    assert [breaker.admits() for _ in range(3)] == [True, True, True]


def test_an_answer_in_between_starts_the_count_anew():
    server = Server([TooLate("slow"), TooLate("slow"), None] * 4)
    call = guarded(server)
    assert [ends(call) for _ in range(12)] == ["TooLate", "TooLate", "answer"] * 4


def test_a_page_that_had_hardly_any_time_says_nothing_about_the_server():
    server = Server([TooLate("late")] * 10)
    call = guarded(server)
    assert {ends(lambda: call(0.01)) for _ in range(10)} == {"TooLate"}


def test_the_gauge_says_what_the_breaker_is_whichever_thread_is_quicker():
    """An answer that comes while the failure that opens it is being noted: 1 stayed for good, and the alert with it."""
    server, metrics = Server([TooLate("hangs")] * LIMIT), Metrics(AGENT)
    call, gauge, late = guarded(server, metrics), metrics.gauge, []

    def while_an_answer_comes(name: str, value: float, **labels: str) -> None:
        if value == 1:
            late.append(threading.Thread(target=call))
            server.now_s += PAUSE_S  # so that the other call is let through
            late[0].start()
            late[0].join(0.2)
        gauge(name, value, **labels)

    metrics.gauge = while_an_answer_comes
    assert [ends(call) for _ in range(LIMIT)] == ["TooLate"] * LIMIT
    late[0].join(LONG_S)
    assert ends(call) == "answer"
    assert metrics.total("breaker_open") == 0


def test_pages_get_the_baseline_at_once_while_the_server_is_left_alone():
    world = World()
    world.publish(7)
    world.server.reply = raising(TooLate("hangs"))
    settings = AgentSettings(follow_every_s=0.02, breaker_failures=2, breaker_pause_s=600.0)
    with world.agent(settings=settings) as agent:
        reasons = [agent.decide(page(s), LONG_S).decision.fallback_reason for s in TREATED[:4]]
        world.server.reply = world.server.healthy
        left_alone = agent.decide(page(TREATED[4]), LONG_S)
        assert agent.metrics.total("fallbacks", reason="avoided") == 3
    assert reasons == ["timeout", "timeout", "avoided", "avoided"]
    assert left_alone.decision.decided_by is DecidedBy.FALLBACK
    assert len(world.server.calls) == 2

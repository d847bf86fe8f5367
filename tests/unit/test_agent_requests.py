"""Retries, wrong requests and feedback: what an agent takes in, and what of it is in the log."""

from __future__ import annotations

import math
import threading

import msgspec
import numpy as np
import pytest

from pipeline.agent.agent import Agent, AgentRequestError
from pipeline.agent.requests import MAX_PAGE_INDEX, MAX_TIME_MS, MAX_VALUE
from pipeline.events import Refusal, encode, parse
from pipeline.records import DecidedBy, Feedback, FeedbackKind, Impression, Item
from tests.unit.agent_fakes import CONFIG, CONTROL, ITEMS, LONG_S, QUICK, TREATED, World, answer, page


@pytest.fixture
def world() -> World:
    return World()


def test_a_retry_gets_the_same_answer_and_no_second_impression(world: World):
    world.publish(7)
    with world.agent() as agent:
        first = agent.decide(page(TREATED[0]), LONG_S)
        world.server.means = 0.6
        assert agent.decide(page(TREATED[0]), LONG_S) is first
        assert len(world.impressions(agent)) == 1


def test_twins_that_are_decided_at_once_agree_and_are_logged_once(world: World):
    world.publish(7)
    both_asked = threading.Barrier(2, timeout=LONG_S)

    def reply(inputs, version):
        return answer(np.full((1, 1), 0.8 + 0.1 * both_asked.wait(), np.float32))(inputs, version)

    world.server.reply = reply
    answers = []
    with world.agent() as agent:
        twins = [
            threading.Thread(target=lambda: answers.append(agent.decide(page(TREATED[0]), LONG_S))) for _ in range(2)
        ]
        for twin in twins:
            twin.start()
        for twin in twins:
            twin.join(LONG_S)
        assert len(world.impressions(agent)) == 1
    assert answers[0] is answers[1]


def test_a_request_id_used_for_another_page_is_decided_anew(world: World):
    with world.agent() as agent:
        agent.decide(page(CONTROL[0], request_id="r"), LONG_S)
        other = agent.decide(page(CONTROL[0], 1, request_id="r", items=ITEMS[:2]), LONG_S)
    assert other.item_ids == ("x", "y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": ""}, "user_id: expected text of 1 to 256 characters, found 0 characters"),
        ({"session_id": "x" * 257}, "session_id: expected text of 1 to 256 characters, found 257 characters"),
        ({"user_id": 7}, "user_id: expected text of 1 to 256 characters, found 7"),
        ({"index": -1}, "page_index: expected an integer from 0 to 2147483647, found -1"),
        ({"time_ms": -5}, "time_ms: expected an integer from 0 to"),
        ({"items": ()}, "items: expected 1 to 1000 items, found 0"),
        ({"items": (Item("x"),) * 1001}, "items: expected 1 to 1000 items, found 1001"),
        ({"items": (Item("x"), Item(""))}, r"items\[1\].item_id: expected text of 1"),
        ({"items": (Item("x", "much"),)}, r"items\[0\].click_score: expected a number, found 'much'"),
        (
            {"context": {"big": 2**64}},
            "context.big: expected a number of 64 bits, text, true or false, or a list of them, found 1844",
        ),
        ({"page": {"nested": ((1,),)}}, r"page.nested: expected a number of 64 bits, text.* found \(1,\)"),
        ({"page": {"gap": (1, None)}}, r"page.gap: expected a list of numbers, texts, .* found 1 without a value"),
        ({"user": {"text": "\ud800"}}, "user.text: expected text that UTF-8 can encode"),
        ({"user": {7: 1.0}}, "user.7: expected a name that is text, found 7"),
        ({"user": {"fine": np.longdouble(1)}}, "user.fine: expected a number of 64 bits, text, .* found .*longdouble"),
        ({"context": {"long": "x" * 10**6}}, "request treated-1/0: expected an impression of at most 1000000 bytes"),
    ],
)
def test_a_wrong_request_is_the_callers_mistake(world: World, changes, message: str):
    with world.agent() as agent:
        with pytest.raises(AgentRequestError, match=message):
            agent.decide(page(**changes), LONG_S)
        assert world.impressions(agent) == []


def test_numpy_scalars_are_plain_values_in_the_log(world: World):
    world.publish(7)
    with world.agent() as agent:
        user = {"ctr": np.float32(0.5), "n": np.int64(3), "t": np.str_("a"), "seen": [np.int32(1), 2]}
        decided = agent.decide(page(TREATED[0], user=user), LONG_S)
        [impression] = world.impressions(agent)
    assert decided.decision.decided_by is DecidedBy.POLICY
    assert impression.state.user == {"ctr": 0.5, "clicks": ("7", 8, "9"), "n": 3, "t": "a", "seen": (1, 2)}


def feedback(**changes) -> Feedback:
    return msgspec.structs.replace(Feedback(1, "e1", "r1", "u1", "s1", 5, FeedbackKind.CLICK, "x"), **changes)


def test_feedback_is_appended_under_its_session(world: World):
    with world.agent() as agent:
        assert agent.report(feedback())
        assert world.impressions(agent) == [feedback()]
    assert world.log.entries[0].key == "s1"


def test_feedback_that_is_waited_for_is_in_the_log(world: World):
    with world.agent() as agent:
        assert agent.report_and_wait([feedback(), feedback(event_id="e2")], LONG_S)
        assert [parse(entry.payload, 10**6) for entry in world.log.entries] == [feedback(), feedback(event_id="e2")]
        assert agent.metrics.total("feedback", kind="click") == 2
        with pytest.raises(AgentRequestError, match="event_id: expected"):
            agent.report_and_wait([feedback(event_id="e3"), feedback(event_id="")], LONG_S)
        assert agent.flush(LONG_S)
    assert len(world.log.entries) == 2
    assert not agent.report_and_wait([feedback()], LONG_S)  # closed
    assert agent.metrics.total("feedback_not_logged") == 1


@pytest.mark.parametrize(
    "changes",
    [{"event_id": ""}, {"session_id": ""}, {"item_id": ""}, {"time_ms": -1}, {"value": math.nan}, {"kind": "click"}],
)
def test_wrong_feedback_is_the_callers_mistake(world: World, changes):
    with world.agent() as agent, pytest.raises(AgentRequestError, match="expected"):
        agent.report(feedback(**changes))
    assert world.log.entries == []


@pytest.mark.parametrize(
    "extreme",
    [
        {"time_ms": MAX_TIME_MS},
        {"value": MAX_VALUE},
        {"value": -MAX_VALUE},
        {"event_id": "\N{SNOWMAN}" * 256},
        {"request_id": "r" * 256},
    ],
)
def test_the_stream_takes_whatever_feedback_the_agent_takes(world: World, extreme):
    with world.agent() as agent:
        assert agent.report(feedback(**extreme))
    assert parse(world.log.entries[0].payload, 10**6) == feedback(**extreme)
    with world.agent() as agent:
        for field in extreme.keys() & {"time_ms", "value"}:
            beyond = {field: type(extreme[field])(extreme[field] * 1.001)}
            assert isinstance(parse(encode(feedback(**beyond)), 10**6), Refusal)
            with pytest.raises(AgentRequestError, match=f"{field}: expected"):
                agent.report(feedback(**beyond))


@pytest.mark.parametrize(
    "extreme",
    [
        {"time_ms": MAX_TIME_MS},
        {"index": MAX_PAGE_INDEX},
        {"context": {"big": 2**64 - 1, "small": -(2**63), "nan": math.nan, "bits": (True, 1.5, "x"), "none": None}},
        {"items": (Item("x", math.inf, -0.0, {"f": (1, 2)}),)},
        {"items": (Item("x", math.inf, 1.0), Item("y", -math.inf, 1.0), Item("z", 1.0, 1.0))},
        {"items": (Item("x", 1e308, 1e308), Item("y", 1e308, 1e308))},
    ],
)
def test_the_stream_takes_whatever_page_the_agent_takes(world: World, extreme):
    with world.agent() as agent:
        agent.decide(page(CONTROL[0], **extreme), LONG_S)
    assert isinstance(parse(world.log.entries[0].payload, 10**6), Impression)


def test_an_agent_without_a_log_decides_and_takes_no_feedback(world: World):
    world.publish(7)
    with Agent(CONFIG, world.store, world.server, None, agent_id="a", settings=QUICK) as agent:
        agent.wait_ready(LONG_S)
        assert agent.decide(page(TREATED[0]), LONG_S).decision.model_version == 7
        assert not agent.report(feedback())
        assert not agent.report_and_wait([feedback()], LONG_S)

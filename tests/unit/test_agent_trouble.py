"""Trouble on the way to the policy, with fakes for store and model server: it never fails a page."""

from __future__ import annotations

import logging
import math
import threading

import numpy as np
import pytest

from pipeline.agent.agent import Agent, AgentSettings
from pipeline.records import DecidedBy, Item
from pipeline.serving.errors import BadRequest, NotServed, ServingError, TooLate, Unavailable
from tests.unit.agent_fakes import (
    BASELINE_IDS,
    CONFIG,
    CONTROL,
    LONG_S,
    QUICK,
    TREATED,
    World,
    answer,
    eventually,
    page,
    raising,
)

KNOWN = ("7", "8")  # that an id has no vector is remembered for some seconds only


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (raising(TooLate("late")), "timeout"),
        (raising(Unavailable("down")), "unavailable"),
        (raising(BadRequest("no")), "refused"),
        (raising(ServingError("?")), "refused"),
        (raising(NotServed("gone")), "not_served"),
        (raising(ZeroDivisionError("a fault of ours")), "internal"),
        (answer(np.full((1, 1), 1.2, np.float32), version=8), "version_mismatch"),
        (answer(None), "bad_reply"),
        (answer(np.full((1, 1), math.nan, np.float32)), "bad_reply"),
        (answer(np.full((1, 1), math.inf, np.float32)), "bad_reply"),
        (answer(np.full((1, 1), 1.6, np.float32)), "bad_reply"),
        (answer(np.full((1, 2), 1.2, np.float32)), "bad_reply"),
        (answer(np.full((2, 1), 1.2, np.float32)), "bad_reply"),
        (answer(np.full((1,), 1.2, np.float32)), "bad_reply"),
        (answer(np.full((1, 1), 1.2, np.float64)), "bad_reply"),
    ],
)
def test_trouble_with_the_model_gives_the_baseline_and_its_reason(world: World, reply, reason: str):
    world.publish(7)
    world.server.reply = reply
    with world.agent() as agent:
        decided = agent.decide(page(TREATED[0]), LONG_S)
        [impression] = world.impressions(agent)
    assert decided.item_ids == BASELINE_IDS
    assert (decided.decision.decided_by, decided.decision.fallback_reason) == (DecidedBy.FALLBACK, reason)
    assert [(a.value, a.propensity) for a in decided.decision.actions] == [(1.0, None)]
    assert decided.decision.model_version is None
    assert agent.metrics.total("fallbacks", policy="rl", reason=reason) == 1
    assert impression.decision == decided.decision


def test_a_mean_on_a_bound_may_be_rounded_to_float32(world: World):
    world.publish(7)
    world.server.means = np.nextafter(np.float32(1.5), np.float32(2))
    with world.agent() as agent:
        decided = agent.decide(page(TREATED[0]), LONG_S)
    assert decided.decision.decided_by is DecidedBy.POLICY
    assert decided.decision.actions[0].value <= 1.5


def test_one_bad_row_of_a_reply_is_one_bad_page(world: World):
    world.publish(7)
    world.server.reply = answer(np.array([[1.2], [math.nan], [1.2]], np.float32))
    with world.agent() as agent:
        batch = agent.decide_many([page(s) for s in TREATED[:3]], LONG_S)
    assert [b.decision.fallback_reason for b in batch] == [None, "bad_reply", None]


def test_nothing_published_yet(world: World):
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "no_model"


def test_an_agent_that_has_not_looked_yet_says_so_and_not_that_nothing_was_published(world: World):
    world.publish(7)
    looks = threading.Event()
    get_many = world.store.get_many
    world.store.get_many = lambda keys: looks.wait(LONG_S) and get_many(keys)
    with Agent(CONFIG, world.store, world.server, None, agent_id="agent-0", settings=QUICK) as agent:
        decided = agent.decide(page(TREATED[0]), LONG_S)
        assert (decided.decision.fallback_reason, decided.item_ids) == ("starting", BASELINE_IDS)
        looks.set()
        assert agent.wait_ready(LONG_S)
        assert agent.decide(page(TREATED[1]), LONG_S).decision.decided_by is DecidedBy.POLICY


def test_a_dead_store_from_the_beginning(world: World):
    world.publish(7)
    world.store.broken = True
    with world.agent() as agent:
        eventually(lambda: agent.metrics.total("pointer_errors") > 0)
        decided = agent.decide(page(TREATED[0]), LONG_S)
        assert decided.decision.fallback_reason == "store"
        assert agent.decide(page(CONTROL[0]), LONG_S).decision.decided_by is DecidedBy.BASELINE
    assert decided.item_ids == BASELINE_IDS


def test_a_store_that_dies_later_does_not_stop_what_is_known_but_what_must_be_looked_up(world: World):
    world.publish(7)
    with world.agent(settings=AgentSettings(follow_every_s=0.02, stale_after_s=0.0)) as agent:
        known = agent.decide(page(TREATED[0], user={"clicks": KNOWN}), LONG_S)
        world.store.broken = True
        cached = agent.decide(page(TREATED[1], user={"clicks": KNOWN}), LONG_S)
        fresh = agent.decide(page(TREATED[2], user={"clicks": ("55",)}), LONG_S)
        assert agent.metrics.total("pages_on_stale_pointers") >= 1
        assert agent.problems() == ("the pointers could not be read for a while",)
    assert known.decision.decided_by is cached.decision.decided_by is DecidedBy.POLICY
    assert (fresh.decision.fallback_reason, fresh.item_ids) == ("store", BASELINE_IDS)


def test_a_store_that_hangs_holds_no_page_beyond_its_deadline(world: World):
    world.publish(7)
    with world.agent() as agent:
        world.store.hangs = threading.Event()
        decided = agent.decide(page(TREATED[0]), 0.1)
        assert not world.store.hangs.is_set()  # it answered while the store still hung
        world.store.hangs.set()
    assert (decided.decision.fallback_reason, decided.item_ids) == ("store", BASELINE_IDS)


def test_no_time_left_means_the_model_is_not_asked(world: World):
    world.publish(7)
    with world.agent() as agent:
        agent.decide(page(TREATED[0], user={"clicks": KNOWN}), LONG_S)  # the vectors are in memory now
        decided = agent.decide(page(TREATED[1], user={"clicks": KNOWN}), 0.0)
    assert decided.decision.fallback_reason == "timeout"
    assert len(world.server.calls) == 1


@pytest.mark.parametrize("bad", [{"ctr": "high"}, {"ctr": None}, {"ctr": math.nan}, {"clicks": "7"}])
def test_features_that_the_config_does_not_know(world: World, bad):
    world.publish(7)
    with world.agent() as agent:
        decided = agent.decide(page(TREATED[0], user=bad), LONG_S)
        control = agent.decide(page(CONTROL[0], user=bad), LONG_S)
        assert agent.metrics.total("pages_not_encoded", reason="bad_features") == 2
    assert (decided.decision.fallback_reason, decided.item_ids) == ("bad_features", BASELINE_IDS)
    assert control.decision.decided_by is DecidedBy.BASELINE


@pytest.mark.parametrize("score", [None, math.nan, -1.0, math.inf])
@pytest.mark.parametrize("session", [TREATED[0], CONTROL[0]])
def test_unusable_scores_keep_the_received_order_and_no_action_is_claimed(world: World, score, session: str):
    world.publish(7)
    with world.agent() as agent:
        decided = agent.decide(page(session, items=(Item("p", 0.1, 0.1), Item("q", 0.9, score))), LONG_S)
        [impression] = world.impressions(agent)
    assert decided.item_ids == ("p", "q")
    assert (decided.decision.decided_by, decided.decision.fallback_reason) == (DecidedBy.FALLBACK, "scores")
    assert decided.decision.actions == ()
    assert impression.items[1].pay_score in (None, -1.0)  # JSON has no NaN
    assert world.server.calls == []


@pytest.mark.parametrize(
    ("session", "changes", "reply", "said"),
    [
        (TREATED[0], {}, raising(BadRequest("input dense: 2 rows")), "refused, for example page a of bucket treated"),
        (TREATED[0], {}, raising(BadRequest("input dense: 2 rows")), "input dense: 2 rows"),
        (TREATED[0], {}, answer(np.full((1, 1), 1.6, np.float32)), "a: expected a number from 0.5 to 1.5, found 1.6"),
        (TREATED[0], {"user": {"ctr": "high"}}, None, "expected a finite number, found 'high'"),
        (CONTROL[0], {"user": {"ctr": "high"}}, None, "bad_features, for example page a of bucket control"),
        (CONTROL[0], {"items": (Item("p", 0.1, -1.0),)}, None, "item p: expected a finite pay_score"),
        (CONTROL[0], {"items": (Item("p", 1e300, 1e300),)}, None, "item at 0: expected scores that fuse to a number"),
    ],
)
def test_the_log_has_an_example_of_the_trouble_and_not_a_line_for_each_page(
    world: World, caplog: pytest.LogCaptureFixture, session: str, changes, reply, said: str
):
    world.publish(7)
    world.server.reply = reply or world.server.healthy
    now_s = 100.0
    with caplog.at_level(logging.WARNING), world.agent(monotonic=lambda: now_s) as agent:
        for name in "abc":
            agent.decide(page(session, request_id=name, **changes), LONG_S)
        assert [said in record.getMessage() for record in caplog.records] == [True]
        now_s += 60.0
        agent.decide(page(session, request_id="d", **changes), LONG_S)
        assert len(caplog.records) == 2


def test_one_page_that_meets_a_fault_of_ours_leaves_the_others_of_its_batch_alone(world: World):
    world.publish(7)
    with world.agent() as agent:
        prepare = agent._decider._encoder.prepare
        agent._decider._encoder.prepare = lambda state: 1 / 0 if state.user["ctr"] == 0.25 else prepare(state)
        odd = {"user": {"ctr": 0.25}}
        pages = [page(TREATED[0]), page(TREATED[1], **odd), page(CONTROL[0], **odd), page(TREATED[2])]
        batch = agent.decide_many(pages, LONG_S)
    assert [b.decision.fallback_reason for b in batch] == [None, "internal", None, None]
    assert [b.decision.decided_by.value for b in batch] == ["policy", "fallback", "baseline", "policy"]


def test_shedding_asks_nobody(world: World):
    world.publish(7)
    with world.agent() as agent:
        treated, control = agent.shed(page(TREATED[0])), agent.shed(page(CONTROL[0]))
    assert (treated.decision.fallback_reason, treated.item_ids) == ("overloaded", BASELINE_IDS)
    assert control.decision.decided_by is DecidedBy.BASELINE
    assert world.server.calls == []

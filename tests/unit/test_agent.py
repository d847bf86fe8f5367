"""Decisions with fakes for store, model server and log: what is served, and what is logged of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from pipeline.agent.acting import recompute
from pipeline.agent.agent import AgentRequestError
from pipeline.agent.buckets import on_canary
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.records import DecidedBy
from pipeline.stores.published import parameters_key
from tests.unit.agent_fakes import BASELINE_IDS, CONFIG, CONTROL, ITEMS, LONG_S, TREATED, World, page


@pytest.fixture
def world() -> World:
    return World()


def test_a_policy_page_carries_all_that_is_needed_to_judge_it(world: World):
    served = world.publish(7)
    with world.agent() as agent:
        decided = agent.decide(page(TREATED[0]), LONG_S)
        [impression] = world.impressions(agent)
    assert decided.decision == impression.decision
    decision = decided.decision
    assert (decision.decided_by, decision.policy, decision.bucket) == (DecidedBy.POLICY, "rl", "treated")
    assert (decision.model_version, decision.parameters) == (7, served.parameters)
    assert decision.config_sha == Snapshot.initial(CONFIG).config_sha
    assert decision.actions[0].propensity is not None
    assert decision.actions[0].propensity.mean == float(np.float32(1.2))
    assert impression.state.lookups["clicks"].hits == (True, True, False)
    assert tuple(item.item_id for item in impression.items) == decided.item_ids
    assert tuple(ITEMS[i].item_id for i in decided.order) == decided.item_ids
    assert [entry.key for entry in world.log.entries] == [TREATED[0]]


def test_the_call_names_model_and_version_and_leaves_a_reserve(world: World):
    world.publish(7)
    with world.agent(monotonic=lambda: 100.0) as agent:
        agent.decide(page(TREATED[0]), 0.5)
        agent.decide(page(TREATED[1]), 0.01)
    assert [(model, version) for model, version, _ in world.server.calls] == [("feed_rl", 7)] * 2
    assert [timeout_s for _, _, timeout_s in world.server.calls] == pytest.approx([0.498, 0.009])


def test_a_batch_leaves_a_reserve_for_each_of_its_pages_and_half_of_the_time_for_the_model(world: World):
    """A hundred pages take a hundred times as long after the model: one that hung failed the whole batch."""
    world.publish(7)
    with world.agent(monotonic=lambda: 100.0) as agent:
        agent.decide_many([page(session) for session in TREATED[:11]], 0.5)
        agent.decide_many([page(session, 1) for session in TREATED], 0.04)
    assert [timeout_s for _, _, timeout_s in world.server.calls] == pytest.approx([0.498 - 0.005, 0.04 - 0.002 - 0.02])


def test_the_baseline_bucket_gets_the_baseline_and_logs_what_a_policy_would_have_seen(world: World):
    world.publish(7)
    with world.agent() as agent:
        decided = agent.decide(page(CONTROL[0]), LONG_S)
        [impression] = world.impressions(agent)
    assert decided.item_ids == BASELINE_IDS
    assert (decided.decision.decided_by, decided.decision.policy) == (DecidedBy.BASELINE, "base")
    assert [(a.value, a.propensity) for a in decided.decision.actions] == [(1.0, None)]
    assert impression.state.lookups["clicks"].hits == (True, True, False)
    assert world.server.calls == []


def test_shadow_serves_the_baseline_and_logs_the_policy(world: World):
    world.publish(7)
    with world.agent(mode="shadow") as agent:
        decided = agent.decide(page(TREATED[0]), LONG_S)
    assert decided.item_ids == BASELINE_IDS
    assert decided.decision.decided_by is DecidedBy.BASELINE
    assert decided.decision.shadow == (float(np.float32(1.2)),)
    assert decided.decision.model_version == 7
    assert decided.decision.actions[0].value == 1.0


def test_a_canary_takes_its_share_of_the_sessions(world: World):
    stable = world.publish(7)
    world.publish(8, mean=0.2, canary=stable, share=0.3)
    with world.agent() as agent:
        versions = {s: agent.decide(page(s), LONG_S).decision.model_version for s in TREATED}
    assert versions == {s: 7 if on_canary(CONFIG.buckets, "rl", s, 0.3) else 8 for s in TREATED}
    assert set(versions.values()) == {7, 8}


def test_replicas_draw_alike_and_pages_of_a_session_follow_one_path(world: World):
    world.publish(7)
    with world.agent() as one:
        ours = [one.decide(page(TREATED[0], i), LONG_S) for i in range(4)]
    with world.agent() as other:  # in another order, and after a restart
        theirs = [other.decide(page(TREATED[0], i), LONG_S) for i in (3, 1, 0, 2)]
    assert sorted(theirs, key=lambda d: d.request_id) == ours
    first, second = (decided.decision.actions[0].propensity for decided in ours[:2])
    assert second.previous_noise == pytest.approx(first.raw - first.mean, abs=1e-15)


def test_a_decision_can_be_made_again_from_its_log(world: World):
    world.publish(7)
    with world.agent() as agent:
        for index in range(5):
            agent.decide(page(TREATED[0], index), LONG_S)
        impressions = world.impressions(agent)
    for impression in impressions:
        actions, order = recompute(CONFIG, impression)
        assert actions == impression.decision.actions  # to the last bit
        assert order == tuple(item.item_id for item in impression.items)


def test_what_the_model_saw_can_be_made_again_from_the_log(world: World):
    """State, parameters and look-ups as logged give the tensors the model was asked with, bit for bit."""
    seen: list[Mapping[str, np.ndarray]] = []
    world.publish(7)
    world.server.reply = lambda inputs, version: seen.append(inputs) or world.server.healthy(inputs, version)
    with world.agent() as agent:
        agent.decide(page(TREATED[0]), LONG_S)
        [impression] = world.impressions(agent)
    vectors = {"7": np.array([1, 2], "<f4").tobytes(), "8": np.array([3, 4], "<f4").tobytes()}

    class Vectors:
        def vectors(self, table, epoch, ids):
            return [vectors[each] for each in ids]

    snapshot = Snapshot.from_bytes(world.store.values[parameters_key("fd", impression.decision.parameters)])
    encoder = Encoder(CONFIG, Vectors())
    again = encoder.finish(encoder.prepare(impression.state).row, snapshot)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in seen[0].items()
    }


def test_a_batch_goes_to_the_model_in_one_call_and_decides_as_pages_do_alone(world: World):
    world.publish(7)
    requests = [page(s) for s in (*TREATED[:4], *CONTROL[:2])]
    with world.agent() as agent:
        batch = agent.decide_many([*requests, page("s", user_id="")], LONG_S)
    assert len(world.server.calls) == 1
    assert isinstance(batch.pop(), AgentRequestError)
    with world.agent() as agent:
        assert [agent.decide(request, LONG_S) for request in requests] == batch

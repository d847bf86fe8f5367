"""Decisions with fakes for store, model server and log: what is served, and that trouble never fails a page."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from pipeline.agent.acting import recompute
from pipeline.agent.agent import Agent, AgentRequestError, AgentSettings, PageRequest
from pipeline.agent.buckets import on_canary
from pipeline.agent.requests import MAX_PAGE_INDEX, MAX_TIME_MS, MAX_VALUE
from pipeline.config.reading import parse_config
from pipeline.events import Refusal, encode, parse
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import model_inputs
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.stored_vectors import load_vectors
from pipeline.logs.log import EVENTS, Entry
from pipeline.records import DecidedBy, Feedback, FeedbackKind, Impression, Item
from pipeline.serving.client import Prediction, Signature, TensorSpec
from pipeline.serving.errors import BadRequest, NotServed, ServingError, TooLate, Unavailable
from pipeline.stores.published import Heartbeat, Pointer, Served, agent_key, parameters_key, pointer_key
from pipeline.stores.store import StoreError

CONFIG = parse_config("""
schema_version: 1
name: feed
kv_prefix: fd
embeddings:
  shop: {lookup: external, dim: 2, epoch: e1}
features:
  - {name: ctr, kind: dense, source: user.ctr, zscore: {min_count: 2}}
  - {name: clicks, kind: sequence, source: user.clicks, embedding: shop, max_len: 3, missing: {},
     encoder: {kind: conv1d, layers: [{filters: 2, kernel: 2}], pool: max}}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.5, 1.5]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  unit: session_id
  assign: [{name: control, policy: base, slots: [0, 49]}, {name: treated, policy: rl, slots: [50, 99]}]
""")
ITEMS = (Item("x", 0.1, 0.5), Item("y", 0.9, 0.01), Item("z", 0.5, 0.2), Item("w", 0.1, 0.5))
BASELINE_IDS = ("z", "x", "w", "y")  # scores .055 .054 .125 .055
QUICK = AgentSettings(follow_every_s=0.02, heartbeat_every_s=0.05)
LONG_S = 30.0  # a deadline that only a hanging test would meet


class MemoryStore:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False
        self.hangs: threading.Event | None = None  # until set

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if self.hangs is not None and any(":e:" in key for key in keys):
            self.hangs.wait(LONG_S)
        if self.broken:
            raise StoreError("store: expected an answer, found none")
        return [self.values.get(key) for key in keys]

    def get(self, key: str) -> bytes | None:
        return self.get_many([key])[0]

    def put_many(self, values: Mapping[str, bytes]) -> None:
        self.values.update(values)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.values.pop(key, None)

    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        if self.values.get(key) != expected:
            return False
        self.values[key] = value
        return True


class FakeServer:
    """Answers with `means`; each call can be replaced by an error or another reply."""

    def __init__(self) -> None:
        self.means = 1.2
        self.reply: Callable[[Mapping[str, np.ndarray], int], Prediction] = self.healthy
        self.signature = {i.name: TensorSpec(i.dtype, (None, *i.shape)) for i in model_inputs(CONFIG)}
        self.calls: list[tuple[str, int | None, float]] = []

    def healthy(self, inputs: Mapping[str, np.ndarray], version: int) -> Prediction:
        return Prediction(version, {"action": np.full((len(inputs["dense"]), 1), self.means, np.float32)})

    def predict(self, model, inputs, *, version=None, timeout_s) -> Prediction:
        self.calls.append((model, version, timeout_s))
        return self.reply(inputs, version)

    def metadata(self, model, version, timeout_s) -> Signature:
        return Signature(version, self.signature, {"action": TensorSpec("float32", (None, 1))})


class MemoryLog:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def append(self, topic: str, entries: Sequence[Entry]) -> None:
        assert topic == EVENTS
        self.entries.extend(entries)


class World:
    """One store, one model server, one log, and agents over them."""

    def __init__(self) -> None:
        self.store, self.server, self.log = MemoryStore(), FakeServer(), MemoryLog()
        load_vectors(self.store, "fd", "shop", "e1", ["7", "8"], np.array([[1, 2], [3, 4]], np.float32))

    def publish(self, version: int, *, mean: float = 0.1, config=CONFIG, **pointer) -> Served:
        """Make a version with its own parameters stable."""
        initial = Snapshot.initial(config)
        snapshot = Snapshot(initial.config_sha, {"ctr": Moments(10, mean, 10.0)}, {}, initial.epochs)
        served = Served(version, snapshot.sha256)
        self.store.put(parameters_key("fd", snapshot.sha256), snapshot.to_bytes())
        self.point(**{"stable": served, **pointer})
        return served

    def point(self, **pointer) -> None:
        self.store.put(pointer_key("fd", "rl"), msgspec.json.encode(Pointer(**pointer)))

    @contextmanager
    def agent(self, **kwargs) -> Iterator[Agent]:
        settings = kwargs.pop("settings", QUICK)
        with Agent(CONFIG, self.store, self.server, self.log, agent_id="agent-0", settings=settings, **kwargs) as agent:
            agent.wait_ready(1.0 if self.store.broken else LONG_S)
            yield agent

    def impressions(self, agent: Agent) -> list[Impression]:
        assert agent.flush(LONG_S)
        return [parse(entry.payload, 10**6) for entry in self.log.entries]


@pytest.fixture
def world() -> World:
    return World()


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.005)


def page(session: str = "treated-1", index: int = 0, request_id: str | None = None, **changes) -> PageRequest:
    user = {"ctr": 0.5, "clicks": ("7", 8, "9"), **changes.pop("user", {})}
    request_id = request_id or f"{session}/{index}"
    return PageRequest(**{
        "request_id": request_id, "user_id": "u", "session_id": session, "page_index": index,
        "items": ITEMS, "user": user, "time_ms": 1_000, **changes,
    })  # fmt: skip


def sessions(bucket: str, count: int) -> list[str]:
    """Session ids of a bucket."""
    from pipeline.agent.buckets import bucket_table, slot_of

    table = bucket_table(CONFIG.buckets)
    names = (f"{bucket}-{i}" for i in range(100 * count))
    return [name for name in names if table[slot_of(CONFIG.buckets, name)].name == bucket][:count]


TREATED, CONTROL = sessions("treated", 50), sessions("control", 5)


# What is served --------------------------------------------------------------------------------------------------


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


# Trouble ---------------------------------------------------------------------------------------------------------


def answer(array: np.ndarray | None, version: int | None = None):
    def reply(inputs, asked):
        return Prediction(version or asked, {} if array is None else {"action": array})

    return reply


def raising(error: Exception):
    def reply(inputs, version):
        raise error

    return reply


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
        known = agent.decide(page(TREATED[0]), LONG_S)
        world.store.broken = True
        cached = agent.decide(page(TREATED[1]), LONG_S)
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
        agent.decide(page(TREATED[0]), LONG_S)  # the vectors are in memory now
        decided = agent.decide(page(TREATED[1]), 0.0)
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


def test_shedding_asks_nobody(world: World):
    world.publish(7)
    with world.agent() as agent:
        treated, control = agent.shed(page(TREATED[0])), agent.shed(page(CONTROL[0]))
    assert (treated.decision.fallback_reason, treated.item_ids) == ("overloaded", BASELINE_IDS)
    assert control.decision.decided_by is DecidedBy.BASELINE
    assert world.server.calls == []


# Following what is published -------------------------------------------------------------------------------------


def test_the_kill_switch_works_without_store_and_model(world: World):
    served = world.publish(7)
    with world.agent() as agent:
        world.point(stable=served, off=True)
        eventually(
            lambda: agent.decide(page(TREATED[0], request_id=str(time.time_ns())), 1).decision.model_version is None
        )
        decided = agent.decide(page(TREATED[0], 1), LONG_S)
    assert (decided.decision.fallback_reason, decided.item_ids) == ("off", BASELINE_IDS)


def test_the_kill_switch_does_not_wait_for_a_version_that_is_being_built(world: World):
    world.publish(7)
    built = threading.Event()
    with world.agent() as agent:
        metadata = world.server.metadata
        world.server.metadata = lambda *args: built.wait(LONG_S) and metadata(*args)
        world.publish(8, mean=0.2, off=True)
        eventually(
            lambda: (
                agent.decide(page(TREATED[0], request_id=str(time.time_ns())), LONG_S).decision.fallback_reason == "off"
            )
        )
        assert not built.is_set()
        built.set()


def test_an_agent_in_mode_off_asks_nobody(world: World):
    world.publish(7)
    with world.agent(mode="off") as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "off"
    assert world.server.calls == []


def test_parameters_of_another_config_are_refused(world: World):
    other = msgspec.structs.replace(CONFIG, action=(msgspec.structs.replace(CONFIG.action[0], baseline=1.1),))
    world.publish(7, config=other)
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "version_mismatch"
    assert world.server.calls == []


@pytest.mark.parametrize(
    "change",
    [
        {"dense": None},
        {"other": TensorSpec("float32", (None,))},
        {"dense": TensorSpec("float64", (None, 1))},
        {"dense": TensorSpec("float32", (None, 2))},
        {"dense": TensorSpec("float32", (1, 1))},
        {"dense": TensorSpec("float32", (None,))},
    ],
)
def test_a_model_of_another_signature_is_refused(world: World, change):
    world.publish(7)
    signature = {**world.server.signature, **change}
    world.server.signature = {name: spec for name, spec in signature.items() if spec is not None}
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "bad_signature"
        assert agent.metrics.total("pin_failures", reason="bad_signature") >= 1
    assert world.server.calls == []


def test_sizes_that_a_model_leaves_open_fit(world: World):
    world.publish(7)
    world.server.signature["dense"] = TensorSpec("float32", (None, None))
    world.server.signature["clicks"] = TensorSpec("float32", None)
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.model_version == 7


def test_parameters_that_are_not_what_their_name_says_are_not_used(world: World):
    served = world.publish(7)
    world.store.values[parameters_key("fd", served.parameters)] += b"\0"
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "store"


def test_the_version_before_stays_while_the_next_cannot_be_built(world: World):
    world.publish(7)
    with world.agent() as agent:
        served = world.publish(8, mean=0.2)
        blob = world.store.values.pop(parameters_key("fd", served.parameters))
        # a look that had begun before may have had both; from here on neither can
        failures = agent.metrics.total("pin_failures")
        if agent.decide(page(TREATED[0]), LONG_S).decision.model_version == 7:
            eventually(lambda: agent.metrics.total("pin_failures") > failures)
            assert agent.decide(page(TREATED[1]), LONG_S).decision.model_version == 7
        world.store.put(parameters_key("fd", served.parameters), blob)
        eventually(
            lambda: agent.decide(page(TREATED[2], request_id=str(time.time_ns())), 1).decision.model_version == 8
        )


def test_a_version_that_is_gone_is_looked_up_once_more(world: World):
    world.publish(7)

    def reply(inputs, version):
        if version == 7:
            world.publish(8, mean=0.2)
            raise NotServed("Servable not found for request: Specific(feed_rl, 7)")
        return world.server.healthy(inputs, version)

    world.server.reply = reply
    with world.agent(settings=AgentSettings(follow_every_s=600.0)) as agent:
        decided = agent.decide_many([page(s) for s in TREATED[:3]], LONG_S)
        assert agent.metrics.total("retries") == 1
    assert [d.decision.model_version for d in decided] == [8, 8, 8]


def test_no_decision_mixes_two_versions_while_they_are_swapped(world: World):
    """Version v standardises with mean v / 10: the server can tell whose parameters made its input."""
    mixed: list[tuple[int, float]] = []

    def reply(inputs, version):
        expected = np.float32((0.5 - version / 10) / 1.0)
        if not np.allclose(inputs["dense"][:, 0], expected, atol=1e-6):
            mixed.append((version, float(inputs["dense"][0, 0])))
        return world.server.healthy(inputs, version)

    world.server.reply = reply
    world.publish(1, mean=0.1)
    with world.agent(settings=AgentSettings(follow_every_s=0.002)) as agent:
        used = set()
        for version in range(2, 8):
            for attempt in range(20):
                decided = agent.decide(page(TREATED[attempt], version), LONG_S)
                assert decided.decision.decided_by is DecidedBy.POLICY
                snapshot = Snapshot.from_bytes(world.store.values[parameters_key("fd", decided.decision.parameters)])
                assert snapshot.moments["ctr"].mean == decided.decision.model_version / 10
                used.add(decided.decision.model_version)
            world.publish(version, mean=version / 10)
            eventually(
                lambda v=version: (
                    agent.decide(page("treated-1", 0, str(time.time_ns())), 1)
                    and agent._follower.route("rl").stable.served.version == v
                )
            )
    assert mixed == []
    assert used >= {1, 2, 3, 4, 5, 6}


def test_the_heartbeat_says_which_version_is_in_use_and_ends_with_the_agent(world: World):
    world.publish(7)
    key = agent_key("fd", "agent-0")

    def versions() -> dict[str, int]:
        value = world.store.values.get(key)
        return {} if value is None else msgspec.json.decode(value, type=Heartbeat).versions

    with world.agent(clock_ms=lambda: 123) as agent:
        eventually(lambda: versions() == {"rl": 7})
        assert json.loads(world.store.values[key])["time_ms"] == 123
        world.publish(8, mean=0.2)
        eventually(lambda: versions() == {"rl": 8})
        assert agent.problems() == ()
    assert key not in world.store.values


# Retries, requests, feedback -------------------------------------------------------------------------------------


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

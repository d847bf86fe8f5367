"""How an agent follows what is published: which versions it uses, and which it does not."""

from __future__ import annotations

import json
import threading
import time

import msgspec
import numpy as np
import pytest

from pipeline.agent.agent import AgentSettings
from pipeline.agent.buckets import on_canary
from pipeline.agent.policies import Pinned, Route, next_route
from pipeline.agent.reasons import Reason, Trouble
from pipeline.config.reading import parse_config
from pipeline.config.schema import Guard
from pipeline.features.inputs import model_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.records import DecidedBy
from pipeline.serving.client import TensorSpec
from pipeline.serving.errors import BadRequest, NotServed
from pipeline.stores.published import Heartbeat, Pointer, Served, Usage, agent_key, parameters_key, pointer_key
from tests.unit.agent_fakes import BASELINE_IDS, CONFIG, LONG_S, TREATED, World, answer, eventually, page, raising


@pytest.fixture
def world() -> World:
    return World()


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


def test_nor_for_one_that_was_being_built_before_and_a_switch_that_was_released_is_followed_as_well(world: World):
    world.publish(7)
    begun, built = threading.Event(), threading.Event()
    asked = iter(range(10**6))

    def reason(agent) -> str | None:
        return agent.decide(page(TREATED[0], request_id=f"r{next(asked)}"), LONG_S).decision.fallback_reason

    with world.agent() as agent:
        metadata = world.server.metadata
        world.server.metadata = lambda *args: (begun.set(), built.wait(LONG_S), metadata(*args))[-1]
        served = world.publish(8, mean=0.2)
        assert begun.wait(LONG_S)
        world.point(stable=served, off=True)
        eventually(lambda: reason(agent) == "off")
        assert not built.is_set()
        built.set()
        eventually(lambda: agent._follower.route("rl").stable.served.version == 8)
        assert reason(agent) == "off"
        world.point(stable=served)
        eventually(lambda: reason(agent) is None)


def test_a_look_that_finds_nothing_to_build_starts_no_thread(world: World, monkeypatch: pytest.MonkeyPatch):
    world.publish(7)
    with world.agent() as agent:
        begun: list[str] = []
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: (begun.append(thread.name), start(thread))[-1])
        assert all(agent._follower.refresh(LONG_S) for _ in range(5))
        assert "versions" not in begun
        world.publish(8, mean=0.2)
        assert agent._follower.refresh(LONG_S)
        assert begun.count("versions") == 1


TWO = parse_config("""
schema_version: 1
name: feed
kv_prefix: fd
features: [{name: ctr, kind: dense, source: user.ctr}]
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.5, 1.5]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}, {name: odd, kind: learned}]
buckets:
  salt: s
  unit: session_id
  assign:
    - {name: control, policy: base, slots: [0, 49]}
    - {name: treated, policy: rl, slots: [50, 69]}
    - {name: odd, policy: odd, slots: [70, 99]}
""")


@pytest.mark.parametrize("spoilt", ["pointer", "metadata"])
def test_a_policy_that_cannot_be_followed_holds_up_no_other_and_not_its_switch(world: World, spoilt: str):
    initial = Snapshot.initial(TWO)
    world.store.put(parameters_key("fd", initial.sha256), initial.to_bytes())
    world.server.signature = {i.name: TensorSpec(i.dtype, (None, *i.shape)) for i in model_inputs(TWO)}
    metadata = world.server.metadata

    def point(policy: str, version: int, **pointer) -> None:
        record = Pointer(stable=Served(version, initial.sha256), **pointer)
        world.store.put(pointer_key("fd", policy), msgspec.json.encode(record))

    def of_odd(model: str, version: int, timeout_s: float):
        if model == "feed_odd" and version == 8:
            raise ValueError("not what a model server says")
        return metadata(model, version, timeout_s)

    world.server.metadata = of_odd
    point("odd", 7)
    point("rl", 7)
    with world.agent(config=TWO) as agent:
        route = agent._follower.route
        eventually(lambda: route("odd").stable is not None)
        if spoilt == "pointer":
            world.store.put(pointer_key("fd", "odd"), b"spoilt")
        else:
            point("odd", 8)
        point("rl", 8, off=True)
        eventually(lambda: route("rl").off and route("rl").stable.served.version == 8)
        assert route("odd").stable.served.version == 7
        eventually(lambda: agent.metrics.total("pointer_errors") > 1)
        assert agent.problems() == ()
        point("odd", 7, off=True)
        eventually(lambda: route("odd").off)
        point("odd", 9)
        eventually(lambda: route("odd").stable.served.version == 9 and not route("odd").off)


def test_a_pointer_that_never_could_be_read_is_the_stores_trouble(world: World):
    world.store.put(pointer_key("fd", "rl"), b"spoilt")
    with world.agent() as agent:
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "store"


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


def test_what_something_else_says_at_the_servers_address_is_not_said_of_the_version(world: World):
    """A proxy without a route answers 404, which gRPC calls UNIMPLEMENTED: the version was refused until the next."""
    metadata, troubles = world.server.metadata, [BadRequest("404", code="UNIMPLEMENTED")]
    world.server.metadata = lambda *args: metadata(*args) if not troubles else raising(troubles.pop())(*args[:2])
    world.publish(7)
    with world.agent() as agent:
        eventually(lambda: agent._follower.route("rl").stable is not None)
        world.server.reply = raising(BadRequest("404", code="UNIMPLEMENTED"))
        assert agent.decide(page(TREATED[0]), LONG_S).decision.fallback_reason == "unavailable"


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
        elsewhere = World()
        served = elsewhere.publish(8, mean=0.2)
        world.point(stable=served)
        eventually(lambda: agent.metrics.total("pin_failures") > 1)  # the first may be counted before it takes effect
        assert agent.decide(page(TREATED[1]), LONG_S).decision.model_version == 7
        key = parameters_key("fd", served.parameters)
        world.store.put(key, elsewhere.store.values[key])
        eventually(
            lambda: agent.decide(page(TREATED[2], request_id=str(time.time_ns())), 1).decision.model_version == 8
        )


def test_the_log_says_why_a_version_cannot_be_used(world: World, caplog: pytest.LogCaptureFixture):
    served = world.publish(7)
    world.store.values.pop(parameters_key("fd", served.parameters))
    with world.agent() as agent:
        eventually(lambda: agent.metrics.total("pin_failures", reason="store") > 3)
    assert [r.getMessage() for r in caplog.records if served.parameters in r.getMessage()] == [
        f"a version that was published cannot be used: store: it has no parameters {served.parameters}"
    ]


def test_the_version_in_use_stays_while_the_store_has_lost_the_pointer(world: World):
    world.publish(7)
    with world.agent() as agent:
        agent.wait_ready(LONG_S)
        world.store.values.clear()
        eventually(lambda: agent.metrics.total("pin_failures", reason="no_model") > 1)
        assert agent.decide(page(TREATED[0]), LONG_S).decision.model_version == 7
        world.publish(8, mean=0.2)
        eventually(
            lambda: agent.decide(page(TREATED[1], request_id=str(time.time_ns())), 1).decision.model_version == 8
        )


def test_the_kill_switch_works_on_a_pointer_that_was_lost_and_outlasts_its_loss(world: World):
    served = world.publish(7)
    with world.agent() as agent:
        agent.wait_ready(LONG_S)
        world.store.values.clear()
        world.point(off=True)
        asked = iter(range(10**6))
        eventually(
            lambda: agent.decide(page(TREATED[0], request_id=f"a{next(asked)}"), 1).decision.fallback_reason == "off"
        )
        world.store.values.clear()
        looks = agent.metrics.total("pin_failures", reason="no_model")
        eventually(lambda: agent.metrics.total("pin_failures", reason="no_model") > looks + 1)
        assert agent.decide(page(TREATED[0], request_id="b"), LONG_S).decision.fallback_reason == "off"
        world.publish(7)
        eventually(
            lambda: (
                agent.decide(page(TREATED[0], request_id=f"c{next(asked)}"), 1).decision.model_version == served.version
            )
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


def test_the_heartbeat_tells_a_canary_from_the_version_beside_it(world: World) -> None:
    """Also of pages that fell back: they are the canary's where the canary was to decide them."""
    stable = world.publish(7)
    canary = world.publish(8, mean=0.2, stable=stable, share=0.3)
    world.point(stable=stable, canary=canary, share=0.3)
    config = msgspec.structs.replace(CONFIG, publish=msgspec.structs.replace(CONFIG.publish, guard=Guard(slow=600_000)))
    tried = [session for session in TREATED if on_canary(CONFIG.buckets, "rl", session, 0.3)]
    healthy = world.server.reply
    world.server.reply = lambda inputs, version: (
        healthy(inputs, version) if version == 7 else answer(np.full((1, 1), np.nan, np.float32))(inputs, version)
    )
    key = agent_key("fd", "agent-0")
    with world.agent(config=config) as agent:
        for session in TREATED:
            agent.decide(page(session), LONG_S)
        expected = {8: Usage(len(tried), len(tried), len(tried)), 7: Usage(n := len(TREATED) - len(tried), 0, n)}

        def said() -> bool:
            beat = msgspec.json.decode(
                world.store.values.get(key, b'{"agent":"","time_ms":0,"versions":{}}'), type=Heartbeat
            )
            counts = (beat.usage.get("rl", Usage()), beat.canary_usage.get("rl", Usage()))
            return (beat.versions, beat.canaries, *counts) == ({"rl": 7}, {"rl": 8}, expected[7], expected[8])

        eventually(said)


def test_while_a_canary_cannot_be_built_its_share_has_the_stable_version() -> None:
    """And not the canary before it, which nobody watches any more; as soon as it can, it is tried."""
    stable, sent_back, canary = (Pinned("rl", "m", Served(i, "p"), Snapshot.initial(CONFIG)) for i in (1, 2, 3))
    pointer = Pointer(stable=stable.served, canary=canary.served, share=0.3)
    troubles = [Trouble(Reason.UNAVAILABLE), Trouble(Reason.BAD_SIGNATURE)]

    def pin(policy: str, served: Served) -> Pinned:
        if troubles:
            raise troubles.pop(0)
        return canary

    route, failed = Route(stable, sent_back, 0.3), []
    for expected in (stable, stable, canary):
        route = next_route("rl", route, pointer, pin, failed.append)
        assert route.choose(on_canary=True) is expected
    assert [trouble.reason for trouble in failed] == [Reason.UNAVAILABLE, Reason.BAD_SIGNATURE]


def test_calls_are_timed_by_what_their_version_is_by_then() -> None:
    """Three roles, however many versions there were: a label by version would grow by one a minute."""
    first, second, third = (Pinned("rl", "m", Served(i, "p"), Snapshot.initial(CONFIG)) for i in (1, 2, 3))
    route = Route(stable=second, canary=third)
    assert [route.role(pinned) for pinned in (first, second, third)] == ["before", "stable", "canary"]

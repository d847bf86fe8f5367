"""The gRPC service over the real store, the real log and the real model server client; the server behind is small."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import grpc
import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pipeline.agent import agent_pb2 as pb
from pipeline.agent import build_protos, translate
from pipeline.agent.agent import Agent, AgentSettings, PageRequest
from pipeline.agent.agent_pb2_grpc import AgentStub
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.client import AgentClient, Reporter
from pipeline.agent.service import (
    BACKGROUND,
    SERVICE,
    AgentService,
    RunningService,
    ServiceError,
    ServiceSettings,
    serve,
    serve_until,
)
from pipeline.config.reading import parse_config
from pipeline.events import parse
from pipeline.features.inputs import model_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.logs.log import EVENTS, Entry
from pipeline.logs.opening import open_log
from pipeline.records import Feedback, FeedbackKind, Impression, Item
from pipeline.serving import protos, tensors
from pipeline.serving.client import ModelServer
from pipeline.serving.launch import free_port
from pipeline.stores.opening import open_store
from pipeline.stores.published import Pointer, Served, parameters_key, pointer_key

LONG_S = 60.0
CONFIG = parse_config("""
schema_version: 1
name: feed
kv_prefix: fd
embeddings: {}
features:
  - {name: ctr, kind: dense, source: user.ctr, missing: {fill: 0}}
  - {name: bits, kind: bits, source: context.bits, width: 64, missing: {}}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.5, 1.5], noise: {sigma: 0}}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  unit: session_id
  assign: [{name: control, policy: base, slots: [0, 49]}, {name: treated, policy: rl, slots: [50, 99]}]
""")
TABLE = bucket_table(CONFIG.buckets)
TREATED = [s for s in (f"s{i}" for i in range(200)) if TABLE[slot_of(CONFIG.buckets, s)].name == "treated"]
CONTROL = [s for s in (f"s{i}" for i in range(200)) if TABLE[slot_of(CONFIG.buckets, s)].name == "control"]


class SmallModelServer:
    """Speaks Predict and GetModelMetadata of tensorflow.serving; its policy says 1.5, as fast as its gate lets it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Semaphore(0)
        self.left_s: list[float] = []  # of the deadline, at each Predict
        self._server = grpc.server(ThreadPoolExecutor(32))
        methods = {
            "Predict": grpc.unary_unary_rpc_method_handler(
                self._predict, protos.PredictRequest.FromString, lambda m: m.SerializeToString()
            ),
            "GetModelMetadata": grpc.unary_unary_rpc_method_handler(
                self._metadata, protos.GetModelMetadataRequest.FromString, lambda m: m.SerializeToString()
            ),
        }
        handler = grpc.method_handlers_generic_handler(protos.PREDICTION_SERVICE, methods)
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _predict(self, request, context):
        self.left_s.append(context.time_remaining())
        self.asked.release()
        self.gate.wait(LONG_S)
        response = protos.PredictResponse(model_spec=request.model_spec)
        rows = request.inputs["dense"].tensor_shape.dim[0].size
        tensors.encode_typed_into(response.outputs["action"], np.full((rows, 1), 1.5, np.float32))
        return response

    def _metadata(self, request, context):
        signatures = protos.SignatureDefMap()
        signature = signatures.signature_def["serving_default"]
        for each in model_inputs(CONFIG):
            _describe(signature.inputs[each.name], each.dtype, each.shape)
        _describe(signature.outputs["action"], "float32", (1,))
        response = protos.GetModelMetadataResponse(model_spec=request.model_spec)
        response.metadata["signature_def"].MergeFromString(
            AnyMessage(value=signatures.SerializeToString()).SerializeToString()
        )
        return response

    def close(self) -> None:
        self.gate.set()
        self._server.stop(None).wait()


def _describe(info, dtype: str, shape: tuple[int, ...]) -> None:
    info.dtype = {"float32": 1, "int32": 3}[dtype]
    for size in (-1, *shape):
        info.tensor_shape.dim.add(size=size)


class World:
    def __init__(self, folder: Path) -> None:
        self.models = SmallModelServer()
        self.store = open_store(f"sqlite://{folder}/store.db")
        self.log = open_log(f"file://{folder}/log")
        self.log.create(EVENTS, 2)
        self.gate = threading.Event()  # of the log
        self.gate.set()
        self._append_to_log, self.log.append = self.log.append, self._append
        snapshot = Snapshot.initial(CONFIG)
        self.store.put(parameters_key("fd", snapshot.sha256), snapshot.to_bytes())
        pointer = Pointer(stable=Served(7, snapshot.sha256))
        self.store.put(pointer_key("fd", "rl"), msgspec.json.encode(pointer))
        self.client = ModelServer(f"127.0.0.1:{self.models.port}")
        self.agent = Agent(
            CONFIG, self.store, self.client, self.log, agent_id="a",
            settings=AgentSettings(follow_every_s=0.05, metadata_timeout_s=LONG_S),
        )  # fmt: skip
        assert self.agent.wait_ready(LONG_S)

    def _append(self, topic: str, entries: Sequence[Entry]) -> None:
        assert self.gate.wait(LONG_S)
        self._append_to_log(topic, entries)

    def events(self) -> list:
        assert self.agent.flush(LONG_S)
        return self.logged()

    def logged(self) -> list:
        """What is in the log now."""
        partitions = range(self.log.partitions(EVENTS))
        return [parse(record.payload, 10**6) for p in partitions for record in self.log.read(EVENTS, p, 0, 1_000)]

    def close(self) -> None:
        self.gate.set()
        self.models.close()
        self.agent.close()
        self.client.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def running(world: World) -> Iterator[RunningService]:
    running = serve(world.agent, 0, settings=ServiceSettings(concurrency=2, default_timeout_s=LONG_S))
    yield running
    world.models.gate.set()
    running.stop()


@pytest.fixture
def channel(running: RunningService) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel


@pytest.fixture
def agent(channel: grpc.Channel) -> AgentStub:
    return AgentStub(channel)


def page(session: str = TREATED[0], index: int = 0, **changes) -> pb.DecideRequest:
    items = [
        pb.Item(item_id="x", click_score=0.9, pay_score=0.0),
        pb.Item(item_id="y", click_score=0.1, pay_score=0.5, features={"price": pb.Value(integer=3)}),
    ]
    return pb.DecideRequest(**{
        "request_id": f"{session}/{index}", "user_id": "u", "session_id": session, "page_index": index,
        "items": items, "user": {"ctr": pb.Value(number=0.25)}, **changes,
    })  # fmt: skip


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.01)


def test_a_page_is_decided_by_the_policy(world: World, agent: AgentStub):
    decided = agent.Decide(page(), timeout=LONG_S)
    assert decided.decided_by == pb.DECIDED_BY_POLICY
    assert list(decided.item_ids) == ["x", "y"]  # .0675 and .0575; at the baseline .045 and .055
    assert list(decided.order) == [0, 1]
    assert (decided.policy, decided.bucket, decided.model_version) == ("rl", "treated", 7)
    assert [(action.name, action.value) for action in decided.actions] == [("a", 1.5)]
    assert not decided.HasField("fallback_reason")
    [impression] = world.events()
    assert impression.request_id == decided.request_id
    assert [item.item_id for item in impression.items] == list(decided.item_ids)


def test_a_page_of_the_baseline_bucket(agent: AgentStub):
    decided = agent.Decide(page(CONTROL[0]), timeout=LONG_S)
    assert (decided.decided_by, list(decided.item_ids)) == (pb.DECIDED_BY_BASELINE, ["y", "x"])
    assert not decided.HasField("model_version")


def test_every_kind_of_raw_value_arrives_in_the_log_as_it_was(world: World, agent: AgentStub):
    raw = {
        "number": 0.5, "integer": -3, "bits": 2**64 - 1, "text": "ü", "flag": True, "absent": None,
        "list": ("a", 1, 2.5, False), "empty": (),
    }  # fmt: skip
    message = page(time_ms=5)
    translate.fill_features(message.context, raw)
    agent.Decide(message, timeout=LONG_S)
    [impression] = world.events()
    assert impression.state.context == raw
    assert {type(v) for v in impression.state.context["list"]} == {str, int, float, bool}
    assert impression.time_ms == 5
    assert impression.items[1].features == {"price": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_id": ""}, "request_id: expected text of 1 to 256 characters"),
        ({"page_index": -1}, "page_index: expected an integer from 0"),
        ({"items": []}, "items: expected 1 to 1000 items, found 0"),
        (
            {"user": {"l": pb.Value(list=pb.Value.List(values=[pb.Value()]))}},
            r"user.l[0]: expected a number, text or flag, found nothing",
        ),
        ({"user": {"t": pb.Value(text="x" * 1_100_000)}}, "expected an impression of at most 1000000 bytes"),
    ],
)
def test_a_wrong_request_is_an_invalid_argument_and_whoever_runs_the_agent_sees_it(
    world: World, agent: AgentStub, caplog: pytest.LogCaptureFixture, changes, message: str
):
    with pytest.raises(grpc.RpcError) as caught:
        agent.Decide(page(**changes), timeout=LONG_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()
    batch = agent.DecideBatch(pb.DecideBatchRequest(pages=[page(**changes), page()]), timeout=LONG_S)
    assert message in batch.answers[0].error
    assert world.agent.metrics.total("requests_refused", kind="page") == 2
    assert [message in record.getMessage() for record in caplog.records] == [True]  # one of a minute


def test_a_slow_model_server_costs_the_policy_not_the_page(world: World):
    world.models.gate.clear()
    running = serve(world.agent, 0, settings=ServiceSettings(default_timeout_s=0.05))
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        decided = AgentStub(channel).Decide(page())  # answers while the model server is still stuck
    assert (decided.decided_by, decided.fallback_reason) == (pb.DECIDED_BY_FALLBACK, "timeout")
    assert list(decided.item_ids) == ["y", "x"]
    running.stop()


@pytest.mark.parametrize(("timeout_s", "for_the_model_s"), [(40.0, 39.9), (2.0, 1.85)])
def test_the_callers_deadline_holds_for_the_model_and_leaves_time_for_the_reply(
    world: World, agent: AgentStub, timeout_s: float, for_the_model_s: float
):
    for attempt in range(1_000):  # where the machine stood still for so long, the model was not asked
        with suppress(grpc.RpcError):
            agent.Decide(page(index=attempt), timeout=timeout_s)
        if world.models.left_s:
            break
    [left_s] = world.models.left_s
    assert 0 < left_s <= for_the_model_s  # gRPC sends a timeout with three digits, rounded up


def test_callers_connect_anew_now_and_then_so_that_added_agents_get_pages(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """A name is looked up when a connection ends: without an end the agents of the first day have all of the pages."""
    peers = set()
    decide = AgentService.Decide

    def noted(self: AgentService, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideResponse:
        peers.add(context.peer())
        return decide(self, request, context)

    monkeypatch.setattr(AgentService, "Decide", noted)
    running = serve(world.agent, 0, settings=ServiceSettings(connection_s=0.5))
    until_s = time.monotonic() + LONG_S
    with AgentClient(f"127.0.0.1:{running.port}") as client:
        assert client.wait_ready(LONG_S)
        asked = 0
        while len(peers) < 3:  # no call fails meanwhile
            assert time.monotonic() < until_s, peers
            asked += 1
            client.decide(
                PageRequest(f"r{asked}", "u", CONTROL[0], asked, (Item("x", 0.9, 0.0),), {"ctr": 0.25}), LONG_S
            )
    running.stop()


def test_a_dead_model_server_costs_the_policy_not_the_page(world: World, agent: AgentStub):
    world.models.close()
    decided = agent.Decide(page(), timeout=LONG_S)
    assert decided.fallback_reason == "unavailable"
    assert list(decided.item_ids) == ["y", "x"]


def test_a_call_with_hardly_any_time_left_gets_the_baseline_for_want_of_time_and_not_of_agents(world: World):
    """`overloaded` means that there are too few agents, and has somebody add some."""
    running = serve(world.agent, 0, settings=ServiceSettings(default_timeout_s=0.001))
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        decided = AgentStub(channel).Decide(page())
    assert (decided.decided_by, decided.fallback_reason) == (pb.DECIDED_BY_FALLBACK, "timeout")
    assert not world.models.asked.acquire(blocking=False)
    running.stop()


def test_tools_that_are_left_open_take_no_thread_of_pages(world: World):
    running = serve(world.agent, 0, settings=ServiceSettings(concurrency=2, reports=2, default_timeout_s=LONG_S))
    over = threading.Event()

    def looks() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(LONG_S)

    def refused(call) -> bool:
        try:
            return not next(call).list_services_response.service
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        look = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        streams = [look(looks(), timeout=LONG_S) for _ in range(12)]
        assert sum(refused(stream) for stream in streams) == 10
        assert AgentStub(channel).Decide(page(), timeout=LONG_S).decided_by == pb.DECIDED_BY_POLICY
        over.set()
        eventually(lambda: not refused(look(iter([*looks()]), timeout=LONG_S)))
    running.stop()


def test_calls_beyond_the_capacity_get_the_baseline_at_once(world: World, agent: AgentStub):
    world.models.gate.clear()
    stuck = [agent.Decide.future(page(TREATED[i]), timeout=LONG_S) for i in range(2)]
    for _ in stuck:
        assert world.models.asked.acquire(timeout=LONG_S)
    shed = agent.Decide(page(TREATED[2]), timeout=LONG_S)
    assert (shed.decided_by, shed.fallback_reason) == (pb.DECIDED_BY_FALLBACK, "overloaded")
    assert not any(call.done() for call in stuck)
    world.models.gate.set()
    assert [call.result(LONG_S).decided_by for call in stuck] == [pb.DECIDED_BY_POLICY] * 2
    assert agent.Decide(page(TREATED[3]), timeout=LONG_S).decided_by == pb.DECIDED_BY_POLICY


def test_a_batch_of_too_many_pages_is_refused_as_a_whole(world: World, agent: AgentStub):
    most = pb.DecideBatchRequest(pages=[page(TREATED[0], index) for index in range(256)])
    assert len(agent.DecideBatch(most, timeout=LONG_S).answers) == 256
    more = pb.DecideBatchRequest(pages=[*most.pages, page()])
    with pytest.raises(grpc.RpcError, match="pages: expected at most 256 in a batch, found 257") as caught:
        agent.DecideBatch(more, timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert world.agent.metrics.total("requests_refused", kind="batch") == 1


def test_a_batch_answers_every_page_in_order(world: World, agent: AgentStub):
    pages = [page(TREATED[0]), page(CONTROL[0]), page(user_id=""), page(TREATED[1])]
    pages.append(page(TREATED[2], user={"l": pb.Value(list=pb.Value.List(values=[pb.Value()]))}))
    answers = agent.DecideBatch(pb.DecideBatchRequest(pages=pages), timeout=LONG_S).answers
    assert [a.WhichOneof("answer") for a in answers] == ["decision", "decision", "error", "decision", "error"]
    assert [a.decision.request_id for a in answers if a.HasField("decision")] == [
        pages[i].request_id for i in (0, 1, 3)
    ]
    assert "user_id: expected text" in answers[2].error
    assert agent.DecideBatch(pb.DecideBatchRequest(), timeout=LONG_S).answers == []
    assert len(world.events()) == 3


def test_feedback_is_logged(world: World, agent: AgentStub):
    common = {"request_id": "r", "user_id": "u", "session_id": "s"}
    clicked = pb.Feedback(event_id="1", kind=pb.FEEDBACK_KIND_CLICK, item_id="x", time_ms=5, **common)
    left = pb.Feedback(event_id="2", kind=pb.FEEDBACK_KIND_LEAVE, value=0.0, **common)
    agent.Report(pb.ReportRequest(feedback=[clicked, left]), timeout=LONG_S)
    first, second = world.events()
    assert (first.kind, first.item_id, first.time_ms, first.value) == (FeedbackKind.CLICK, "x", 5, 1.0)
    assert (second.kind, second.item_id, second.value) == (FeedbackKind.LEAVE, None, 0.0)
    assert second.time_ms > 1_600_000_000_000


@pytest.mark.parametrize("wrong", [{"kind": 0}, {"kind": 99}, {"event_id": ""}, {"value": float("inf")}])
def test_wrong_feedback_is_an_invalid_argument_and_nothing_of_the_call_is_taken(world: World, agent: AgentStub, wrong):
    right = {"event_id": "1", "request_id": "r", "user_id": "u", "session_id": "s", "kind": 1}
    with pytest.raises(grpc.RpcError) as caught:
        agent.Report(
            pb.ReportRequest(feedback=[pb.Feedback(**right), pb.Feedback(**{**right, **wrong})]), timeout=LONG_S
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "expected" in caught.value.details()
    assert world.agent.metrics.total("requests_refused", kind="report") == 1
    assert world.events() == []


def click(number: int, **changes) -> Feedback:
    plain = Feedback(1, f"e{number}", "r", "u", "s", 5, FeedbackKind.CLICK, "x")
    return msgspec.structs.replace(plain, **changes)


def report(*feedback: Feedback) -> pb.ReportRequest:
    return pb.ReportRequest(feedback=[translate.from_feedback(each) for each in feedback])


def to_be_sent_again(call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "send them again, with the same event ids" in caught.value.details()


def test_acknowledged_feedback_is_in_the_log_already(world: World, agent: AgentStub):
    for number in range(5):
        agent.Report(report(click(number), click(number, event_id=f"f{number}")), timeout=LONG_S)
        assert world.logged()[-2:] == [click(number), click(number, event_id=f"f{number}")]


def test_feedback_that_the_log_does_not_take_in_time_is_to_be_sent_again(
    world: World, agent: AgentStub, monkeypatch: pytest.MonkeyPatch
):
    world.gate.clear()
    with monkeypatch.context() as patch:  # half a second for the log, and all the rest for the way back
        patch.setattr("pipeline.agent.service._WAY_BACK", 1.0)
        patch.setattr("pipeline.agent.service._LONGEST_WAY_BACK_S", LONG_S - 0.5)
        to_be_sent_again(lambda: agent.Report(report(click(1)), timeout=LONG_S))
    assert world.agent.metrics.total("feedback_not_logged") == 1
    world.gate.set()
    agent.Report(report(click(1)), timeout=LONG_S)
    assert click(1) in world.logged()
    assert world.agent.metrics.total("feedback", kind="click") == 1


def test_a_report_without_a_deadline_does_not_wait_for_ever(world: World):
    world.gate.clear()
    running = serve(world.agent, 0, settings=ServiceSettings(report_timeout_s=0.05))
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        to_be_sent_again(lambda: AgentStub(channel).Report(report(click(1))))
    assert world.agent._writer.alive  # which it would not be, had the call waited for the log
    running.stop()


def test_feedback_for_a_closed_agent_is_to_be_sent_again(world: World, agent: AgentStub):
    world.agent.close()
    to_be_sent_again(lambda: agent.Report(report(click(1)), timeout=LONG_S))


def test_reports_that_wait_for_the_log_hold_up_no_page_and_no_further_report(world: World):
    """With more of them than there are threads for pages."""
    world.gate.clear()
    running = serve(world.agent, 0, settings=ServiceSettings(concurrency=2, reports=12, default_timeout_s=LONG_S))
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        agent = AgentStub(channel)
        waiting = [agent.Report.future(report(click(number)), timeout=LONG_S) for number in range(12)]
        eventually(lambda: world.agent._writer.pending == 12)
        to_be_sent_again(lambda: agent.Report(report(click(99)), timeout=LONG_S))
        assert agent.Decide(page(TREATED[0]), timeout=LONG_S).decided_by == pb.DECIDED_BY_POLICY
        world.models.gate.clear()
        stuck = [agent.Decide.future(page(TREATED[i]), timeout=LONG_S) for i in (1, 2)]
        for _ in ("before", *stuck):
            assert world.models.asked.acquire(timeout=LONG_S)
        assert agent.Decide(page(TREATED[3]), timeout=LONG_S).fallback_reason == "overloaded"
        assert not any(call.done() for call in (*waiting, *stuck))
        world.models.gate.set()
        world.gate.set()
        for call in (*waiting, *stuck):
            call.result(LONG_S)
        agent.Report(report(click(99)), timeout=LONG_S)  # there is room again
    running.stop()
    logged = [event.event_id for event in world.logged() if isinstance(event, Feedback)]
    assert sorted(logged) == sorted([*(f"e{number}" for number in range(12)), "e99"])


def test_the_python_client_asks_and_reports(world: World, running: RunningService):
    item = Item("y", 0.1, 0.5, {"price": 3})
    request = PageRequest("r", "u", TREATED[0], 0, (Item("x", 0.9, 0.0), item), {"ctr": 0.25}, time_ms=5)
    with AgentClient(f"127.0.0.1:{running.port}") as client:
        assert client.wait_ready(LONG_S)
        assert list(client.decide(request, LONG_S).item_ids) == ["x", "y"]
        client.report([click(1), click(2)], LONG_S)
    events = world.events()
    assert [each for each in events if isinstance(each, Feedback)] == [click(1), click(2)]
    [impression] = [each for each in events if isinstance(each, Impression)]
    assert (impression.items[1], impression.time_ms) == (item, 5)


def test_the_example_in_the_documentation_runs(world: World, running: RunningService):
    text = (build_protos.ROOT / "docs" / "events.md").read_text()
    [example] = [block for block in text.split("```") if block.startswith("python\n")]
    names: dict[str, object] = {}
    code = (
        example.removeprefix("python\n").replace(":8600", f":{running.port}").replace("timeout_s=0.1", "timeout_s=60")
    )
    exec(code, names)
    assert (sorted(names["shown"]), names["unacknowledged"]) == (["i1", "i2"], 0)
    assert names["feedback"] in world.logged()
    assert names["page"].request_id in [each.request_id for each in world.logged() if isinstance(each, Impression)]


def test_the_python_client_says_when_there_is_no_agent():
    with AgentClient(f"127.0.0.1:{free_port()}") as client:
        assert not client.wait_ready(0.05)
        with pytest.raises(grpc.RpcError) as caught:
            client.report([click(1)], LONG_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_events_outlast_an_agent_that_goes_away_and_comes_back(world: World):
    """All acknowledged ones are in the log, in order; what the agent had in hand when it went may be there twice."""
    port, acknowledged = free_port(), []
    first = serve(world.agent, port)
    with AgentClient(f"127.0.0.1:{port}") as client:
        reporter = Reporter(client, lambda feedback: acknowledged.extend(each.event_id for each in feedback))
        reporter(click(0))
        eventually(lambda: acknowledged == ["e0"])
        world.gate.clear()
        reporter(click(1))
        eventually(lambda: world.agent._writer.pending == 1)  # the log hangs with it, and so does the call
        first.stop(grace_s=0.0)
        reporter(click(2))
        world.gate.set()
        second = serve(world.agent, port)
        assert reporter.close(LONG_S) == 0
    second.stop()
    assert acknowledged == ["e0", "e1", "e2"]
    logged = [event.event_id for event in world.logged()]
    assert list(dict.fromkeys(logged)) == acknowledged
    assert logged.count("e1") == 2


def test_health_says_what_lives(world: World, channel: grpc.Channel):
    health = health_pb2_grpc.HealthStub(channel)

    def serving(name: str) -> bool:
        return health.Check(health_pb2.HealthCheckRequest(service=name), timeout=LONG_S).status == 1

    for name in ("", SERVICE, BACKGROUND):
        eventually(lambda name=name: serving(name))


def test_draining_says_so_and_finishes_what_was_begun(
    world: World, running: RunningService, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
):
    slept, drained = [], threading.Event()
    time_of_service = SimpleNamespace(sleep=lambda drain_s: slept.append(drain_s) or drained.wait(LONG_S))
    monkeypatch.setattr("pipeline.agent.service.time", time_of_service)
    health = health_pb2_grpc.HealthStub(channel)
    statuses = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=LONG_S)
    while next(statuses).status != health_pb2.HealthCheckResponse.SERVING:
        pass
    world.models.gate.clear()
    begun = AgentStub(channel).Decide.future(page(), timeout=LONG_S)
    assert world.models.asked.acquire(timeout=LONG_S)
    stopping = threading.Thread(target=running.stop, kwargs={"drain_s": 0.3, "grace_s": LONG_S})
    stopping.start()
    assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
    during = AgentStub(channel).Decide(page(CONTROL[0]), timeout=LONG_S)
    statuses.cancel()
    drained.set()
    world.models.gate.set()
    stopping.join(LONG_S)
    assert slept == [0.3]
    assert during.decided_by == pb.DECIDED_BY_BASELINE
    assert begun.result(LONG_S).decided_by == pb.DECIDED_BY_POLICY
    assert len(world.events()) == 2


def test_a_taken_port_is_a_clear_error(world: World, running: RunningService):
    with pytest.raises(ServiceError, match=f"expected to listen on 127.0.0.1:{running.port}, which is taken"):
        serve(world.agent, running.port)


def test_serving_until_told_to_stop_closes_the_agent(world: World):
    stop, ports = threading.Event(), []
    port = free_port()  # none that the system gives to others once it is free again
    thread = threading.Thread(
        target=serve_until, args=(stop, world.agent, port), kwargs={"drain_s": 0.0, "started": ports.append}
    )
    thread.start()
    eventually(lambda: bool(ports))
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        AgentStub(channel).Decide(page(CONTROL[0]), timeout=LONG_S)
    stop.set()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert len(world.events()) == 1
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", ports[0])) != 0


def test_reflection_lists_the_service(channel: grpc.Channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    service = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
    assert sorted(method.name for method in service.methods) == ["Decide", "DecideBatch", "Report"]


def test_the_committed_code_is_what_the_proto_generates(tmp_path: Path):
    build_protos.generate(tmp_path)
    for name in build_protos.GENERATED:
        generated = (tmp_path / "pipeline" / "agent" / name).read_text()
        committed = (build_protos.ROOT / "pipeline" / "agent" / name).read_text()
        assert generated == committed, f"{name} is out of date: python -m pipeline.agent.build_protos"


def test_the_service_starts_without_tensorflow_and_beam():
    code = "import sys, pipeline.agent.service; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "grpc" in loaded
    assert not {"tensorflow", "tensorflow_serving", "apache_beam", "pyarrow", "redis", "ruamel"} & set(loaded)

"""The agent where policies choose the items: interleaved pages, the log they can be made again from, the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from pipeline.agent.agent import Agent, PageRequest
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.policies import served_outputs, signature_problem
from pipeline.agent.ranking_deciding import recompute
from pipeline.config.reading import parse_config
from pipeline.events import encode, parse
from pipeline.features.candidates import item_inputs
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import served_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.ranking.pages import chosen, credits_of
from pipeline.records import DecidedBy, Explorer, Impression, Item
from pipeline.serving.client import Prediction, Signature, TensorSpec
from pipeline.stores.published import Pointer, Served, parameters_key, pointer_key
from tests.unit.agent_fakes import LONG_S, QUICK, MemoryLog, MemoryStore

TEXT = """
schema_version: 1
name: feed
kv_prefix: fd
embeddings:
  shop: {lookup: graph, dim: 2, vocabulary: {kind: range, size: 5}}
features:
  - {name: ctr, kind: dense, source: user.ctr}
  - {name: good, kind: dense, source: item.good}
  - {name: bad, kind: dense, source: item.bad, missing: {fill: 0}}
  - {name: shop, kind: id, source: item.shop, embedding: shop}
ranking: {page_size: 3, minor: {rl: {by: dbgd}}}
reward: {weights: {click: 1.0}}
algorithm: {kind: drn}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
stream: {session_gap: 24h}
buckets:
  salt: s
  assign: [{name: control, policy: base, slots: [0, 49]}, {name: treated, policy: rl, slots: [50, 99]}]
"""
CONFIG = parse_config(TEXT)
ITEMS = tuple(Item(f"i{n}", features={"good": float(n % 4), "shop": n % 5}) for n in range(6))
BY_GOOD = (3, 2, 1, 5, 0, 4)  # of equal ones the first
NOISE = Explorer(version=7, seed=1)


class RankingServer:
    """Q is `good`, and the explorers' is its opposite."""

    def __init__(self) -> None:
        self.calls: list[Mapping[str, np.ndarray]] = []
        self.outputs = lambda q: {"q": q, "q_explorers": np.stack([-q, q], axis=1)}

    def predict(self, model, inputs, *, version=None, timeout_s) -> Prediction:
        self.calls.append(inputs)
        return Prediction(version, self.outputs(inputs["items__dense"][..., 0]))

    def metadata(self, model, version, timeout_s) -> Signature:
        inputs = {i.name: TensorSpec(i.dtype, (None, *i.shape)) for i in served_inputs(CONFIG)}
        return Signature(version, inputs, served_outputs(CONFIG, "rl"))


class World:
    def __init__(self, *explorers: Explorer) -> None:
        self.store, self.server, self.log = MemoryStore(), RankingServer(), MemoryLog()
        snapshot = msgspec.convert(explorers, tuple[Explorer, ...])
        parameters = Snapshot.of_parts(CONFIG, [Snapshot.initial(CONFIG)], snapshot)
        served = Served(2, parameters.sha256)
        self.store.put(parameters_key("fd", served.parameters), parameters.to_bytes())
        self.store.put(pointer_key("fd", "rl"), msgspec.json.encode(Pointer(stable=served)))

    @contextmanager
    def agent(self, **kwargs) -> Iterator[Agent]:
        with Agent(CONFIG, self.store, self.server, self.log, agent_id="a", settings=QUICK, **kwargs) as agent:
            assert agent.wait_ready(LONG_S)
            yield agent

    def pages(self, agent: Agent) -> list[Impression]:
        assert agent.flush(LONG_S)
        return [parse(entry.payload, 10**6) for entry in self.log.entries]


def users(policy: str) -> Iterator[str]:
    table = bucket_table(CONFIG.buckets)
    return (f"u{n}" for n in range(1000) if table[slot_of(CONFIG.buckets, f"u{n}")].policy == policy)


def request(number: int = 0, policy: str = "rl", items: tuple[Item, ...] = ITEMS, **user: object) -> PageRequest:
    user = {"ctr": 0.5, **user}
    return PageRequest(f"r{number}", next(users(policy)), "s", number, items, user, time_ms=1_000 + number)


def test_without_explorers_a_page_is_ranked_by_q() -> None:
    world = World()
    with world.agent() as agent:
        decision = agent.decide(request(), LONG_S)
        (page,) = world.pages(agent)
    assert decision.order == BY_GOOD
    assert decision.item_ids[:3] == ("i3", "i2", "i1")
    ranked = page.decision.ranked
    assert (page.decision.decided_by, page.decision.model_version, page.decision.actions) == (DecidedBy.POLICY, 2, ())
    assert (ranked.by, ranked.shown, ranked.places, ranked.orders, credits_of(ranked)) == ("greedy", 3, BY_GOOD, (), ())
    assert page.items == tuple(ITEMS[place] for place in BY_GOOD)


def test_all_candidates_are_asked_about_at_once_and_shorter_pages_are_padded() -> None:
    world = World(NOISE)
    with world.agent() as agent:
        one, other = agent.decide_many([request(0), request(1, items=ITEMS[:2])], LONG_S)
    (call,) = world.server.calls
    assert {name: x.shape for name, x in call.items()} == {
        "dense": (2, 1), "items__dense": (2, 6, 2), "items__shop": (2, 6)
    }  # fmt: skip
    assert (sorted(one.order), sorted(other.order)) == (list(range(6)), [0, 1])


def test_an_interleaved_page_can_be_made_again_from_its_log() -> None:
    world = World(NOISE, Explorer(version=7))
    with world.agent() as agent:
        for number in range(40):
            agent.decide(request(number), LONG_S)
        pages = world.pages(agent)
    teams = {team for page in pages for team in page.decision.ranked.teams}
    assert teams == {0, 1, 2}
    for page in pages:
        ranked = page.decision.ranked
        assert (ranked.by, ranked.tau, ranked.explorers) == ("probabilistic", 3.0, (NOISE, Explorer(version=7)))
        assert ranked.orders == (BY_GOOD, tuple(sorted(range(6), key=lambda n: n % 4)), BY_GOOD)
        assert recompute(CONFIG, page) == ranked
        assert [len(each) for each in credits_of(ranked)] == [3, 3, 3]
        on_page = set(ranked.places[:3])
        assert list(ranked.places[3:]) == [place for place in BY_GOOD if place not in on_page]


def test_team_draft_credits_come_back_from_the_log() -> None:
    orders = ((0, 1, 2, 3), (0, 2, 1, 3))
    ranked = chosen(orders, (NOISE,), 3, "team_draft", None, lambda what: 0.5)
    assert ranked.tau is None
    assert credits_of(ranked)[0] == (0.0, 0.0)  # both would have put item 0 there
    assert credits_of(ranked)[1:] == tuple(tuple(float(team == r) for r in (0, 1)) for team in ranked.teams[1:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"q": np.full((1, 6), np.nan, np.float32)}, "bad_reply"),
        ({"q": np.zeros((1, 5), np.float32)}, "bad_reply"),
        ({"q": np.zeros((1, 6), np.float64)}, "bad_reply"),
        ({"q_explorers": np.zeros((1, 0, 6), np.float32)}, "bad_reply"),
        ({"q_explorers": None}, "bad_reply"),
    ],
)
def test_an_odd_answer_is_the_received_order(change: dict[str, np.ndarray | None], reason: str) -> None:
    world = World(NOISE)
    healthy = world.server.outputs
    world.server.outputs = lambda q: {name: x for name, x in {**healthy(q), **change}.items() if x is not None}
    with world.agent() as agent:
        decision = agent.decide(request(), LONG_S)
        (page,) = world.pages(agent)
    assert (decision.order, decision.decision.fallback_reason) == (tuple(range(6)), reason)
    assert (page.decision.decided_by, page.decision.ranked.by) == (DecidedBy.FALLBACK, "received")


def test_a_candidate_without_its_features_is_the_received_order() -> None:
    world = World(NOISE)
    with world.agent() as agent:
        decision = agent.decide(request(items=(*ITEMS, Item("odd"))), LONG_S)
    assert (decision.order, decision.decision.fallback_reason) == (tuple(range(7)), "bad_features")


def test_the_baseline_is_the_received_order_and_no_model_is_asked() -> None:
    world = World(NOISE)
    with world.agent() as agent:
        decision = agent.decide(request(policy="base"), LONG_S)
    assert (decision.order, decision.decision.decided_by) == (tuple(range(6)), DecidedBy.BASELINE)
    assert (decision.decision.ranked.shown, world.server.calls) == (3, [])


def test_a_shadow_says_what_it_would_have_done() -> None:
    world = World(NOISE)
    with world.agent(mode="shadow") as agent:
        decision = agent.decide(request(), LONG_S)
    ranked = decision.decision.ranked
    assert (decision.order, ranked.by, ranked.orders[0]) == (tuple(range(6)), "received", BY_GOOD)
    assert credits_of(ranked) == ()  # nobody was interleaved


def test_the_signature_has_to_have_both_outputs() -> None:
    inputs, outputs = served_inputs(CONFIG), served_outputs(CONFIG, "rl")
    right = Signature(1, {i.name: TensorSpec(i.dtype, (None, *i.shape)) for i in inputs}, outputs)
    assert signature_problem(right, inputs, outputs) is None
    assert outputs["q_explorers"].shape == (None, 2, None)  # one of noise, one for a major update
    one_less = Signature(1, right.inputs, {**outputs, "q_explorers": TensorSpec("float32", (None, 1, None))})
    assert "q_explorers" in signature_problem(one_less, inputs, outputs)
    assert "expected an output 'q'" in signature_problem(Signature(1, right.inputs, {}), inputs, outputs)


def test_items_of_users_and_items_are_encoded_apart_by_one_snapshot() -> None:
    state, items = Encoder(CONFIG), Encoder(CONFIG, part="item")
    assert [i.name for i in state.inputs] == ["dense"]
    assert [i.name for i in items.inputs] == ["dense", "shop"]
    found = item_inputs(
        items, [items.prepare_items(ITEMS[:1]), items.prepare_items(ITEMS[2:4])], Snapshot.initial(CONFIG)
    )
    np.testing.assert_array_equal(found["items__dense"][..., 0], [[0, 0], [2, 3]])
    np.testing.assert_array_equal(found["items__shop"], [[3, 0], [5, 6]])


def test_a_snapshot_without_explorers_has_the_bytes_that_it_had() -> None:
    plain = Snapshot.initial(CONFIG)
    assert b"explorers" not in plain.to_bytes()
    explored = Snapshot.of_parts(CONFIG, [plain], (NOISE,))
    assert Snapshot.from_bytes(explored.to_bytes(), CONFIG).explorers == (NOISE,)
    assert explored.sha256 != plain.sha256


def test_an_event_without_a_ranking_has_the_bytes_that_it_had() -> None:
    world = World()
    with world.agent() as agent:
        agent.decide(request(), LONG_S)
        (page,) = world.pages(agent)
    bare = msgspec.structs.replace(page, decision=msgspec.structs.replace(page.decision, ranked=None))
    assert b"ranked" in encode(page)
    assert b"ranked" not in encode(bare)

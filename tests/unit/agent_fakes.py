"""Fakes of store, model server and log, and an agent over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from pipeline.agent.agent import Agent, AgentSettings, PageRequest
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.reading import parse_config
from pipeline.events import parse
from pipeline.features.inputs import model_inputs
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.stored_vectors import load_vectors
from pipeline.logs.log import EVENTS, Entry
from pipeline.records import Impression, Item
from pipeline.serving.client import Prediction, Signature, TensorSpec
from pipeline.stores.published import Pointer, Served, parameters_key, pointer_key
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
        settings, config = kwargs.pop("settings", QUICK), kwargs.pop("config", CONFIG)
        with Agent(config, self.store, self.server, self.log, agent_id="agent-0", settings=settings, **kwargs) as agent:
            agent.wait_ready(1.0 if self.store.broken else LONG_S)
            yield agent

    def impressions(self, agent: Agent) -> list[Impression]:
        assert agent.flush(LONG_S)
        return [parse(entry.payload, 10**6) for entry in self.log.entries]


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
    table = bucket_table(CONFIG.buckets)
    names = (f"{bucket}-{i}" for i in range(100 * count))
    return [name for name in names if table[slot_of(CONFIG.buckets, name)].name == bucket][:count]


def answer(array: np.ndarray | None, version: int | None = None):
    def reply(inputs, asked):
        return Prediction(version or asked, {} if array is None else {"action": array})

    return reply


def raising(error: Exception):
    def reply(inputs, version):
        raise error

    return reply


TREATED, CONTROL = sessions("treated", 50), sessions("control", 5)

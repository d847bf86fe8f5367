"""A small world in which versions are published: real store, files, encoder; model servers of forty lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.bootstrap import bootstrap
from model_export.candidate import EXTRA, MODEL, PARAMETERS, RECORD, WARM_UP, Candidate, Probe, encode_candidate
from model_export.controller import Summary, run_controller
from model_export.desired import DesiredState, read_desired
from model_export.lease import Lease
from model_export.recovery import highest_fence, take_over
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline.config.schema import (
    ActionDimension,
    Bucket,
    Buckets,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Publish,
    Reward,
    ZScore,
)
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import config_sha
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.records import State
from pipeline.serving.client import Prediction, VersionStatus
from pipeline.serving.errors import NotServed, Unavailable
from pipeline.serving.models_config import parse
from pipeline.stores.published import Pointer, read_pointers
from pipeline.stores.sqlite import SqliteStore

BASELINE = 1.0
STATES = tuple(State(user={"age": age}) for age in (20.0, 30.0, 60.0))


def make_config(**publish: Any) -> FeatureConfig:
    rules = {"min_transitions": 10, "load_timeout": 5_000, **publish}
    return FeatureConfig(
        schema_version=1,
        name="feed",
        kv_prefix="fd",
        features=(Dense(name="age", source="user.age", zscore=ZScore(min_count=10)),),
        fusion=PayPlusAPhi(phi=0.1),
        action=(ActionDimension(name="a", baseline=BASELINE, range=(0.0, 4.0)),),
        reward=Reward(weights={"click": 1.0}),
        algorithm=Ddpg(gamma=0.9),
        policies=(Policy("baseline", "baseline"), Policy("rl", "learned")),
        buckets=Buckets(salt="s", assign=(Bucket("b", "baseline", (0, 49)), Bucket("r", "rl", (50, 99)))),
        publish=Publish(**rules),
    )


class FakeServer:
    """Reads models.config and version folders like a model server; a model is a JSON file: action = bias + slope x."""

    def __init__(self, models: Path, target: str = "server:8500") -> None:
        self.models = models
        self.target = target
        self.broken: dict[int, str] = {}  # version -> why it does not load
        self.loading: set[int] = set()
        self.up = True
        self.shift = 0.0  # what it answers beside the truth

    def status(self, model: str, timeout_s: float) -> tuple[VersionStatus, ...]:
        self._answer()
        versions = [v for served in parse(self._config()) if served.name == model for v in served.versions]
        if not versions:
            raise NotServed(model)
        return tuple(self._status(version) for version in sorted(versions, reverse=True))

    def predict(
        self, model: str, inputs: dict[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction:
        if version not in [s.version for s in self.status(model, timeout_s) if s.state == "AVAILABLE"]:
            raise NotServed(f"{model} {version}")
        weights = json.loads((self.models / model / str(version) / "saved_model.pb").read_text())
        action = weights["bias"] + weights["slope"] * inputs["dense"][:, :1] + self.shift
        return Prediction(version, {"action": action.astype(np.float32)})

    def _status(self, version: int) -> VersionStatus:
        if version in self.broken:
            return VersionStatus(version, "END", 13, self.broken[version])
        return VersionStatus(version, "LOADING" if version in self.loading else "AVAILABLE", 0, "")

    def _answer(self) -> None:
        if not self.up:
            raise Unavailable(self.target)

    def _config(self) -> str:
        return (self.models / "models.config").read_text()


class World:
    def __init__(self, folder: Path) -> None:
        self.config = make_config()
        self.staging, self.models = folder / "staging", folder / "models"
        self.models.mkdir()
        self.url = folder / "store.sqlite"
        self.now_ms = 1_000_000
        self.states = STATES  # that candidates are probed with
        self.store = SqliteStore(self.url, clock_ms=lambda: self.now_ms)
        self.server = FakeServer(self.models)
        self.servers = [self.server]
        self.steps: list[str] = []
        self.on_step: Callable[[str, str], None] = lambda policy, step: self.steps.append(step)

    def clock(self) -> int:
        """Every look at the clock takes 10 ms, so that nothing has to be waited for."""
        self.now_ms += 10
        return self.now_ms

    def candidate(self, transitions: int, bias: float = BASELINE, slope: float = 0.0, **fields: Any) -> Path:
        """Write a candidate to staging as the trainer does."""
        config = fields.pop("config", self.config)
        count = transitions and 1_000
        snapshot = fields.pop("snapshot", None) or Snapshot(
            config_sha(config), {"age": Moments(count, 40.0, 100.0 * count)}, {}, {}
        )
        model = self.staging / "rl" / f"{transitions:012d}" / MODEL
        (model / "variables").mkdir(parents=True)
        (model / EXTRA).mkdir()
        (model / "saved_model.pb").write_text(json.dumps({"bias": bias, "slope": slope}))
        (model / "variables" / "variables.index").write_bytes(b"index")
        (model / WARM_UP).write_bytes(b"requests")
        (model / PARAMETERS).write_bytes(snapshot.to_bytes())
        record = make_candidate(config, transitions, snapshot, probes=self.probes(snapshot, bias, slope, config))
        record = replace_fields(record, fields)
        (model.parent / RECORD).write_bytes(encode_candidate(record))
        return model.parent

    def probes(self, snapshot: Snapshot, bias: float, slope: float, config: FeatureConfig) -> tuple[Probe, ...]:
        encoder = Encoder(config)
        dense = encoder.finish(encoder.stack([encoder.prepare(s) for s in self.states]), snapshot)["dense"]
        return tuple(Probe(s, (bias + slope * float(x),)) for s, x in zip(self.states, dense[:, 0], strict=True))

    def bootstrap(self, **arguments: Any) -> DesiredState:
        if not (self.staging / "rl" / f"{0:012d}").exists():
            self.candidate(0)
        return bootstrap(self.config, self.staging, self.models, self.store, clock_ms=self.clock, **arguments)

    def run(self, holder: str = "one", **arguments: Any) -> Summary:
        return run_controller(
            self.config,
            self.store,
            self.servers,
            self.staging,
            self.models,
            holder=holder,
            clock_ms=self.clock,
            stop=arguments.pop("stop", threading.Event()),
            until_idle=True,
            poll_s=0.0,
            on_step=self.on_step,
            **arguments,
        )

    def site(self, holder: str = "one") -> tuple[Site, VerdictLog, DesiredState]:
        """What a controller has at the beginning of its term."""
        lease = Lease(self.store, "fd", holder, self.clock)
        site = Site(
            config=self.config,
            store=self.store,
            servers=self.servers,
            models=self.models,
            served_models=str(self.models),
            encoder=Encoder(self.config),
            lease=lease,
            clock_ms=self.clock,
            pause=lambda: None,
            on_step=lambda policy, step: self.on_step(policy, step),
        )
        assert lease.take(above=highest_fence(site))
        verdicts = VerdictLog(self.models, self.store, "fd")
        return site, verdicts, take_over(site, verdicts)

    def pointer(self) -> Pointer:
        return read_pointers(self.store, "fd", ("rl",))["rl"]

    def desired(self) -> DesiredState:
        state = read_desired(self.models)
        assert state is not None
        return state

    def served_versions(self) -> tuple[int, ...]:
        return parse((self.models / "models.config").read_text())[0].versions


def make_candidate(config: FeatureConfig, transitions: int, snapshot: Snapshot, probes: Any) -> Candidate:
    return Candidate(
        id=f"{transitions:012d}",
        policy="rl",
        model_name=config.model_name("rl"),
        config_sha=config_sha(config),
        parameters=snapshot.sha256,
        created_ms=1,
        seed=1,
        transitions=transitions,
        explored=transitions // 2,
        updates=transitions,
        first_transition=None if transitions == 0 else "p1@1",
        last_transition=None if transitions == 0 else f"p{transitions}@1",
        losses={"value": 0.5},
        value_mean=None if transitions == 0 else 1.0,
        advantage_mean=None if transitions == 0 else 0.1,
        pages={"policy": 90, "fallback": 10} if transitions else {},
        probes=probes,
    )


def replace_fields(record: Candidate, fields: dict[str, Any]) -> Candidate:
    from msgspec.structs import replace

    return replace(record, **fields)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.store.close()

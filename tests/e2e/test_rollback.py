"""A rollback through the processes themselves: `pageturn train` and `pageturn control`, and the switch between them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from model_export.checks import Verdict
from model_export.verdicts import read_verdicts
from model_export.volume import read_version
from pageturn.__main__ import main
from pipeline.events import encode
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry
from pipeline.records import Action, DecidedBy, Decision, Ending, State, Transition
from pipeline.serving.launch import running_server

CONFIG = """
schema_version: 1
name: feed
kv_prefix: fd
features: [{name: x, kind: dense, source: user.x, zscore: {min_count: 5}}]
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.0, 2.0]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.5, tower: [8], head: [8], batch_size: 16, replay: 2000, actor_after: 0}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  assign: [{name: control, policy: base, slots: [0, 49]}, {name: treated, policy: rl, slots: [50, 99]}]
publish:
  {every: 1s, min_transitions: 1, max_step_change: 1.0, max_total_change: 1.0, max_at_bounds: 1.0, max_drift: 100.0}
"""
MODEL = "feed_rl"
T = TypeVar("T")
FEW, MANY = 128, 1_280  # transitions
PATIENCE_S = 300.0
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.timeout(1_800)


def transition(i: int) -> Transition:
    rng = random.Random(i)
    policy = ("base", "rl")[i % 2]
    action = 1.0 if policy == "base" else rng.uniform(0, 2)
    decided_by = DecidedBy.BASELINE if policy == "base" else DecidedBy.POLICY
    return Transition(
        id=f"r{i}@1",
        request_id=f"r{i}",
        user_id="u",
        session_id=f"s{i}",
        time_ms=i,
        page_index=0,
        state=State(user={"x": rng.gauss(3, 2)}),
        decision=Decision(decided_by, policy, "b", (Action("a", action),)),
        reward=action,
        reward_version="1",
        discount=0.0,
        ending=Ending.LEAVE,
    )


class Place:
    """A folder with a log, a store, a model server, and the two processes."""

    def __init__(self, folder: Path) -> None:
        (folder / "config.yaml").write_text(CONFIG)
        self.folder, self.models, self.written = folder, folder / "models", 0
        self.log = FileLog(folder / "log")
        self.log.create(TRANSITIONS, 1)
        self._config = ("--config", str(folder / "config.yaml"), "--store", f"sqlite:///{folder}/store.db")
        self._staging = ("--staging", str(folder / "staging"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *words: str) -> str:
        done = CliRunner().invoke(main, [*words, *self._config])
        assert done.exit_code == 0, done.output
        return done.output

    def bootstrap(self) -> None:
        self.run("bootstrap", *self._staging, "--models", str(self.models))

    def start_trainer(self) -> None:
        log = ("--log", f"file://{self.folder}/log", "--state", str(self.folder / "trainer"))
        self._start("train", *log, *self._staging)

    def start_controller(self, server: str) -> None:
        self._start("control", *self._staging, "--models", str(self.models), "--server", server)

    def _start(self, name: str, *words: str) -> None:
        command = [sys.executable, "-m", "pageturn", name, *words, *self._config]
        with (self.folder / f"{name}.log").open("ab") as out:
            self._processes[name] = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | ONE_THREAD)

    def end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE_S)

    def end_all(self) -> None:
        for name in list(self._processes):
            self.end(name, signal.SIGTERM)

    def feed(self, transitions: int) -> None:
        numbers = range(self.written, self.written + transitions)
        self.log.append(TRANSITIONS, [Entry(f"s{i}", encode(transition(i))) for i in numbers])
        self.written = numbers.stop

    def learned(self, transitions: int) -> int:
        """The version that was made of so many transitions, once it is out."""
        self.feed(transitions)
        name = f"{self.written:012d}-"
        verdict = self.eventually(lambda: self._verdict(name), f"a verdict on {name}")
        assert verdict.outcome == "accepted", verdict
        assert verdict.version is not None
        return verdict.version

    def _verdict(self, name: str) -> Verdict | None:
        return next((v for v in read_verdicts(self.models) if v.candidate.startswith(name)), None)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def eventually(self, look: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := look()):
            assert time.monotonic() < deadline, f"{what}\n{self.said('train')}\n{self.said('control')}"
            time.sleep(0.05)
        return found

    def actor(self, version: int) -> np.ndarray:
        """All weights of a version, in a row."""
        reader = tf.train.load_checkpoint(str(self.models / MODEL / str(version) / "variables" / "variables"))
        names = sorted(name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE"))
        return np.concatenate([reader.get_tensor(name).ravel() for name in names])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("rollback"))
    place.bootstrap()
    with ExitStack() as stack:
        stack.enter_context(closing(place.log))
        server = stack.enter_context(running_server(place.models / "models.config"))
        stack.callback(place.end_all)
        place.start_trainer()
        place.start_controller(server.target)
        yield place


@pytest.mark.parametrize(("number", "meanwhile"), [(1, "up"), (2, "killed")])
def test_the_next_version_goes_on_from_the_one_that_was_gone_back_to(place: Place, number: int, meanwhile: str) -> None:
    good = place.learned(FEW)
    bad = place.learned(MANY)
    if meanwhile == "killed":
        place.end("train", signal.SIGKILL)
    said = place.run("switch", "rollback", "rl", "--to", str(good))
    assert said == f"rl: rolled back from version {bad} to {good}, and frozen; its trainer goes back, too\n"
    place.run("switch", "release", "rl")
    if meanwhile == "killed":
        place.start_trainer()
    back_to = read_version(place.models, MODEL, good).id
    place.eventually(lambda: f"went back to candidate {back_to}" in place.said("train"), "a trainer that goes back")
    after = place.learned(FEW)
    assert read_version(place.models, MODEL, after).gone_back == number
    assert read_version(place.models, MODEL, after).transitions == place.written

    def apart(one: int, other: int) -> float:
        return float(np.linalg.norm(place.actor(one) - place.actor(other)))

    assert apart(after, good) < 0.5 * apart(bad, good)
    assert apart(after, good) < 0.5 * apart(after, bad)

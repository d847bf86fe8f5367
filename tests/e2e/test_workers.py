"""Two trainers on one log are one: as a single one that learns from both of their batches, also after one was lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_export.candidate import read_candidate
from pipeline.config.reading import parse_config
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.dealing import DealtFeeding
from pipeline.learning.training import ROUND_SIZE, Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry, Record
from pipeline.serving.launch import free_ports
from tests.e2e.transitions import transition

N, WORKERS = 500, 2
CONFIG = """
schema_version: 1
name: feed
kv_prefix: t
embeddings: {city: {lookup: graph, dim: 2, vocabulary: {kind: dynamic, capacity: 12, min_count: 2, half_life: 40}}}
features:
  - {name: x, kind: dense, source: user.x, zscore: {min_count: 5}}
  - {name: city, kind: id, source: user.city, embedding: city}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.0, 2.0]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.5, tower: [8], head: [8], batch_size: 16, replay: 150, updates_per_transition: 0.2,
            actor_after: 60, seeds: 2}
policies: [{name: base, kind: baseline}, {name: p1, kind: learned}, {name: p2, kind: learned}]
buckets:
  salt: s
  unit: session_id
  assign:
    - {name: base, policy: base, slots: [0, 33]}
    - {name: p1, policy: p1, slots: [34, 66]}
    - {name: p2, policy: p2, slots: [67, 99]}
publish: {every: 200ms, min_transitions: 1}
"""
_PATIENCE_S = 300.0  # nothing rests on it
Weights = dict[str, np.ndarray]
pytestmark = pytest.mark.timeout(1_800)  # pairs of trainers, each with TensorFlow to load


def append(folder: Path, first: int, last: int) -> None:
    log = FileLog(folder / "log")
    log.create(TRANSITIONS, 3)
    log.append(TRANSITIONS, [Entry(f"s{i // 4}", encode(transition(i)), 1_000 + i) for i in range(first, last)])
    log.close()


class Trainers:
    """The processes of one team."""

    def __init__(self, folder: Path, *options: str, configs: Sequence[str] = ("config.yaml",) * WORKERS) -> None:
        self._configs, self._folder, self._options = configs, folder, options
        self._addresses = [f"127.0.0.1:{port}" for port in free_ports(WORKERS)]
        self.processes = [self._start(rank) for rank in range(WORKERS)]

    def _start(self, rank: int) -> subprocess.Popen[str]:
        at = self._folder
        words = ["train", "--config", at / self._configs[rank], "--log", f"file://{at}/log", "--state", at / "trainer"]
        words += ["--store", f"sqlite:///{at}/store.db", "--staging", at / "staging", *self._options]
        task = {"cluster": {"worker": self._addresses}, "task": {"type": "worker", "index": rank}}
        threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "pageturn", *map(str, words)],
            env={**os.environ, **threads, "TF_CONFIG": json.dumps(task)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def looked_after(self, until: Callable[[], bool]) -> list[int]:
        """Whoever ends is started again, until then; how often each had ended."""
        deaths = [0] * WORKERS

        def done() -> bool:
            for rank, process in enumerate(self.processes):
                if process.poll() is not None and not until():
                    process.communicate()
                    deaths[rank] += 1
                    self.processes[rank] = self._start(rank)
            return until()

        await_true(done, 2 * _PATIENCE_S)  # each has to load TensorFlow, perhaps more than once
        return deaths

    def ended(self) -> list[tuple[int, str]]:
        """Their exit codes and what they said, once all have ended."""
        said = [process.communicate(timeout=_PATIENCE_S)[1] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            if process.stderr is not None and not process.stderr.closed:
                process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Trainers]]:
    started: list[Trainers] = []
    (tmp_path / "config.yaml").write_text(CONFIG)

    def start(*options: str, **how: Any) -> Trainers:
        started.append(Trainers(tmp_path, *options, **how))
        return started[-1]

    yield start
    for trainers in started:
        trainers.kill()


@pytest.fixture(scope="module")
def alone() -> Weights:
    """One trainer that draws a batch of each share and learns from them together."""
    tf.config.experimental.enable_op_determinism()
    config = parse_config(CONFIG)
    encoder = Encoder(config)
    training = Training(config, encoder, feeding=DealtFeeding(config, encoder, ROUND_SIZE, WORKERS, range(WORKERS)))
    for i in range(N):
        training.ingest(Record(0, i, 1_000 + i, f"s{i // 4}", encode(transition(i))))
    return named(training)


def named(training: Training) -> Weights:
    return {f"{i} {v.name}": v.numpy() for i, v in enumerate(training.learner.variables)}


def weights(folder: Path) -> Weights:
    """Of the chief's newest checkpoint."""
    config = parse_config(CONFIG)
    training = Training(config, Encoder(config))
    newest = max((folder / "trainer" / "checkpoints").glob("0*"))
    tf.train.Checkpoint(module=training.learner).read(str(newest / "model")).assert_consumed()
    return named(training)


def assert_close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_workers_are_one_with_the_doubled_batch(start, alone: Weights, tmp_path: Path) -> None:
    append(tmp_path, 0, N)
    ended = start("--until-idle").ended()
    assert [code for code, _ in ended] == [0, 0], ended
    assert_close(weights(tmp_path), alone)
    candidates = [read_candidate(path) for path in (tmp_path / "staging" / "p1").iterdir()]
    assert max(each.transitions for each in candidates) == N
    assert not list((tmp_path / "trainer" / "worker-1" / "checkpoints").iterdir())  # these are the chief's


def test_who_loses_a_worker_says_so_and_both_go_on_from_the_chiefs_checkpoint(
    start, alone: Weights, tmp_path: Path
) -> None:
    append(tmp_path, 0, 300)
    trainers = start()
    await_true(lambda: [*(tmp_path / "trainer" / "checkpoints").glob("0*")])
    trainers.processes[1].send_signal(signal.SIGKILL)
    append(tmp_path, 300, N)
    (chief, said), _ = trainers.ended()
    assert chief == 1
    assert "Error: a worker was lost" in said
    assert "Traceback" not in said
    ended = start("--until-idle").ended()
    assert [code for code, _ in ended] == [0, 0], ended
    assert_close(weights(tmp_path), alone)


def test_workers_that_are_started_again_one_by_one_find_each_other(start, alone: Weights, tmp_path: Path) -> None:
    """As kubelets do: each looks after its own, and starts again what ended with an error."""
    append(tmp_path, 0, 300)
    trainers = start()
    await_true(lambda: [*(tmp_path / "trainer" / "checkpoints").glob("0*")])
    trainers.processes[1].send_signal(signal.SIGKILL)
    append(tmp_path, 300, N)
    deaths = trainers.looked_after(until=lambda: ingested(tmp_path) == N)
    assert min(deaths) >= 1
    assert_close(weights(tmp_path), alone)


def ingested(folder: Path) -> int:
    """Of the newest candidate, which the chief's checkpoint is not behind."""
    found = sorted((folder / "staging" / "p1").glob("0*"))
    return int(found[-1].name[:12]) if found else 0


def test_a_worker_with_another_config_is_refused(start, tmp_path: Path) -> None:
    append(tmp_path, 0, 10)
    (tmp_path / "other.yaml").write_text(CONFIG.replace("gamma: 0.5", "gamma: 0.6"))
    for code, said in start("--until-idle", configs=("config.yaml", "other.yaml")).ended():
        assert code == 1
        assert "Error: workers differ in config" in said
        assert "Traceback" not in said


def await_true(condition: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

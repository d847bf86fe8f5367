"""Learners that choose from a grid, through the whole trainer: resumed, exported, judged and served like any other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from msgspec import structs

from model_export.candidate import MODEL, PARAMETERS, Candidate, read_candidate
from model_export.checks import every_version, explain
from model_export.export import Exporter
from pipeline.config import schema
from pipeline.config.schema import Cell, FeatureConfig, Publish
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import model_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.learning.trainer import Pace, train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry
from tests.learning.test_export import FEATURES, Vectors, raw_state, served

N = 300
CELLS = (Cell("x", (-1.0, 0.0, 1.0)), Cell("city"), Cell("device"), Cell("seen"))
SETTINGS: dict[type, dict[str, Any]] = {
    schema.Dqn: {"learning_rate": 0.01, "target_period": 7},
    schema.DoubleDqn: {"learning_rate": 0.01, "target_period": 7},
    schema.DuelingDqn: {"learning_rate": 0.01, "target_period": 7},
    schema.QLearning: {"cells": CELLS, "rows": 50},  # of 3840 cells
}
OFTEN = Publish(every=0, min_transitions=1, probes=8)


class Run(NamedTuple):
    config: FeatureConfig
    candidate: Path  # of p1, the last one
    actions: np.ndarray  # [K, B, N] of the learner at the end, on `inputs`
    inputs: dict[str, np.ndarray]
    updates: int
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=list(SETTINGS), ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture(scope="module")
def config(make_config, kind: type) -> FeatureConfig:
    publish = {"publish": Publish(every=315_360_000_000, min_transitions=100, probes=8)}  # one candidate, at the end
    algorithm = {"replay": 100, "updates_per_transition": 0.125, "seeds": 2, **SETTINGS[kind]}
    return make_config({**FEATURES, **publish}, kind=kind, **algorithm)


@pytest.fixture(scope="module")
def log_url(make_transition, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    log = FileLog(folder)
    log.create(TRANSITIONS, 2)
    for i in range(N):
        following = None if i % 4 == 3 else raw_state(i + 1)
        transition = make_transition(i, state=raw_state(i), next_state=following)
        log.append(TRANSITIONS, [Entry(f"s{i // 4}", encode(transition), 1_000 + i)])
    log.close()
    return f"file://{folder}"


def weights(work_dir: Path) -> dict[str, np.ndarray]:
    newest = max((work_dir / "checkpoints").glob("0*"))
    reader = tf.train.load_checkpoint(str(newest / "model"))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def run(config, log_url: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    exporter, kept = Exporter(config, folder / "staging"), {}

    def export(training: Training, created_ms: int) -> None:
        encoder = Encoder(config, Vectors())
        rows = encoder.stack([encoder.prepare(raw_state(i)) for i in range(40)])
        kept["inputs"] = encoder.finish(rows, training.snapshot)
        kept["actions"] = training.learner.evaluate(kept["inputs"]).action.numpy()[training.chosen]
        kept["candidate"] = next(p for p in exporter(training, created_ms) if p.parent.name == "p1")

    progress = train(config, log_url, folder / "work", vectors=Vectors(), export=export, until_idle=True)
    return Run(config, updates=progress.updates, weights=weights(folder / "work"), **kept)


def test_it_learns_from_a_log(run: Run) -> None:
    assert run.updates == N // 64 * 8
    assert (run.actions != 1).any()


def test_stopping_and_resuming_changes_nothing(run: Run, log_url: str, tmp_path: Path) -> None:
    stop = threading.Event()

    def halt(training: Training, _: int) -> None:
        if training.progress.ingested >= 170:
            stop.set()

    often = structs.replace(run.config, publish=OFTEN)
    options = {"vectors": Vectors(), "until_idle": True}
    first = train(often, log_url, tmp_path, export=halt, stop=stop, pace=Pace(poll=10), **options)
    assert 170 <= first.ingested < 200
    train(run.config, log_url, tmp_path, **options)
    resumed = weights(tmp_path)
    assert resumed.keys() == run.weights.keys()
    for name, expected in run.weights.items():
        np.testing.assert_array_equal(resumed[name], expected, err_msg=name)


def candidate_of(run: Run) -> Candidate:
    return read_candidate(run.candidate)


def test_the_checks_accept_its_candidate(run: Run) -> None:
    candidate = candidate_of(run)
    snapshot = Snapshot.from_bytes((run.candidate / MODEL / PARAMETERS).read_bytes(), run.config)
    checks = every_version(run.config, candidate, snapshot, None, None)
    assert not [explain(check) for check in checks if not check.passed]
    assert {"q_loss", "q_abs", "value_mean", "advantage_mean", "diverged"} <= candidate.losses.keys()
    assert candidate.advantage_mean is not None
    assert candidate.advantage_mean >= 0


def test_the_served_action_is_the_learners(run: Run) -> None:
    np.testing.assert_allclose(served(run.candidate / MODEL, run.inputs), run.actions[0], rtol=0, atol=1e-6)
    signature = tf.saved_model.load(str(run.candidate / MODEL)).signatures["serving_default"]
    found = {n: (s.dtype.name, tuple(s.shape)) for n, s in signature.structured_input_signature[1].items()}
    assert found == {i.name: (i.dtype, (None, *i.shape)) for i in model_inputs(run.config)}
    assert {n: tuple(s.shape) for n, s in signature.structured_outputs.items()} == {"action": (None, 1)}


def test_what_is_served_is_one_policy_of_one_seed(run: Run) -> None:
    reader = tf.train.load_checkpoint(str(run.candidate / MODEL / "variables" / "variables"))
    shapes = {n.split("/.ATTR")[0]: s for n, s in reader.get_variable_to_shape_map().items() if "VARIABLE_VALUE" in n}
    assert all(name.startswith(("actor/tower/", "actor/heads/")) for name in shapes)
    assert all(shape[0] == 1 for shape in shapes.values())
    assert shapes["actor/heads/gate"] == [1, 1]
    assert reader.get_tensor("actor/heads/gate/.ATTRIBUTES/VARIABLE_VALUE").all()

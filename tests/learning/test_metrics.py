"""What is told of learning, beside the losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from pipeline.config import schema
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.metrics import measured
from pipeline.learning.summaries import Summaries
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry, Record


@pytest.fixture
def training(make_config, make_transition) -> Training:
    training = Training(make_config(updates_per_transition=0.25, learning_rate=0.01), Encoder(make_config()))
    for i in range(128):
        training.ingest(Record(0, i, i, "k", encode(make_transition(i))))
    return training


def test_the_ratio_is_of_covered_states(training) -> None:
    line = measured(training, 0)
    assert line["advantage_ratio/p1"] == line["advantage_covered/p1"] / abs(line["value_covered"])
    assert line["value_covered"] != line["value_mean"]
    training.losses["value_covered"] = 0.0
    assert "advantage_ratio/p1" not in measured(training, 0)


def test_norms_are_of_what_is_served(training) -> None:
    line, actor = measured(training, 0), training.learner.actor
    head = np.concatenate([v.numpy()[0, 1].ravel() for v in actor.heads.variables])
    tower = np.concatenate([v.numpy()[0].ravel() for v in actor.tower.variables])
    assert line["head_norm/p2"] == pytest.approx(np.linalg.norm(head), rel=1e-5)
    assert line["tower_norm"] == pytest.approx(np.linalg.norm(tower), rel=1e-5)
    assert "seed_chosen" not in line  # there is one


@pytest.mark.parametrize(
    ("kind", "parts"),
    [(schema.Ddpg, {"value", "advantage"}), (schema.DuelingDqn, {"value"}), (schema.Ppo, {"value", "gain"})],
)
def test_norms_are_of_what_only_learns_too(make_config, kind: type, parts: set[str]) -> None:
    training = Training(make_config(kind=kind), Encoder(make_config()))
    line, unserved = measured(training, 0), training.learner.unserved
    assert unserved.keys() == parts
    value = np.concatenate([v.numpy()[0].ravel() for v in unserved["value"].variables])
    assert line["value_norm"] == pytest.approx(np.linalg.norm(value), rel=1e-5)
    for part in parts - {"value"}:
        of_second = np.concatenate([v.numpy()[0, 1].ravel() for v in unserved[part].variables])
        assert line[f"{part}_norm/p2"] == pytest.approx(np.linalg.norm(of_second), rel=1e-5)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(payload)
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def test_summaries_are_the_numbers_of_the_line(tmp_path: Path) -> None:
    summaries = Summaries(tmp_path)
    for step in (64, 128):
        summaries.add({"time_ms": 5, "a/p1": 0.5 * step, "refused": {"malformed": 3}, "text": "x"}, step)
    assert scalars(tmp_path) == {"a/p1": [(64, 32.0), (128, 64.0)], "refused/malformed": [(64, 3.0), (128, 3.0)]}


def test_a_run_writes_a_summary_of_each_round(make_config, make_transition, tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 1)
    log.append(TRANSITIONS, [Entry("k", encode(make_transition(i)), 1_000 + i) for i in range(130)])
    config = make_config(updates_per_transition=0.125)
    train(config, f"file://{tmp_path / 'log'}", tmp_path / "work", until_idle=True, tensorboard=tmp_path / "board")
    found = scalars(tmp_path / "board")
    assert [step for step, _ in found["value_loss"]] == [64, 128]
    losses = {"value_loss", "advantage_loss/p1", "actor_loss/p2"}
    watched = {"value_mean", "advantage_mean/p1", "action_mean/p2/a", "action_norm/p1", "q_abs/p1"}
    norms = {"tower_norm", "head_norm/p1", "value_norm", "advantage_norm/p2"}
    assert losses | watched | norms <= found.keys()

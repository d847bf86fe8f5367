"""On-policy learners on a log: the laws of the trainer hold for them, and their candidates pass the checks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from model_export.candidate import MODEL, PARAMETERS, read_candidate
from model_export.checks import every_version, first_failure
from model_export.export import Exporter
from pipeline import exploration
from pipeline.config import schema
from pipeline.config.schema import FeatureConfig, Publish
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.progress import Progress
from pipeline.learning.rereading import origins_of
from pipeline.learning.trainer import Pace, train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry, Record
from pipeline.records import Action, DecidedBy, Decision, Transition

N = 300
SMALL = {
    "gamma": 0.5, "tower": (8,), "head": (8,), "actor_after": 60, "learning_rate": 0.01, "actor_learning_rate": 0.01
}  # fmt: skip
KINDS = {
    "a2c": schema.A2c(rollout=20, **SMALL),
    "a3c": schema.A3c(rollout=12, workers=2, **SMALL),
    "ppo": schema.Ppo(rollout=40, epochs=2, minibatches=2, **SMALL),
}
Weights = dict[str, np.ndarray]


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(make_config, kind: str) -> FeatureConfig:
    return make_config({"algorithm": KINDS[kind]})


@pytest.fixture
def url(tmp_path: Path, make_transition) -> str:
    """A closed log: three pages of sessions of four by p1, p2 or the baseline, the sixth session's a fallback."""
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 3)
    transitions = (page(make_transition(i), i) for i in range(N))
    log.append(TRANSITIONS, [Entry(f"s{i // 4}", encode(t), 1_000 + i) for i, t in enumerate(transitions)])
    log.close()
    return f"file://{tmp_path / 'log'}"


def page(transition: Transition, i: int) -> Transition:
    policy = ("base", "p1", "p2")[i // 4 % 3]
    if policy == "base":
        decision = Decision(DecidedBy.BASELINE, policy, "b", (Action("a", 1.0),))
        return msgspec.structs.replace(transition, decision=decision, reward=-0.09)
    action = exploration.explore(
        "a", 1.0, low=0, high=2, theta=1.0, sigma=0.3, previous_noise=0.0,
        epsilon=exploration.draw("salt", transition.session_id, transition.page_index, "a"),
    )  # fmt: skip
    by = DecidedBy.FALLBACK if i // 4 == 5 else DecidedBy.POLICY
    decision = Decision(by, policy, "b", (Action("a", 1.0) if by is DecidedBy.FALLBACK else action,))
    return msgspec.structs.replace(transition, decision=decision, reward=-((action.value - 1.3) ** 2))


def run(config: FeatureConfig, url: str, work_dir: Path, **options: Any) -> Progress:
    return train(config, url, work_dir, until_idle=True, **options)


def weights(work_dir: Path) -> Weights:
    """Every variable and optimiser slot of the newest checkpoint."""
    newest = max((work_dir / "checkpoints").glob("0*"))
    reader = tf.train.load_checkpoint(str(newest / "model"))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    assert len(names) > 20
    return {name: reader.get_tensor(name) for name in names}


def test_every_page_is_learned_from_once_and_killed_trainers_go_on_bit_for_bit(
    config, make_config, url: str, tmp_path: Path, kind: str
) -> None:
    whole = run(config, url, tmp_path / "whole", pace=Pace(poll=7, checkpoint_every=50))
    assert (whole.ingested, whole.refused, whole.left_out["fallback"]) == (N, {}, 4)
    rollouts = {"a2c": 3 * 4, "a3c": whole.updates, "ppo": 3 * 2 * 4}  # 92 to 100 pages of each by the last round
    assert whole.updates == rollouts[kind] >= 12
    often = make_config({"algorithm": KINDS[kind], "publish": Publish(every=0, min_transitions=1)})
    for stop_at in (50, 130, 200):  # within rounds and rollouts
        stop = threading.Event()

        def halt(training: Training, _: int, stop: threading.Event = stop, stop_at: int = stop_at) -> None:
            if training.progress.ingested >= stop_at:
                stop.set()

        run(often, url, tmp_path / "parts", export=halt, stop=stop, pace=Pace(poll=10))
    parts = run(config, url, tmp_path / "parts")
    assert (parts.ingested, parts.updates, parts.left_out) == (whole.ingested, whole.updates, whole.left_out)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_candidates_serve_the_learners_action_and_pass_the_checks(config, url: str, tmp_path: Path) -> None:
    export, taken = Exporter(config, tmp_path / "staging"), []

    def take(training: Training, created_ms: int) -> None:
        taken.append((training, export(training, created_ms)))

    run(config, url, tmp_path / "work", export=take)
    training, paths = taken[-1]
    for k, path in enumerate(paths):
        candidate = read_candidate(path)
        snapshot = Snapshot.from_bytes((path / MODEL / PARAMETERS).read_bytes(), config)
        encoder = Encoder(config)
        inputs = encoder.finish(encoder.stack([encoder.prepare(probe.state) for probe in candidate.probes]), snapshot)
        served = tf.saved_model.load(str(path / MODEL)).signatures["serving_default"](**inputs)["action"].numpy()
        np.testing.assert_allclose(served, [probe.action for probe in candidate.probes], rtol=0, atol=1e-6)
        np.testing.assert_allclose(served, training.learner.evaluate(inputs).action[0, k], rtol=0, atol=1e-6)
        assert (served != 1).any()
        checks = every_version(config, candidate, snapshot, None, None)
        assert first_failure(checks) is None
        assert {
            "actor_loss",
            "advantage_loss",
            "kl",
            "ratio_mean",
            "off_policy_share",
            "q_abs",
        } <= candidate.losses.keys()
        assert candidate.value_mean is not None
        assert candidate.advantage_mean is not None


def test_actors_wait_until_their_policy_has_explored(make_config, url: str, tmp_path: Path, kind: str) -> None:
    actions: list[np.ndarray] = []

    def final_actions(training: Training, _: int) -> None:
        state = {"dense": np.linspace(-2, 2, 50, dtype="f4")[:, None]}
        actions.append(training.learner.evaluate(state).action.numpy()[0])

    patient = msgspec.structs.replace(KINDS[kind], actor_after=200)
    run(make_config({"algorithm": patient}), url, tmp_path / "work", export=final_actions)
    np.testing.assert_array_equal(actions[-1], np.ones((2, 50, 1), "f4"))


def test_probes_survive_a_restart_though_their_pages_are_spent(make_config, make_transition) -> None:
    """Pages of a rollout are gone from memory once they were learned from; states to judge a candidate by are not."""
    config = make_config({"algorithm": KINDS["a2c"]})
    records = [Record(0, i, i, "k", encode(page(make_transition(i), i))) for i in range(128)]
    training, resumed = Training(config, Encoder(config)), Training(config, Encoder(config))
    for record in records:
        training.ingest(record)
    saved = training.saved()
    assert np.frombuffer(saved.spent, bool).mean() > 0.5
    assert resumed.resume(saved, (records[i] for i in origins_of(saved).offsets)) == 0
    assert resumed.probing() == training.probing()
    assert training.probing().covered
    assert len(resumed.feeding) == len(training.feeding) > 0

"""Candidates: the served action is the learner's, and the folder holds all that the version controller reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from model_export.candidate import MODEL, PARAMETERS, WARM_UP, CandidateError, read_candidate
from model_export.export import Exporter, bootstrap
from pipeline.config.schema import (
    Bits,
    Conv1d,
    ConvLayer,
    Dense,
    DynamicVocabulary,
    ExternalTable,
    FeatureConfig,
    GraphTable,
    HashedId,
    IdFeature,
    Missing,
    Publish,
    Sequence,
    ZScore,
)
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import model_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.learning.training import Training
from pipeline.logs.log import Record
from pipeline.records import DecidedBy, State

FEATURES = {
    "features": (
        Dense("x", "user.x", zscore=ZScore(min_count=5)),
        Dense("rate", "user.rate", transform="logit", missing=Missing(fill="mean", indicator=True)),
        IdFeature("city", "user.city", "cities"),
        HashedId("device", "context.device", buckets=5, dim=3),
        Bits("seen", "user.seen", width=4),
        Sequence("clicks", "user.clicks", "items", 3, Conv1d((ConvLayer(7, 2),)), missing=Missing()),
    ),
    "embeddings": {"cities": GraphTable(2, DynamicVocabulary(10)), "items": ExternalTable(2, "e1")},
    "publish": Publish(probes=5),
}


class Vectors:
    def vectors(self, table: str, epoch: str, ids: SequenceOf[str]) -> list[bytes | None]:
        return [None if i == "9" else np.array([int(i), 1], "<f4").tobytes() for i in ids]


def raw_state(i: int) -> State:
    rng = np.random.default_rng(i)
    clicks = tuple(int(x) for x in rng.integers(10, size=i % 5))
    user = {"x": float(rng.normal()), "city": int(rng.integers(20)), "seen": int(rng.integers(16)), "clicks": clicks}
    return State(user=user if i % 2 else {**user, "rate": 0.25}, context={"device": f"d{i}"})


@pytest.fixture(scope="module")
def config(make_config) -> FeatureConfig:
    return make_config(FEATURES, updates_per_transition=0.5, actor_learning_rate=0.05, learning_rate=0.01)


@pytest.fixture(scope="module")
def training(config, make_transition) -> Training:
    training = Training(config, Encoder(config, Vectors()))
    for i in range(140):
        following = None if i % 4 == 3 else raw_state(i + 1)
        transition = make_transition(i, state=raw_state(i), next_state=following)
        assert training.ingest(Record(0, i, i, "k", encode(transition))) is None
    return training


@pytest.fixture(scope="module")
def exported(config, training, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    staging = tmp_path_factory.mktemp("staging")
    return {path.parent.name: path for path in Exporter(config, staging)(training, created_ms=42)}


def served(model: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return tf.saved_model.load(str(model)).signatures["serving_default"](**inputs)["action"].numpy()


@pytest.mark.parametrize("policy", ["p1", "p2"])
def test_the_served_action_is_the_learners(config, training, exported, policy: str) -> None:
    candidate = read_candidate(exported[policy])
    snapshot = Snapshot.from_bytes((exported[policy] / MODEL / PARAMETERS).read_bytes(), config)
    encoder = Encoder(config, Vectors())  # what another process would do with what is in the folder
    rows = encoder.stack([encoder.prepare(probe.state) for probe in candidate.probes])
    action = served(exported[policy] / MODEL, encoder.finish(rows, snapshot))
    np.testing.assert_allclose(action, [probe.action for probe in candidate.probes], rtol=0, atol=1e-6)
    assert (action != 1).any()  # it learned something
    k = config.learned_policies().index(policy)
    expected = training.learner.evaluate(encoder.finish(rows, training.snapshot)).action[0, k]
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-6)


def test_one_row_gives_what_a_batch_gives(config, training, exported) -> None:
    encoder = Encoder(config, Vectors())
    rows = encoder.stack([encoder.prepare(raw_state(i)) for i in range(8)])
    inputs = encoder.finish(rows, training.snapshot)
    serve = tf.saved_model.load(str(exported["p1"] / MODEL)).signatures["serving_default"]
    one_by_one = [serve(**{n: x[i : i + 1] for n, x in inputs.items()})["action"][0] for i in range(8)]
    np.testing.assert_allclose(serve(**inputs)["action"], one_by_one, rtol=0, atol=1e-6)


def test_the_signature_is_that_of_the_config(config, exported) -> None:
    signature = tf.saved_model.load(str(exported["p1"] / MODEL)).signatures["serving_default"]
    found = {n: (s.dtype.name, tuple(s.shape)) for n, s in signature.structured_input_signature[1].items()}
    assert found == {i.name: (i.dtype, (None, *i.shape)) for i in model_inputs(config)}
    assert {n: tuple(s.shape) for n, s in signature.structured_outputs.items()} == {"action": (None, 1)}


def test_no_part_of_the_critic_is_exported(config, training, exported) -> None:
    reader = tf.train.load_checkpoint(str(exported["p1"] / MODEL / "variables" / "variables"))
    names = {n.split("/.ATTR")[0] for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")}
    assert names
    assert all(name.startswith(("actor/tower/", "actor/heads/")) for name in names)
    assert len(names) == len(training.learner.tower.variables) + len(training.learner.actor_heads.variables)


def test_warm_up_requests_can_be_replayed(config, exported) -> None:
    serve = tf.saved_model.load(str(exported["p1"] / MODEL)).signatures["serving_default"]
    records = list(tf.data.TFRecordDataset(str(exported["p1"] / MODEL / WARM_UP)).as_numpy_iterator())
    assert records
    for record in records:
        request = PredictionLog.FromString(record).predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("feed_p1", "serving_default")
        assert not request.output_filter  # agents ask for everything
        action = serve(**{name: tf.make_ndarray(proto) for name, proto in request.inputs.items()})["action"]
        assert action.shape == (1, 1)


def test_a_candidate_says_what_it_learned_from(training, exported) -> None:
    candidate = read_candidate(exported["p2"])
    assert candidate.id == f"000000000140-{training.run_id}"
    assert (candidate.created_ms, candidate.transitions, candidate.explored) == (42, 140, 46)
    assert (candidate.first_transition, candidate.last_transition) == ("r0@1", "r139@1")
    assert candidate.updates == training.progress.updates == 64
    assert candidate.pages == {"policy": 46}
    assert {"value_loss", "advantage_loss", "actor_loss", "q_abs", "diverged"} <= candidate.losses.keys()
    assert candidate.value_mean is not None
    assert candidate.advantage_mean is not None
    assert len(candidate.probes) == 5


def test_statistics_are_those_of_each_state_once_up_to_the_last_round(config, exported) -> None:
    """A next state is the state of the transition after it: counted with both, it would count twice."""
    seen = [raw_state(i).user["x"] for i in range(128)]
    moments = Snapshot.from_bytes((exported["p1"] / MODEL / PARAMETERS).read_bytes(), config).moments["x"]
    assert moments.count == 128
    assert (moments.mean, moments.std) == pytest.approx((np.mean(seen), np.std(seen)))


def test_probes_are_states_of_the_baselines_pages_with_their_lookups(exported) -> None:
    baseline_states = [raw_state(i) for i in range(0, 140, 3)]
    for probe in read_candidate(exported["p1"]).probes:
        raw = next(s for s in baseline_states if s.user == probe.state.user)
        assert raw.context == probe.state.context
        hits = tuple(i != 9 for i in raw.user["clicks"][-3:])
        assert probe.state.lookups["clicks"].hits == hits


def test_a_candidate_that_is_there_is_left_alone(config, training, exported) -> None:
    before = (exported["p1"] / "candidate.json").read_bytes()
    Exporter(config, exported["p1"].parents[1])(training, created_ms=43)
    assert (exported["p1"] / "candidate.json").read_bytes() == before


def test_a_candidate_of_another_run_is_another_candidate(make_config, config, make_transition, tmp_path: Path) -> None:
    """Or the verdict on the one would be taken for that on the other, and it would wait for ever."""

    def learned(config: FeatureConfig, first: int) -> Training:
        training = Training(config, Encoder(config, Vectors()))
        for i in (first, 2):
            transition = make_transition(i, state=raw_state(i), next_state=raw_state(i))
            training.ingest(Record(0, i, i, "k", encode(transition)))
        return training

    ids = [learned(config, 1).run_id, learned(make_config(FEATURES, gamma=0.6), 1).run_id, learned(config, 0).run_id]
    assert len(set(ids)) == 3
    assert learned(config, 1).run_id == ids[0]
    export = Exporter(config, tmp_path)
    assert {path.name for first in (0, 1, 1) for path in export(learned(config, first), created_ms=1)} == {
        f"000000000002-{ids[2]}",
        f"000000000002-{ids[0]}",
    }


def test_staging_is_bounded_also_where_no_controller_clears_it(
    config, make_transition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_export.export._WAITING", 3)
    monkeypatch.setattr(Exporter, "_write", lambda self, folder, *_: folder.mkdir())
    bootstrap(config, tmp_path, created_ms=1)
    for name in (".tmp-000000000007-x", ".tmp-000000000000", "000000999999-x"):  # of a kill, a bootstrap, a former run
        (tmp_path / "p1" / name).mkdir()
    os.utime(tmp_path / "p1" / "000000999999-x", (0, 0))
    training, export, made = Training(config, Encoder(config, Vectors())), Exporter(config, tmp_path), []
    for i in (1, 2, 4, 5):
        training.ingest(Record(0, i, i, "k", encode(make_transition(i, state=raw_state(i), next_state=raw_state(i)))))
        made.append(export(training, created_ms=i)[0].name)
    assert {path.name for path in (tmp_path / "p1").iterdir()} == {".tmp-000000000000", "000000000000", *made[-3:]}


def test_the_bootstrap_is_exactly_the_baseline(config, tmp_path: Path) -> None:
    paths = bootstrap(config, tmp_path, created_ms=1)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["p1/000000000000", "p2/000000000000"]
    for path in paths:
        candidate = read_candidate(path)
        assert candidate.first_transition is None
        assert candidate.last_transition is None
        assert candidate.advantage_mean is None  # no state is covered yet
        assert [probe.action for probe in candidate.probes] == [(1.0,)]
        encoder = Encoder(config, Vectors())
        rows = encoder.stack([encoder.prepare(raw_state(i)) for i in range(30)])
        action = served(path / MODEL, encoder.finish(rows, Snapshot.initial(config)))
        np.testing.assert_array_equal(action, np.ones((30, 1), "f4"))


def test_fallback_pages_are_counted_apart(config, make_transition, tmp_path: Path) -> None:
    training = Training(config, Encoder(config, Vectors()))
    for i in (1, 2, 4):
        t = make_transition(i, state=raw_state(i), next_state=raw_state(i))
        if i == 4:
            decision = type(t.decision)(DecidedBy.FALLBACK, "p1", "bucket", fallback_reason="timeout")
            t = make_transition(i, state=raw_state(i), next_state=raw_state(i), decision=decision)
        training.ingest(Record(0, i, i, "k", encode(t)))
    path = Exporter(config, tmp_path)(training, created_ms=1)[0]
    candidate = read_candidate(path)
    assert candidate.pages == {"policy": 1, "fallback": 1}
    assert candidate.explored == 1


def test_a_staging_folder_that_cannot_be_written_is_named_at_once(config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CandidateError, match=r"staging folder .*/file/staging/p1: cannot be written: Not a directory"):
        Exporter(config, tmp_path / "file" / "staging")


def test_a_staging_folder_that_breaks_later_is_named_as_well(config, training, tmp_path: Path) -> None:
    exporter = Exporter(config, tmp_path)
    (tmp_path / "p2").rmdir()
    (tmp_path / "p2").touch()
    with pytest.raises(CandidateError, match=r"staging folder .*/p2/0+140-.*: cannot be written: .*not a directory"):
        exporter(training, created_ms=42)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_a_model_that_was_cut_short_is_found_before_it_is_published(exported, tmp_path: Path, name: str) -> None:
    """A bootstrap candidate is published before any server could try it."""
    candidate = tmp_path / "p1" / exported["p1"].name
    shutil.copytree(exported["p1"], candidate)
    assert read_candidate(candidate).files
    file = candidate / MODEL / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CandidateError, match=f"not as written: {name}"):
        read_candidate(candidate)
    file.unlink()
    with pytest.raises(CandidateError, match=f"missing {name}"):
        read_candidate(candidate)

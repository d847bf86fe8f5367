"""Rows that pass from one id to another: what the newcomer begins with, in every network and optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import schema
from pipeline.config.schema import DynamicVocabulary, FeatureConfig, GraphTable, IdFeature
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.learners import learner_of
from pipeline.learning.tables import Tables, changed
from pipeline.learning.training import Training
from pipeline.logs.log import Record
from pipeline.records import State

ROWS, DIM, BUCKETS = 9, 3, 2  # 0 padding, 1 missing, 2 and 3 buckets, then five ids
KINDS: dict[str, dict[str, Any]] = {
    "ddpg": {"seeds": 2},
    "separate": {"towers": "separate", "target": "polyak", "seeds": 2},
    "dueling_dqn": {"kind": schema.DuelingDqn},
    "ppo": {"kind": schema.Ppo},
    "a3c": {"kind": schema.A3c},
}


@pytest.fixture
def config_of(make_config):
    def make(half_life: int | None = 8, **algorithm: Any) -> FeatureConfig:
        parts = {
            "features": (IdFeature("shop", "user.shop", "shops"),),
            "embeddings": {"shops": GraphTable(DIM, DynamicVocabulary(ROWS, 1, BUCKETS, half_life))},
        }
        return make_config(parts, **algorithm)

    return make


def tables_of(learner: Any) -> dict[str, list[Any]]:
    shaped = [v for v in learner.variables if v.shape[1:] == (ROWS, DIM)]
    kinds: dict[str, list[Any]] = {"weights": [], "slots": []}
    for variable in shaped:
        kinds["weights" if variable.name.endswith("shops_table:0") else "slots"].append(variable)
    return kinds


def knowing(config: FeatureConfig, *ids: int) -> Snapshot:
    initial = Snapshot.initial(config)
    return Snapshot(initial.config_sha, initial.moments, {"shops": np.array(ids, np.uint64)}, initial.epochs)


@pytest.mark.parametrize(("kind", "networks"), zip(KINDS, (1, 4, 2, 1, 6), strict=True), ids=KINDS)
def test_newcomers_begin_with_the_row_of_their_bucket_and_no_moments(config_of, kind: str, networks: int) -> None:
    config = config_of(**KINDS[kind])
    learner = learner_of(config)
    tables = tables_of(learner)
    assert len(tables["weights"]) == networks
    assert tables["slots"]
    rng = np.random.default_rng(1)
    before = {}
    for variable in tables["weights"] + tables["slots"]:
        variable.assign(rng.normal(size=variable.shape).astype("f4"))
        before[id(variable)] = variable.numpy()
    Tables(config, learner).hand_over(knowing(config, 10, 11, 12), knowing(config, 10, 14, 12, 15))
    others = [0, 1, 2, 3, 4, 6, 8]
    for variable in tables["weights"] + tables["slots"]:
        assert (variable.numpy()[:, others] == before[id(variable)][:, others]).all()
    for variable in tables["weights"]:  # 14 % 2 is 0: the first bucket; 15's is the second
        assert (variable.numpy()[:, [5, 7]] == before[id(variable)][:, [2, 3]]).all()
    for variable in tables["slots"]:
        assert (variable.numpy()[:, [5, 7]] == 0).all()


def test_rows_that_are_kept_for_good_are_left_alone(config_of) -> None:
    config = config_of(half_life=None)
    learner = learner_of(config)
    before = [v.numpy() for v in learner.variables]
    Tables(config, learner).hand_over(knowing(config), knowing(config, 10, 14))
    assert all((mine == theirs.numpy()).all() for mine, theirs in zip(before, learner.variables, strict=True))


def test_what_has_changed() -> None:
    before, now = np.array([5, 6, 7], np.uint64), np.array([5, 7, 6, 8], np.uint64)
    assert changed(before, now).tolist() == [1, 2, 3]
    assert changed(now, now).tolist() == []
    assert changed(before[:0], now).tolist() == [0, 1, 2, 3]


def test_a_policy_acts_on_an_id_that_gets_a_row_as_it_did_before(config_of, make_transition, monkeypatch) -> None:
    config = config_of(half_life=40, updates_per_transition=0.25, actor="argmax")
    training = Training(config, Encoder(config), round_size=16)
    shops = [State(user={"shop": f"s{i}"}) for i in range(42)]
    rows = training.encoder.stack([training.encoder.prepare(shop) for shop in shops])
    hand_over, counts = training._tables.hand_over, {"came": 0, "took another's": 0}

    def looked_at(before: Snapshot, now: Snapshot) -> None:
        inputs = [training.encoder.finish(rows, each) for each in (before, now)]
        came = (inputs[0]["shop"] < 4) & (inputs[1]["shop"] >= 4)
        former = training.learner.evaluate(inputs[0])
        hand_over(before, now)
        for was, is_now in zip(former, training.learner.evaluate(inputs[1]), strict=True):
            np.testing.assert_array_equal(was.numpy()[:, :, came], is_now.numpy()[:, :, came])
        counts["came"] += came.sum()
        counts["took another's"] += len(before.vocabularies["shops"]) == 5 and came.sum()

    monkeypatch.setattr(training._tables, "hand_over", looked_at)
    for i in range(800):
        following = None if i % 4 == 3 else shops[i // 40 * 2 + i % 3]
        example = make_transition(i, state=shops[i // 40 * 2 + i % 2], next_state=following)
        training.ingest(Record(0, i, 1_000 + i, "s", encode(example)))
    assert counts["took another's"] > 20
    assert training.progress.updates > 0

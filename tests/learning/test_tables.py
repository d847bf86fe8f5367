"""Rows that pass from one id to another: what the newcomer begins with, in every network and optimiser."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pipeline.config import schema
from pipeline.config.schema import DynamicVocabulary, FeatureConfig, GraphTable, IdFeature
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.learners import learner_of
from pipeline.learning.metrics import show
from pipeline.learning.shelf import FILE, Shelf
from pipeline.learning.tables import COLD, REMEMBERED, Tables, changed
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry, Record
from pipeline.monitoring.catalogue import TRAINER
from pipeline.monitoring.metrics import Metrics
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
    def make(half_life: int | None = 8, remember: bool = False, **algorithm: Any) -> FeatureConfig:
        parts = {
            "features": (IdFeature("shop", "user.shop", "shops"),),
            "embeddings": {"shops": GraphTable(DIM, DynamicVocabulary(ROWS, 1, BUCKETS, half_life, remember))},
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


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_comes_back_begins_with_its_own_row_and_moments(config_of, kind: str, tmp_path: Path) -> None:
    config = config_of(remember=True, **KINDS[kind])
    learner = learner_of(config)
    both = [v for of_kind in tables_of(learner).values() for v in of_kind]
    rng = np.random.default_rng(1)

    def learned() -> list[np.ndarray]:
        for variable in both:
            variable.assign(rng.normal(size=variable.shape).astype("f4"))
        return [variable.numpy() for variable in both]

    first, *later = [knowing(config, *ids) for ids in ((10, 11, 12), (10, 14, 15), (12, 16, 17), (17, 18, 11))]
    with closing(Shelf(tmp_path / FILE)) as shelf:
        tables = Tables(config, learner, shelf)
        before = learned()
        tables.hand_over(first, later[0])
        between = learned()
        spans = tables.keep()
    with closing(Shelf(tmp_path / FILE)) as shelf:
        tables = Tables(config, learner, shelf)
        tables.go_on(spans)
        tables.hand_over(later[0], later[1])  # 12 comes back, into another row
        assert all((v.numpy()[:, 4] == old[:, 6]).all() for v, old in zip(both, before, strict=True))
        moved = [v.numpy()[:, 6] for v in both]
        tables.hand_over(later[1], later[2])  # 17 only changes its place; 11 comes back
        assert all((v.numpy()[:, 4] == old).all() for v, old in zip(both, moved, strict=True))
        assert all((v.numpy()[:, 6] == old[:, 5]).all() for v, old in zip(both, before, strict=True))
        assert tables.begun == {("shops", COLD): 3, ("shops", REMEMBERED): 3}
        tables.hand_over(later[2], knowing(config, 17, 18, 14))  # of what was put away first, and learned since
        assert all((v.numpy()[:, 6] == old[:, 5]).all() for v, old in zip(both, between, strict=True))


def test_a_table_that_is_defined_otherwise_is_another_one(config_of, tmp_path: Path) -> None:
    with closing(Shelf(tmp_path / FILE)) as shelf:
        for half_life, start in ((8, REMEMBERED), (9, COLD)):
            config = config_of(half_life, remember=True)
            tables = Tables(config, learner_of(config), shelf)
            if half_life == 8:
                tables.hand_over(knowing(config, 10), knowing(config, 11))
            tables.hand_over(knowing(config, 11), knowing(config, 10))
            assert tables.begun["shops", start] == 1


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
    hand_over, counts = training.tables.hand_over, {"came": 0, "took another's": 0}

    def looked_at(before: Snapshot, now: Snapshot) -> None:
        inputs = [training.encoder.finish(rows, each) for each in (before, now)]
        came = (inputs[0]["shop"] < 4) & (inputs[1]["shop"] >= 4)
        former = training.learner.evaluate(inputs[0])
        hand_over(before, now)
        for was, is_now in zip(former, training.learner.evaluate(inputs[1]), strict=True):
            np.testing.assert_array_equal(was.numpy()[:, :, came], is_now.numpy()[:, :, came])
        counts["came"] += came.sum()
        counts["took another's"] += len(before.vocabularies["shops"]) == 5 and came.sum()

    monkeypatch.setattr(training.tables, "hand_over", looked_at)
    for i in range(800):
        following = None if i % 4 == 3 else shops[i // 40 * 2 + i % 3]
        example = make_transition(i, state=shops[i // 40 * 2 + i % 2], next_state=following)
        training.ingest(Record(0, i, 1_000 + i, "s", encode(example)))
    assert counts["took another's"] > 20
    assert training.progress.updates > 0


def test_a_trainer_goes_on_with_the_rows_of_its_checkpoint_and_back_to_those_of_an_earlier_one(
    config_of, make_transition, tmp_path: Path
) -> None:
    config = config_of(half_life=40, remember=True, updates_per_transition=0.25)

    def learn(training: Training, numbers: range) -> None:
        for i in numbers:
            example = make_transition(i, state=State(user={"shop": f"s{i // 40 % 7 * 2 + i % 2}"}), next_state=None)
            training.ingest(Record(0, i, 1_000 + i, "s", encode(structs.replace(example, discount=0.0))))

    with closing(Shelf(tmp_path / FILE)) as shelf:
        training = Training(config, Encoder(config), round_size=16, shelf=shelf)
        learn(training, range(400))
        early = training.saved()
        learn(training, range(400, 800))
        late = training.saved()
        assert () != early.shelf != late.shelf
        assert training.tables.begun["shops", REMEMBERED] > 5
        metrics = Metrics(TRAINER)
        show(training, 1_800, metrics)
        total = metrics.total("rows_begun", table="shops", start=REMEMBERED)
        assert total == training.tables.begun["shops", REMEMBERED]
        training.go_back(early, config.learned_policies())
        assert training.tables.keep() == early.shelf
        training.go_back(None, config.learned_policies())
        assert training.tables.keep() == ()
        again = Training(config, Encoder(config), round_size=16, shelf=shelf)
        again.resume(late, [None] * late.rows)
        assert again.tables.keep() == late.shelf


def test_a_trainer_that_begins_has_no_rows_of_one_that_never_came_to_a_checkpoint(
    config_of, make_transition, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    with closing(Shelf(tmp_path / "work" / FILE)) as shelf:
        shelf.put("shops", [1], [b"row"])
        shelf.keep()
    with closing(FileLog(tmp_path / "log")) as log:
        log.create(TRANSITIONS, 1)
        example = make_transition(3, state=State(user={"shop": "s1"}))
        log.append(TRANSITIONS, [Entry("s", encode(example), 1_000)])
    config = config_of(remember=True)
    assert train(config, f"file://{tmp_path / 'log'}", tmp_path / "work", until_idle=True).ingested == 1
    with closing(sqlite3.connect(tmp_path / "work" / FILE)) as file:
        assert file.execute("SELECT count(*) FROM rows").fetchone() == (0,)

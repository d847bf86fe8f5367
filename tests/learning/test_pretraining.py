"""Pre-training: V is what is known of a feed, and nothing else has been touched."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from xxhash import xxh3_64_intdigest

from pageturn.__main__ import main
from pipeline.config.schema import DynamicVocabulary, FeatureConfig, GraphTable, IdFeature
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.checkpoint import Checkpoints
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.errors import CheckpointError, TrainerError
from pipeline.learning.pretraining import of_returns, pretrain
from pipeline.learning.resuming import go_on
from pipeline.learning.shelf import FILE, Shelf
from pipeline.learning.tables import COLD, REMEMBERED
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, TRANSITIONS, Entry
from pipeline.records import DecidedBy, Decision, Ending, Episode, State, Step

BASELINE = Decision(DecidedBy.BASELINE, "base", "bucket")
POLICY = Decision(DecidedBy.POLICY, "p1", "bucket")
VALUES = [1.875, 1.75, 1.5, 1.0]  # of the pages of a visit of four, reward 1 each, gamma 0.5


@pytest.fixture
def config(make_config) -> FeatureConfig:
    # pages say no more than how many are still to come; V of them is not linear
    return make_config(tower=(32,), head=(32,), learning_rate=0.02, updates_per_transition=1.0, seeds=2, holdout=0.0)


def state(page: int) -> State:
    return State(user={"x": float(page)})


def episode(number: int, decisions: Iterable[Decision] = (BASELINE,) * 4, ending: Ending = Ending.LEAVE) -> Episode:
    steps = tuple(Step(f"r{number}.{i}", i, i, state(i), d, 1.0) for i, d in enumerate(decisions))
    cut = {"discount": 1.0, "bootstrap_state": state(4)} if ending is Ending.TRUNCATED else {"discount": 0.0}
    return Episode(f"e{number}", "u", f"s{number}", steps, "1", ending, **cut)


@pytest.fixture
def url(tmp_path: Path, make_transition) -> str:
    """A log of 250 visits as transitions and as episodes, all by the baseline."""
    log = FileLog(tmp_path / "log")
    for topic in (TRANSITIONS, EPISODES):
        log.create(topic, 2)

    def page(i: int) -> dict[str, Any]:
        following = {} if i % 4 == 3 else {"next_state": state(i % 4 + 1)}
        return {"state": state(i % 4), "reward": 1.0, "decision": BASELINE, **following}

    transitions = [encode(make_transition(i, **page(i))) for i in range(1000)]
    log.append(TRANSITIONS, [Entry(f"s{i // 4}", payload, 1_000 + i) for i, payload in enumerate(transitions)])
    log.append(EPISODES, [Entry(f"s{i}", encode(episode(i)), 1_000 + i) for i in range(250)])
    log.close()
    return f"file://{tmp_path / 'log'}"


def started(config: FeatureConfig, work_dir: Path, log: Path, make_transition: Callable[..., Any]) -> Training:
    """What `train` makes of the checkpoint: one transition of another log, too few to learn from."""
    other = FileLog(log)
    other.create(TRANSITIONS, 1)
    other.append(TRANSITIONS, [Entry("k", encode(make_transition(0)), 1)])
    other.close()
    seen: list[Training] = []
    train(config, f"file://{log}", work_dir, until_idle=True, export=lambda training, _: seen.append(training))
    return seen[0]


@pytest.mark.parametrize("returns", ["td", "mc"])
@pytest.mark.parametrize("switches", [{}, {"target": "polyak"}], ids=["default", "target"])
def test_v_is_what_is_known_and_the_rest_is_fresh(
    make_config, config, url: str, tmp_path: Path, make_transition, returns: str, switches: dict[str, str]
) -> None:
    config = make_config(
        tower=(32,), head=(32,), learning_rate=0.02, updates_per_transition=1.0, seeds=2, holdout=0.0, **switches
    )
    done = pretrain(config, url, tmp_path / "work", returns=returns)
    assert (done.progress.ingested, done.progress.refused) == (1000, {})
    assert done.losses["value_loss"] < 0.01
    training = started(config, tmp_path / "work", tmp_path / "other", make_transition)
    assert training.progress.ingested == 1
    found = training.learner.evaluate({"dense": np.arange(4, dtype="f4")[:, None]})
    np.testing.assert_allclose(found.value, np.broadcast_to(VALUES, (2, 2, 4)), atol=0.15)
    np.testing.assert_array_equal(found.action, np.ones((2, 2, 4, 1), "f4"))
    learner, fresh = training.learner, Ddpg(config)
    trained = {
        id(v)
        for networks in (learner.online, learner.target.networks)
        for part in (networks.tower, networks.value_head)
        for v in part.variables
    }
    for mine, its in zip(learner.variables, fresh.variables, strict=True):
        assert (mine.numpy() == its.numpy()).all() == (id(mine) not in trained), mine.name
    ahead = learner.target.networks.ahead({"dense": np.tile(np.arange(4, dtype="f4")[:, None], (2, 1, 1))})
    np.testing.assert_allclose(ahead.value, found.value[:, 0], rtol=1e-5)


SHOP, OTHERS = "a", "bcdefgh"  # of three rows of their own: one learned long ago, and those that took its place


@pytest.fixture
def shops(make_config, tmp_path: Path, make_transition) -> Callable[..., FeatureConfig]:
    """A log of visits to one shop that earn 4 each, then of visits to others that earn nothing; and its config."""
    log = FileLog(tmp_path / "shops")
    log.create(TRANSITIONS, 1)
    visits = [SHOP] * 640 + [shop for shop in OTHERS for _ in range(192)]
    ends = {"discount": 0.0, "next_state": None, "ending": Ending.LEAVE, "decision": BASELINE}
    made = [
        make_transition(i, state=State(user={"shop": shop}), reward=4.0 * (shop == SHOP), **ends)
        for i, shop in enumerate(visits)
    ]
    log.append(TRANSITIONS, [Entry("k", encode(transition), 1_000 + i) for i, transition in enumerate(made)])
    log.close()

    def config(remember: bool = True, **algorithm: Any) -> FeatureConfig:
        vocabulary = DynamicVocabulary(6, 1, 1, half_life=64, remember=remember)
        parts = {
            "features": (IdFeature("shop", "user.shop", "shops"),),
            "embeddings": {"shops": GraphTable(4, vocabulary)},
        }
        return make_config(parts, learning_rate=0.01, updates_per_transition=0.25, replay=256, **algorithm)

    return config


def starts_of(config: FeatureConfig, work_dir: Path, shelf: Shelf) -> tuple[Training, int]:
    """A trainer as `train` has it at the checkpoint, and the row that the shop is given when it comes back."""
    training = Training(config, Encoder(config), shelf=shelf)
    loaded = Checkpoints(work_dir / "checkpoints").newest()
    assert loaded is not None
    log = FileLog(work_dir.parent / "shops")
    go_on(training, loaded, log, with_weights=True)
    log.close()
    before, ids = training.snapshot, training.snapshot.vocabularies["shops"].copy()
    assert xxh3_64_intdigest(SHOP.encode()) not in ids
    ids[0] = xxh3_64_intdigest(SHOP.encode())
    training.tables.hand_over(before, replace(before, vocabularies={"shops": ids}))
    return training, 3


@pytest.mark.parametrize(
    "switches", [{}, {"towers": "separate", "target": "polyak", "seeds": 2}], ids=["default", "separate"]
)
def test_rows_of_ids_that_lost_their_place_are_there_when_training_begins(
    shops, tmp_path: Path, switches: dict[str, Any]
) -> None:
    config = shops(**switches)
    pretrain(config, f"file://{tmp_path / 'shops'}", tmp_path / "work")
    with closing(Shelf(tmp_path / "work" / FILE)) as shelf:
        training, row = starts_of(config, tmp_path / "work", shelf)
        assert training.tables.begun == {("shops", REMEMBERED): 1, ("shops", COLD): 0}
    learner = training.learner
    value = learner.evaluate({"shop": np.array([row, 2], "i4")}).value.numpy()[:, 0]  # [S, (the shop, its bucket)]
    assert (value[:, 0] > value[:, 1] + 1).all()
    ahead = learner.target.networks.ahead({"shop": np.full((len(value), 1), row, "i4")}).value.numpy()
    np.testing.assert_allclose(ahead[:, 0], value[:, 0], rtol=1e-5)
    for variable in learner.variables:
        if re.search("_table_(first|second):0", variable.name):
            assert not variable.numpy()[:, row].any()


def test_a_run_that_was_killed_leaves_no_rows_to_the_next(shops, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with closing(Shelf(tmp_path / "work" / FILE)) as shelf:
        shelf.put("shops", [1], [b"row"])
        shelf.keep()
    pretrain(shops(), f"file://{tmp_path / 'shops'}", tmp_path / "work")
    with closing(sqlite3.connect(tmp_path / "work" / FILE)) as file:
        assert file.execute("SELECT count(*) FROM rows WHERE tab = 'shops'").fetchone() == (0,)
        assert file.execute("SELECT count(*) FROM rows").fetchone()[0] > 0


def test_where_no_vocabulary_asks_for_it_nothing_is_remembered(shops, tmp_path: Path) -> None:
    pretrain(shops(remember=False), f"file://{tmp_path / 'shops'}", tmp_path / "work")
    assert not (tmp_path / "work" / FILE).exists()


def test_the_run_is_another_than_one_that_starts_from_nothing(config, url, tmp_path: Path, make_transition) -> None:
    """Candidates of the two may wait in the same staging folder."""
    pretrain(config, url, tmp_path / "work")
    pretrained = started(config, tmp_path / "work", tmp_path / "a", make_transition)
    plain = started(config, tmp_path / "plain", tmp_path / "b", make_transition)
    assert pretrained.run_id != plain.run_id


def test_pages_of_policies_teach_v_nothing(make_config, tmp_path: Path, make_transition) -> None:
    config = make_config(learning_rate=0.01, updates_per_transition=1.0)
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 1)
    rewards = [1.0 if i % 3 == 0 else 1e3 for i in range(600)]  # every third page is the baseline's
    ends = {"discount": 0.0, "next_state": None, "ending": Ending.LEAVE}
    transitions = [make_transition(i, state=state(0), reward=reward, **ends) for i, reward in enumerate(rewards)]
    log.append(TRANSITIONS, [Entry("k", encode(t), 1_000 + i) for i, t in enumerate(transitions)])
    log.close()
    done = pretrain(config, f"file://{tmp_path / 'log'}", tmp_path / "work")
    assert done.losses["value_covered"] == pytest.approx(1.0, abs=0.05)


def test_returns_of_episodes() -> None:
    found = list(of_returns(episode(1), gamma=0.5))
    assert [(t.page_index, t.reward) for t in found] == [(3, 1.0), (2, 1.5), (1, 1.75), (0, 1.875)]
    assert {(t.discount, t.next_state, t.session_id) for t in found} == {(0.0, None, "s1")}
    assert [t.id for t in found] == ["r1.3@1", "r1.2@1", "r1.1@1", "r1.0@1"]


def test_returns_that_are_not_the_baselines_are_left_out() -> None:
    fallback = Decision(DecidedBy.FALLBACK, "p1", "bucket")
    mixed = episode(1, (BASELINE, POLICY, fallback, BASELINE))
    assert [(t.page_index, t.reward) for t in of_returns(mixed, gamma=0.5)] == [(3, 1.0), (2, 1.5)]
    assert list(of_returns(episode(1, ending=Ending.TRUNCATED), gamma=0.5)) == []


def test_a_work_directory_in_use_is_left_alone(config, url: str, tmp_path: Path, make_transition) -> None:
    started(config, tmp_path / "work", tmp_path / "other", make_transition)
    with pytest.raises(CheckpointError, match="has a checkpoint already"):
        pretrain(config, url, tmp_path / "work")


def test_too_little_to_learn_from_is_said(make_config, url: str, tmp_path: Path) -> None:
    config = make_config(batch_size=1024, replay=2000)
    with pytest.raises(TrainerError, match="expected at least 1024 pages to learn from, found 1000"):
        pretrain(config, url, tmp_path / "work")


def test_a_learner_without_v_is_refused(make_config, url: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="expected ddpg with critic v_plus_a, found a ddpg without V"):
        pretrain(make_config(critic="plain"), url, tmp_path / "work")


def test_updates_may_be_more_than_in_the_config(config, url: str, tmp_path: Path, make_transition) -> None:
    """And the checkpoint is of that config all the same."""
    done = pretrain(config, url, tmp_path / "work", updates_per_transition=2.0)
    assert done.progress.updates == 15 * 64 * 2
    assert started(config, tmp_path / "work", tmp_path / "other", make_transition).progress.ingested == 1


YAML = """
schema_version: 1
name: feed
kv_prefix: fd
features:
  - {name: x, kind: dense, source: user.x}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action:
  - {name: a, baseline: 1.0, range: [0.5, 1.5]}
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.5, tower: [8], head: [8], batch_size: 32}
policies:
  - {name: base, kind: baseline}
  - {name: rl_a, kind: learned}
buckets:
  salt: feed-1
  assign:
    - {name: control, policy: base, slots: [0, 49]}
    - {name: a, policy: rl_a, slots: [50, 99]}
"""


def test_the_command(url: str, tmp_path: Path) -> None:
    (tmp_path / "feed.yaml").write_text(YAML)
    asked = ["pretrain", "--config", str(tmp_path / "feed.yaml"), "--log", url]
    asked += ["--store", f"sqlite://{tmp_path / 'store'}", "--state", str(tmp_path / "state")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    told = re.search(r"state: V from 1000 pages, 240 updates; its mean is (\S+), its loss \d", done.output)
    assert told, done.output
    assert 0.5 < float(told[1]) < np.mean(VALUES) + 0.1  # on its way there from 0
    again = CliRunner().invoke(main, asked)
    assert again.exit_code == 1
    assert "has a checkpoint already" in again.output
    assert "Traceback" not in again.output

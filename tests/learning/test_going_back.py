"""A trainer that goes back is what it was when it handed out a candidate, but for its place in the log."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import Dense, FeatureConfig, Publish, ZScore
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.checkpoint import Checkpoints, restore
from pipeline.learning.going_back import chosen
from pipeline.learning.learners import learner_of
from pipeline.learning.past import Past
from pipeline.learning.progress import Progress, decode_saved
from pipeline.learning.trainer import Pace, train
from pipeline.learning.training import ROUND_SIZE, Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry
from pipeline.monitoring.catalogue import TRAINER
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.published import (
    BOOTSTRAP,
    GoBack,
    Served,
    candidate_id,
    candidates_key,
    change_pointer,
    sent_back,
)
from pipeline.stores.sqlite import SqliteStore
from pipeline.stores.store import StoreError

ROUNDS = 4  # and as many candidates
PREFIX = "t"


class Known(NamedTuple):
    """What the learner was at a moment."""

    weights: list[np.ndarray]
    parameters: str
    progress: Progress
    id: str = ""

    @classmethod
    def of(cls, training: Training) -> Known:
        name = candidate_id(training.progress.ingested, training.run_id)
        return cls(weights_of(training.learner), training.snapshot.sha256, copy.deepcopy(training.progress), name)

    def is_the_learner_of(self, other: Known) -> bool:
        same = all(np.array_equal(x, y) for x, y in zip(self.weights, other.weights, strict=True))
        return same and self.parameters == other.parameters


def weights_of(learner: tf.Module) -> list[np.ndarray]:
    """Its optimisers among them."""
    return [variable.numpy() for variable in learner.variables]


class Bench:
    def __init__(self, config: FeatureConfig, folder: Path, make_transition: Callable[..., Any]) -> None:
        self.config, self.folder, self._transition = config, folder, make_transition
        self.log = FileLog(folder / "log")
        self.log.create(TRANSITIONS, 1)
        self.store = SqliteStore(folder / "store.sqlite")
        self.metrics = Metrics(TRAINER)
        self.written = 0

    def feed(self, rounds: int) -> None:
        numbers = range(self.written, self.written + rounds * ROUND_SIZE)
        self.log.append(TRANSITIONS, [Entry("s", encode(self._transition(i)), 1_000 + i) for i in numbers])
        self.written = numbers.stop

    def train(self) -> list[Known]:
        """The trainer until it is idle; what it was at each hand-out."""
        handed_out: list[Known] = []
        train(
            self.config, f"file://{self.folder}/log", self.folder / "work", until_idle=True, store=self.store,
            export=lambda training, _: handed_out.append(Known.of(training)), metrics=self.metrics,
            pace=Pace(poll=ROUND_SIZE),
        )  # fmt: skip
        return handed_out

    def go_back(self, policy: str, candidate: str) -> None:
        change_pointer(self.store, PREFIX, policy, lambda now: sent_back(now, Served(1, "sha"), candidate))


@pytest.fixture
def bench(make_config: Any, make_transition: Any, tmp_path: Path) -> Iterator[Bench]:
    features = (Dense("x", "user.x", zscore=ZScore(min_count=5)),)
    often = {"features": features, "publish": Publish(every=0, min_transitions=1)}
    bench = Bench(make_config(often, replay=100, updates_per_transition=0.125), tmp_path, make_transition)
    with closing(bench.log), closing(bench.store):
        bench.feed(ROUNDS)
        yield bench


def checkpoint(bench: Bench) -> Known:
    """The newest."""
    loaded = Checkpoints(bench.folder / "work" / "checkpoints").newest()
    assert loaded is not None
    saved = decode_saved(loaded.state, "checkpoint")
    learner = learner_of(bench.config)
    restore(learner, loaded)
    return Known(weights_of(learner), hashlib.sha256(saved.snapshot).hexdigest(), saved.progress)


def test_it_goes_on_from_what_it_was_then_and_from_where_it_is_in_the_log(bench: Bench) -> None:
    candidates = bench.train()
    assert len(candidates) == ROUNDS
    bench.go_back("p1", candidates[1].id)
    assert bench.train() == []  # it has gone back; nothing new was learned, so nothing is handed out
    found = checkpoint(bench)
    assert found.is_the_learner_of(candidates[1])
    assert not found.is_the_learner_of(candidates[-1])
    now, before = found.progress, candidates[-1].progress
    assert (now.ingested, now.positions, now.updates) == (before.ingested, before.positions, before.updates)
    assert now.gone_back == {"p1": 1}
    assert bench.metrics.total("went_back", outcome="restored") == 1


def test_how_long_each_transition_waited_for_a_candidate_is_told(bench: Bench) -> None:
    bench.train()
    name = "pageturn_trainer_transition_to_candidate_seconds_count"
    [told] = [s.value for m in bench.metrics.registry.collect() for s in m.samples if s.name == name]
    assert told == ROUNDS * ROUND_SIZE


def test_what_was_learned_before_is_not_handed_out_as_if_it_were_new(bench: Bench) -> None:
    training = Training(bench.config, Encoder(bench.config))
    training.progress.ingested, training.progress.exported = 7, 5
    training.go_back(None, ("p1",))
    assert training.news == 0


def test_a_request_is_followed_once(bench: Bench) -> None:
    candidates = bench.train()
    bench.go_back("p1", candidates[0].id)
    bench.feed(1)
    after = bench.train()[-1]
    assert not after.is_the_learner_of(candidates[0])
    assert bench.train() == []
    assert checkpoint(bench).is_the_learner_of(after)
    assert bench.metrics.total("went_back") == 1


def test_the_baseline_is_a_learner_that_has_learned_nothing(bench: Bench) -> None:
    fresh = weights_of(learner_of(bench.config))
    bench.train()
    bench.go_back("p2", BOOTSTRAP)
    bench.train()
    back = checkpoint(bench)
    assert all(np.array_equal(x, y) for x, y in zip(back.weights, fresh, strict=True))
    assert back.progress.explored == {}
    assert back.progress.ingested == ROUNDS * ROUND_SIZE


def test_what_is_not_kept_is_not_invented(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    before = bench.train()[-1]
    bench.go_back("p1", "000000000064-other")
    bench.train()
    found = checkpoint(bench)
    assert found.is_the_learner_of(before)
    assert found.progress.gone_back == {}  # what it hands out is not published
    assert "no longer kept" in caplog.text
    assert bench.metrics.total("went_back", outcome="lost") > 0


def test_a_trainer_that_begins_anew_has_nothing_to_give_up(bench: Bench) -> None:
    bench.go_back("p1", "000000000064-other")
    handed_out = bench.train()
    assert {tuple(known.progress.gone_back.items()) for known in handed_out} == {(("p1", 1),)}
    assert bench.metrics.total("went_back") == 0


def test_it_keeps_what_a_rollback_may_go_to_and_the_newest(bench: Bench) -> None:
    first = bench.train()[0]
    bench.store.put(candidates_key(PREFIX, "p2"), b'{"2": "%s"}' % first.id.encode())
    bench.feed(8)
    handed_out = [first, *bench.train()]
    kept = sorted(path.name for path in (bench.folder / "work" / "handed_out").iterdir())
    assert kept == [first.id, *(each.id for each in handed_out[-5:])]


def test_a_store_that_is_away_is_no_reason_to_stop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(keys: Any) -> Any:
        raise StoreError("away")

    monkeypatch.setattr(bench.store, "get_many", away)
    assert len(bench.train()) == ROUNDS


def test_a_kept_checkpoint_is_a_copy_where_there_are_no_hard_links(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: str, target: str) -> None:
        raise PermissionError(source)

    monkeypatch.setattr("os.link", refused)
    first = bench.train()[0]
    assert Past(bench.folder / "work" / "handed_out").find(first.id) is not None


A, B, C = "000000000064-r", "000000000128-r", "000000000192-r"


@pytest.mark.parametrize(
    ("asked", "new", "followed", "expected"),
    [
        pytest.param({"p1": GoBack(1, B)}, ("p1",), {}, B, id="the one that is asked for"),
        pytest.param({"p1": GoBack(1, B), "p2": GoBack(1, A)}, ("p1", "p2"), {}, A, id="the older of two"),
        pytest.param(
            {"p1": GoBack(1, A), "p2": GoBack(1, B)}, ("p2",), {B: {"p1": 0}}, A, id="B holds what p1 has given up"
        ),
        pytest.param(
            {"p1": GoBack(1, A), "p2": GoBack(1, B)}, ("p2",), {B: {"p1": 1}}, B, id="B was made after p1 went back"
        ),
        pytest.param(
            {"p1": GoBack(2, C), "p2": GoBack(1, B)}, ("p2",), {B: {}}, B, id="older than all that was given up"
        ),
        pytest.param(
            {"p1": GoBack(1, BOOTSTRAP), "p2": GoBack(1, B)}, ("p2",), {B: {}}, BOOTSTRAP, id="to the baseline"
        ),
    ],
)
def test_nobody_gets_back_what_was_given_up(
    asked: dict[str, GoBack], new: tuple[str, ...], followed: dict[str, dict[str, int]], expected: str
) -> None:
    assert chosen(asked, {policy: asked[policy] for policy in new}, lambda each: followed.get(each, {})) == expected


def test_policies_that_left_take_their_requests_with_them() -> None:
    progress = Progress(gone_back={"p1": 1, "gone": 2})
    progress.only_of(["p1"])
    assert progress.gone_back == {"p1": 1}

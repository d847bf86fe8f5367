"""Trainers that learn together: who has which sessions, what TF_CONFIG says, what they ask of one another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pageturn.__main__ import main
from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.dealing import DealtFeeding, share_of
from pipeline.learning.errors import TrainerError
from pipeline.learning.ingestion import Example, read_transition, to_example
from pipeline.learning.progress import Progress
from pipeline.learning.together import Place, check_can_learn_together, digest, packed, place_of, unpack
from pipeline.learning.training import Training
from pipeline.logs.log import Record
from tests.conftest import ROOT

FEED = ROOT / "docs" / "examples" / "feed.yaml"
Make = Callable[..., Any]


@pytest.fixture
def config(make_config: Make) -> FeatureConfig:
    return make_config(replay=40, updates_per_transition=0.25)


@pytest.fixture
def feeding(config: FeatureConfig, make_transition: Make) -> Callable[..., DealtFeeding]:
    def feeding(n: int, *mine: int, shares: int = 2, first: int = 0) -> DealtFeeding:
        made = DealtFeeding(config, Encoder(config), 64, shares, mine)
        for i in range(first, n):
            made.add(example(config, make_transition(i)), 0, i)
        return made

    return feeding


def example(config: FeatureConfig, transition: Any) -> Example:
    found = to_example(read_transition(encode(transition)), config, Encoder(config))
    assert isinstance(found, Example)
    return found


# Dealing ---------------------------------------------------------------------------------------------------------


def test_sessions_are_dealt_out_evenly_and_as_a_whole() -> None:
    shares = Counter(share_of(f"session-{i}", 4) for i in range(4_000))
    assert sorted(shares) == [0, 1, 2, 3]
    assert max(shares.values()) < 1_100
    assert share_of("session-7", 4) == share_of("session-7", 4)


def test_each_share_draws_what_it_would_draw_beside_others(feeding, config) -> None:
    both, first, second = feeding(100, 0, 1), feeding(100, 0), feeding(100, 1)
    snapshot = Snapshot.initial(config)
    whole, *parts = (each._batches(3, snapshot, 5) for each in (both, first, second))
    assert whole.reward.shape == (3, 1, 32)
    np.testing.assert_array_equal(whole.reward, np.concatenate([part.reward for part in parts], axis=2))
    states = [part.state["dense"] for part in parts]
    np.testing.assert_array_equal(whole.state["dense"], np.concatenate(states, axis=2))
    assert not np.isin(*states).any()


def test_rows_that_were_put_back_are_drawn_like_those_that_never_left(feeding, config, make_transition) -> None:
    """The ring of either share went round in the first one, and lies otherwise in the second."""
    ran, back = feeding(130, 0), feeding(0, 0)
    held = ran.held()
    assert len(held.origins.offsets) == 80
    assert (np.diff(held.origins.offsets) > 0).all()
    for offset in held.origins.offsets.tolist():
        back.add(example(config, make_transition(offset)), 0, offset)
    batches = [each._batches(2, Snapshot.initial(config), 9) for each in (ran, back)]
    np.testing.assert_array_equal(batches[0].state["dense"], batches[1].state["dense"])
    np.testing.assert_array_equal(back.held().origins.offsets, held.origins.offsets)


def test_no_update_before_each_share_has_a_batch(config, make_transition, feeding) -> None:
    of_one = [i for i in range(400) if share_of(make_transition(i).session_id, 2) == 0][:30]
    lonely = feeding(0, 0)
    for i in of_one:
        lonely.add(example(config, make_transition(i)), 0, i)
    learner = Training(config, Encoder(config)).learner
    asked = (learner, Snapshot.initial(config), Progress(), np.array([True, True]))
    assert lonely.learn(*asked) == []
    other = [i for i in range(400) if share_of(make_transition(i).session_id, 2) == 1][:16]
    for i in other:
        lonely.add(example(config, make_transition(i)), 0, i)
    assert len(lonely.learn(*asked)) == 16


def test_candidates_of_several_workers_have_ids_of_their_own(config, make_transition) -> None:
    encoder = Encoder(config)
    trainings = [
        Training(config, encoder),
        *(Training(config, encoder, feeding=DealtFeeding(config, encoder, 64, n, range(n))) for n in (2, 3)),
    ]
    for training in trainings:
        training.ingest(Record(0, 0, 1, "k", encode(make_transition(0))))
    assert len({training.run_id for training in trainings}) == 3


# State -----------------------------------------------------------------------------------------------------------


def test_weights_arrive_as_they_were_sent(make_config: Make) -> None:
    def learner(seed: int) -> Any:
        config = make_config(kind=schema.DoubleDqn, seed=seed)  # has weights, a gate and a count
        return Training(config, Encoder(config)).learner

    theirs, mine = learner(1), learner(2)
    theirs.heads.gate.assign([[True, False]])
    assert digest(theirs) != digest(mine)
    unpack(mine, packed(theirs))
    assert digest(theirs) == digest(mine)
    for a, b in zip(mine.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.name)


# TF_CONFIG -------------------------------------------------------------------------------------------------------


def said(cluster: dict[str, list[str]], kind: str = "worker", index: int = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (None, None),
        ("", None),
        (said({"worker": ["a:1"]}), None),
        (said({"worker": ["a:1", "b:1"]}), Place(0, 2)),
        (said({"worker": ["a:1", "b:1"]}, index=1), Place(1, 2)),
        (said({"chief": ["c:1"], "worker": ["a:1", "b:1"]}, index=1), Place(2, 3)),
        (said({"chief": ["c:1"], "worker": ["a:1"]}, "chief"), Place(0, 2)),
    ],
)
def test_the_first_of_chief_and_workers_is_the_chief(text: str | None, place: Place | None) -> None:
    assert place_of(text) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "TF_CONFIG: expected"),
        (said({"ps": ["a:1"], "worker": ["a:1", "b:1"]}), "at most one chief, found ps"),
        (said({"worker": ["a:1", "b:1"]}, index=2), r"in the cluster of 2, found \('worker', 2\)"),
        (json.dumps({"cluster": {"worker": ["a:1", "b:1"]}}), "found none"),
    ],
)
def test_what_is_wrong_with_it_is_said(text: str, words: str) -> None:
    with pytest.raises(TrainerError, match=words):
        place_of(text)


def test_baselines_are_left_to_the_first(tmp_path: Path) -> None:
    """Several would write the same folders at once."""
    staging, words = tmp_path / "staging", ["bootstrap", "--config", str(FEED), "--staging"]
    for index, begins in ((1, "left to the first of 2 workers"), (0, f"{staging}: the baseline of")):
        env = {"TF_CONFIG": said({"worker": ["a:1", "b:1"]}, index=index)}
        done = CliRunner().invoke(main, [*words, str(staging)], env=env, catch_exceptions=False)
        assert done.exit_code == 0
        assert done.output.startswith(begins)
        assert staging.exists() == (index == 0)


@pytest.mark.parametrize("kind", [schema.Ppo, schema.A2c])
def test_kinds_that_cannot_learn_together_are_refused(make_config: Make, kind: type) -> None:
    with pytest.raises(TrainerError, match=f"found {kind.__name__.lower()}: run one alone"):
        check_can_learn_together(make_config(kind=kind))
    check_can_learn_together(make_config(kind=schema.DuelingDqn))


def test_rows_that_are_remembered_need_one_folder(make_config: Make) -> None:
    shops = {"features": (schema.IdFeature("shop", "user.shop", "shops"),)}
    for remember in (False, True):
        vocabulary = schema.DynamicVocabulary(9, half_life=50, remember=remember)
        config = make_config({**shops, "embeddings": {"shops": schema.GraphTable(2, vocabulary)}})
        with pytest.raises(TrainerError, match="leave `remember` out") if remember else nullcontext():
            check_can_learn_together(config)

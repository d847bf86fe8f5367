"""The ring of rows, and the memory of what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.features.encoder import Encoder
from pipeline.learning.ingestion import to_example
from pipeline.learning.replay import RecentIds, Replay


@pytest.fixture
def fill(make_config, make_transition):
    config = make_config()
    encoder = Encoder(config)

    def fill(capacity: int, numbers: range, start_at: int = 0) -> Replay:
        replay = Replay(capacity, encoder.prepared_dtype, 1)
        replay.start_at(start_at)
        for i in numbers:
            replay.add(to_example(make_transition(i, reward=float(i)), config, encoder), partition=i % 2, offset=i)
        return replay

    return fill


def rewards(replay: Replay, seed: int = 0) -> list[float]:
    return replay.sample(np.random.default_rng(seed), 200).reward.tolist()


def test_the_newest_replace_the_oldest(fill) -> None:
    replay = fill(4, range(10))
    assert len(replay) == 4
    assert replay.origins().offsets.tolist() == [6, 7, 8, 9]
    assert set(rewards(replay)) == {6, 7, 8, 9}


def test_columns_of_a_sample_belong_together(fill, make_transition) -> None:
    sampled = fill(8, range(8)).sample(np.random.default_rng(0), 50)
    for i in range(50):
        t = make_transition(int(sampled.reward[i]))
        following = t.next_state or t.state  # finite where nothing follows
        assert sampled.state["dense"][i, 0] == t.state.user["x"]
        assert sampled.next_state["dense"][i, 0] == following.user["x"]
        assert sampled.action[i, 0] == np.float32(t.decision.actions[0].value)
        assert sampled.discount[i] == t.discount
        assert sampled.by_baseline[i] == (t.decision.policy == "base")


@pytest.mark.parametrize("count", [3, 4, 10])
def test_rows_put_back_lie_where_they_lay(fill, count: int) -> None:
    replay = fill(4, range(count))
    rebuilt = fill(4, range(count - len(replay), count), start_at=count - len(replay))
    assert rewards(rebuilt) == rewards(replay)
    np.testing.assert_array_equal(rebuilt.origins(), replay.origins())


def test_keeping_the_last_rows_forgets_the_others(fill) -> None:
    replay = fill(4, range(10))
    replay.keep_last(3)
    assert len(replay) == 3
    assert replay.origins().offsets.tolist() == [7, 8, 9]
    assert set(rewards(replay)) == {7, 8, 9}


def test_no_more_rows_can_be_kept_than_there_are(fill) -> None:
    replay = fill(4, range(10))
    replay.keep_last(7)  # found in the log again by a trainer that has a smaller memory than the one before
    assert replay.origins().offsets.tolist() == [6, 7, 8, 9]


def test_recent_ids_forget_the_oldest() -> None:
    recent = RecentIds(3)
    for digest in (1, 2, 3, 2**64 - 1):
        recent.add(digest)
    assert [digest in recent for digest in (1, 2, 3, 2**64 - 1)] == [False, True, True, True]
    again = RecentIds(3, recent.hashes())
    again.add(5)
    assert again.hashes().tolist() == [3, 2**64 - 1, 5]

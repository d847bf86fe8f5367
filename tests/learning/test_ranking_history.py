"""The last pages as prepared rows: what is kept, what is young enough, and what a batch of them looks like."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from pipeline.config.schema import Dense, Feature
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.examples import Encoders, PageExample
from pipeline.learning.drn.history import History
from pipeline.records import Item, State
from tests.learning.test_drn_training import make


def unscaled(feature: Feature) -> Feature:
    return structs.replace(feature, zscore=None) if isinstance(feature, Dense) else feature


CONFIG = make()
CONFIG = structs.replace(CONFIG, features=tuple(map(unscaled, CONFIG.features)))  # what goes in is what is asserted
ENCODERS = Encoders(Encoder(CONFIG), Encoder(CONFIG, part="item"))
SNAPSHOT = Snapshot.initial(CONFIG)


def items(*good: float) -> np.ndarray:
    return ENCODERS.item.prepare_items(tuple(Item(f"i{g}", features={"good": g, "shop": 1}) for g in good))


def state(ctr: float) -> np.ndarray:
    return ENCODERS.state.prepare(State({"ctr": ctr})).row


def page(time_ms: int, shown: tuple[float, ...] = (0.5,), ahead: tuple[float, ...] = (0.25,)) -> PageExample:
    """What is shown is rewarded by what it is."""
    reward = np.array(shown, np.float32)
    return PageExample(time_ms, state(0.5), items(*shown), reward, float(bool(ahead)), state(0.25), items(*ahead))


def history(*times_ms: int, capacity: int = 3) -> History:
    made = History(capacity, ENCODERS)
    for number, time_ms in enumerate(times_ms):
        made.add(page(time_ms), number % 2, 100 + number)
    return made


def test_the_oldest_make_room() -> None:
    assert (len(history(1, 2)), len(history(1, 2, 3, 4))) == (2, 3)
    made = history(1, 2, 3, 4)
    assert made.since(0).tolist() == [1, 2, 3]
    assert made.since(2).tolist() == [2, 3]
    assert made.since(4).tolist() == []
    assert made.added == 4


def test_pages_are_young_from_that_very_moment_on() -> None:
    made = history(10, 20, 30, 40)
    assert [made.younger(oldest).tolist() for oldest in (0, 20, 21, 40, 41)] == [[1, 2, 3], [1, 2, 3], [2, 3], [3], []]


def test_where_pages_came_from_is_told_from_the_oldest_on() -> None:
    origins = history(1, 2, 3, 4).origins()
    assert (origins.partitions.tolist(), origins.offsets.tolist()) == ([1, 0, 1], [101, 102, 103])


def test_pages_are_put_back_where_they_lay() -> None:
    made = History(3, ENCODERS)
    made.start_at(4)
    made.add(page(50), 0, 7)
    assert (made.since(0).tolist(), made.added) == ([4], 5)
    assert made.batches(np.array([[4]]), SNAPSHOT).reward[0, 0, 0].tolist() == [0.5]


def test_a_batch_is_padded_to_its_longest_page_and_says_so() -> None:
    made = History(8, ENCODERS)
    for shown, ahead in (((0.5,), (0.25, 0.125)), ((0.75, 0.25, 1.0), ()), ((0.0, 1.0), (0.5,))):
        made.add(page(1, shown, ahead), 0, 0)
    found = made.batches(np.array([[0, 1], [2, 1]]), SNAPSHOT)
    assert found.shown[:, 0].tolist() == [
        [[True, False, False], [True, True, True]],
        [[True, True, False], [True, True, True]],
    ]
    assert found.reward[:, 0].tolist() == [[[0.5, 0, 0], [0.75, 0.25, 1.0]], [[0.0, 1.0, 0], [0.75, 0.25, 1.0]]]
    assert found.discount[:, 0].tolist() == [[1, 0], [1, 0]]
    assert found.next_exists[:, 0].tolist() == [[[True, True], [False, False]], [[True, False], [False, False]]]
    dense = {name: x for name, x in found.items.items() if x.dtype == np.float32}
    (of_items,) = dense.values()
    assert of_items[0, 0, 1, :, 0].tolist() == [0.75, 0.25, 1.0]
    (of_next,) = (x for x in found.next_items.values() if x.dtype == np.float32)
    assert of_next[0, 0, 0, :, 0].tolist() == [0.25, 0.125]
    assert [x["dense"][0, 0, :, 0].tolist() for x in (found.user, found.next_user)] == [[0.5, 0.5], [0.25, 0.25]]


def test_where_no_page_is_followed_by_another_there_is_room_for_a_candidate_all_the_same() -> None:
    made = History(2, ENCODERS)
    made.add(page(1, ahead=()), 0, 0)
    found = made.batches(np.array([[0]]), SNAPSHOT)
    assert found.next_exists.shape == (1, 1, 1, 1)
    assert not found.next_exists.any()
    assert {x.shape[:4] for x in found.next_items.values()} == {(1, 1, 1, 1)}


@pytest.mark.parametrize("numbers", [[[0, 1, 2]], [[0], [1], [2]]])
def test_batches_are_of_one_seed(numbers: list[list[int]]) -> None:
    found = history(1, 2, 3).batches(np.array(numbers), SNAPSHOT)
    n, size = np.shape(numbers)
    assert found.reward.shape == (n, 1, size, 1)
    assert found.user["dense"].shape[:3] == (n, 1, size)

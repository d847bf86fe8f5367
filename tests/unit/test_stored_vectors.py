"""Vectors in the key-value store: the cache, and the loader that never changes a vector."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest

from pipeline.agent.lookups import TimelyVectors
from pipeline.features.stored_vectors import StoredVectors, TableMeta, VectorError, load_vectors, read_table
from pipeline.monitoring.catalogue import AGENT
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.store import StoreError


class CountingStore:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked: list[list[str]] = []

    def get(self, key):
        return self.values.get(key)

    def get_many(self, keys):
        self.asked.append(list(keys))
        return [self.values.get(key) for key in keys]

    def put(self, key, value):
        self.values[key] = value

    def put_many(self, values):
        self.values.update(values)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore()
    load_vectors(store, "fd", "shop", "e1", ["a", "b"], np.array([[1, 2], [3, 4]], np.float32))
    store.asked.clear()
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


A, B = np.array([1, 2], "<f4").tobytes(), np.array([3, 4], "<f4").tobytes()


def test_one_round_trip_for_what_is_not_known(store: CountingStore, clock: Clock):
    stored = StoredVectors(store, "fd", capacity=10, monotonic=clock)
    assert stored.vectors("shop", "e1", ["a", "x", "a"]) == [A, None, A]
    assert stored.vectors("shop", "e1", ["b", "a"]) == [B, A]
    assert stored.vectors("shop", "e1", []) == []
    assert store.asked == [["fd:e:shop:e1:a", "fd:e:shop:e1:x"], ["fd:e:shop:e1:b"]]


def test_tables_and_epochs_are_kept_apart(store: CountingStore, clock: Clock):
    stored = StoredVectors(store, "fd", capacity=10, monotonic=clock)
    assert stored.vectors("shop", "e1", ["a"]) == [A]
    assert stored.vectors("shop", "e2", ["a"]) == [None]
    assert stored.vectors("city", "e1", ["a"]) == [None]


def test_that_an_id_has_no_vector_is_soon_forgotten(store: CountingStore, clock: Clock):
    stored = StoredVectors(store, "fd", capacity=10, monotonic=clock, absent_s=5.0)
    stored.vectors("shop", "e1", ["c", "a"])
    load_vectors(store, "fd", "shop", "e1", ["c"], np.array([[5, 6]], np.float32))
    store.asked.clear()
    clock.now_s += 5.0
    assert stored.vectors("shop", "e1", ["c"]) == [None]
    clock.now_s += 0.001
    assert stored.vectors("shop", "e1", ["c", "a"]) == [np.array([5, 6], "<f4").tobytes(), A]
    assert store.asked == [["fd:e:shop:e1:c"]]


def test_the_vectors_used_last_stay(store: CountingStore, clock: Clock):
    load_vectors(store, "fd", "shop", "e1", ["c", "d", "e"], np.array([[5, 5], [6, 6], [7, 7]], np.float32))
    stored = StoredVectors(store, "fd", capacity=4, monotonic=clock)
    for ids in ("ab", "c", "a", "de"):
        stored.vectors("shop", "e1", list(ids))
    assert stored.cached("shop", "e1", ["d", "a"]) == [np.array([6, 6], "<f4").tobytes(), A]
    assert stored.cached("shop", "e1", ["e", "b"]) is None
    assert stored.cached("shop", "e1", ["c"]) is None


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 50])
def test_memory_has_room_for_so_many_and_what_came_last(store: CountingStore, clock: Clock, capacity: int):
    ids = [str(i) for i in range(300)]
    load_vectors(store, "fd", "shop", "e1", ids, np.ones((300, 2), np.float32))
    stored = StoredVectors(store, "fd", capacity=capacity, monotonic=clock)
    for each in ids:
        stored.vectors("shop", "e1", [each])
    last = ids[300 - capacity // 2 :]
    assert stored.cached("shop", "e1", last) == [store.values[f"fd:e:shop:e1:{each}"] for each in last]
    assert sum(stored.cached("shop", "e1", [each]) is not None for each in ids) <= capacity


@pytest.mark.parametrize("pages", [[300], [300, 7], [20, 40], [25, 25, 24], [190, 300, 190]])
def test_nor_do_pages_of_any_size_take_more_room(store: CountingStore, clock: Clock, pages: list[int]):
    ids = [str(i) for i in range(sum(pages))]
    load_vectors(store, "fd", "shop", "e1", ids, np.ones((len(ids), 2), np.float32))
    stored, rest = StoredVectors(store, "fd", capacity=50, monotonic=clock), iter(ids)
    for size in pages:
        stored.vectors("shop", "e1", list(islice(rest, size)))
    store.asked.clear()
    stored.vectors("shop", "e1", ids)  # in one look: what is found one by one moves, and others are forgotten for it
    asked = [key.removeprefix("fd:e:shop:e1:") for keys in store.asked for key in keys]
    assert len(ids) - 50 <= len(asked) <= len(ids) - 25
    assert not set(asked) & set(ids[-25:])


def test_many_threads_read_what_is_forgotten_and_fetched_again(clock: Clock):
    store = CountingStore()
    ids = [str(i) for i in range(400)]
    load_vectors(store, "fd", "shop", "e1", ids, np.arange(800, dtype=np.float32).reshape(400, 2))
    stored = StoredVectors(store, "fd", capacity=60, monotonic=clock)

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            asked = draw.sample(ids, 20)
            found = stored.vectors("shop", "e1", asked)
            assert found == [store.values[f"fd:e:shop:e1:{each}"] for each in asked]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


def test_more_ids_at_once_than_the_cache_holds(store: CountingStore, clock: Clock):
    stored = StoredVectors(store, "fd", capacity=1, monotonic=clock)
    assert stored.vectors("shop", "e1", ["a", "b", "c"]) == [A, B, None]


def test_the_record_of_a_table_is_not_an_id(store: CountingStore, clock: Clock):
    stored = StoredVectors(store, "fd", capacity=10, monotonic=clock)
    assert stored.vectors("shop", "e1", ["!meta", "a"]) == [None, A]
    assert stored.cached("shop", "e1", ["!meta", "a"]) == [None, A]


def test_loading_says_what_the_table_is_and_can_be_repeated(store: CountingStore):
    assert read_table(store, "fd", "shop", "e1") == TableMeta(2, "float32", 2)
    more = load_vectors(store, "fd", "shop", "e1", ["b", "c"], np.array([[3, 4], [5, 6]], np.float32))
    assert more == read_table(store, "fd", "shop", "e1") == TableMeta(2, "float32", 3)
    assert read_table(store, "fd", "shop", "e2") is None


def test_half_precision_takes_half_the_room(store: CountingStore):
    load_vectors(store, "fd", "shop", "e2", ["a"], np.array([[1, 2]], np.float16))
    assert store.values["fd:e:shop:e2:a"] == np.array([1, 2], "<f2").tobytes()
    assert read_table(store, "fd", "shop", "e2") == TableMeta(2, "float16", 1)


@pytest.mark.parametrize(
    ("ids", "matrix", "message"),
    [
        (["a"], np.array([[9, 9]], np.float32), "fd:e:shop:e1:a holds another vector"),
        (["c"], np.array([[1, 2, 3]], np.float32), "expected 2 x float32 as the table holds, found 3 x float32"),
        (["c"], np.array([[1, 2]], np.float16), "expected 2 x float32 as the table holds, found 2 x float16"),
        (["c"], np.array([[1, 2]], np.float64), r"expected \[1, dim\] of float32 or float16, found \[1, 2\] float64"),
        (["c", "d"], np.array([[1, 2]], np.float32), r"expected \[2, dim\]"),
        (["c"], np.array([1], np.float32), r"expected \[1, dim\]"),
        (["c"], np.array([[1, np.nan]], np.float32), "expected finite numbers"),
        (["c", "c"], np.array([[1, 2], [1, 2]], np.float32), "expected distinct ids"),
        (["!meta"], np.array([[1, 2]], np.float32), "none of them '!meta'"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(store: CountingStore, ids, matrix, message: str):
    before = dict(store.values)
    with pytest.raises(VectorError, match=message):
        load_vectors(store, "fd", "shop", "e1", ids, matrix)
    assert store.values == before


def test_many_vectors_are_written_in_portions(store: CountingStore):
    ids = [str(i) for i in range(4_500)]
    load_vectors(store, "fd", "shop", "e3", ids, np.zeros((4_500, 2), np.float32))
    assert [len(keys) for keys in store.asked] == [2_000, 2_000, 500]
    assert read_table(store, "fd", "shop", "e3").rows == 4_500


def test_timely_vectors_ask_the_store_only_for_what_is_not_in_memory(store: CountingStore):
    metrics = Metrics(AGENT)
    stored = StoredVectors(
        store, "fd", capacity=10, monotonic=time.monotonic,
        fetched=lambda table, ids: metrics.count("vectors_fetched", ids, table=table),
    )  # fmt: skip
    timely = TimelyVectors(stored, time.monotonic, metrics)
    for _ in range(3):
        with timely.within(time.monotonic() + 250):
            assert timely.vectors("shop", "e1", ["a", "b", "x"]) == [A, B, None]
    assert len(store.asked) == 1
    counted = {name: metrics.total(name, table="shop") for name in ("vectors", "vectors_fetched", "vectors_unknown")}
    assert counted == {"vectors": 9, "vectors_fetched": 3, "vectors_unknown": 3}
    timely.close()
    with timely.within(time.monotonic() + 250), pytest.raises(StoreError, match="the agent is closed"):
        timely.vectors("shop", "e1", ["new"])


def test_a_description_of_a_table_that_is_none_is_named(store: CountingStore):
    store.put("fd:e:shop:e1:!meta", b"half a rec")
    with pytest.raises(StoreError, match=r"fd:e:shop:e1:!meta.*expected a TableMeta record"):
        read_table(store, "fd", "shop", "e1")

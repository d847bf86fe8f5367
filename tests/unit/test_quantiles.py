"""The quantile normaliser: how far its sketch may be off, what a value becomes, and what is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import Dense, FeatureConfig, Quantile
from pipeline.features.changing import change
from pipeline.features.encoder import Encoder
from pipeline.features.errors import SnapshotError
from pipeline.features.quantiles import FARTHEST, SIZE, Sketch, positions, shift
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.records import State

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "name": "feed",
    "kv_prefix": "fd",
    "features": [
        {
            "name": "price",
            "kind": "dense",
            "source": "user.price",
            "quantile": {"bins": 4, "min_count": 5},
            "missing": {"fill": "median"},
        },
        {"name": "age", "kind": "dense", "source": "user.age", "zscore": {"min_count": 2}, "missing": {"fill": "mean"}},
    ],
    "fusion": {"kind": "pay_plus_a_phi", "phi": 0.1},
    "action": [{"name": "a", "baseline": 1.0, "range": [0.5, 1.5]}],
    "reward": {"weights": {"click": 1.0}},
    "algorithm": {"kind": "ddpg", "gamma": 0.9},
    "policies": [{"name": "base", "kind": "baseline"}],
    "buckets": {"salt": "s", "assign": [{"name": "all", "policy": "base", "slots": [0, 99]}]},
}


def config(**price: Any) -> FeatureConfig:
    first, *rest = CONFIG["features"]
    return msgspec.convert(CONFIG | {"features": [first | price, *rest]}, FeatureConfig)


def seen(config: FeatureConfig, *prices: float | None) -> Statistics:
    statistics = Statistics(config)
    statistics.update(rows(config, *prices))
    return statistics


def rows(config: FeatureConfig, *prices: float | None) -> np.ndarray:
    encoder = Encoder(config)
    return encoder.stack([encoder.prepare(State(user={"price": price})) for price in prices])


def encoded(config: FeatureConfig, snapshot: Snapshot, *prices: float | None) -> list[float]:
    column: np.ndarray = Encoder(config).finish(rows(config, *prices), snapshot)["dense"][:, 0]
    return column.tolist()


# The sketch ------------------------------------------------------------------------------------------------------

N = 40_000
ORDERS = {
    "shuffled": np.random.default_rng(1).permutation(N),
    "rising": np.arange(N),
    "falling": np.arange(N)[::-1],
    "from the ends": np.where(np.arange(N) % 2, np.arange(N) // 2, N - 1 - np.arange(N) // 2),
    "saw": (np.arange(N) * 7919) % N,
}


@pytest.mark.parametrize("order", ORDERS)
def test_ranks_are_within_the_bound_whatever_the_order(order: str) -> None:
    sketch = Sketch()
    sketch.add(ORDERS[order].astype(float).tolist())
    assert sketch.count == N
    levels = int(np.log2(N / SIZE)) + 1
    bound = N * (levels + 1) / (2 * SIZE)
    ranks = sketch.knots(100)[1:] + 1  # the numbers are 0 .. N - 1
    assert np.abs(ranks - np.arange(1, 101) * N / 100).max() <= bound
    assert bound < 0.01 * N


def test_fewer_numbers_than_a_buffer_holds_are_known_exactly() -> None:
    sketch = Sketch()
    sketch.add([5.0, 1.0, float("nan"), 4.0, 2.0, 3.0])
    assert sketch.count == 5
    assert sketch.knots(5).tolist() == [1.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_memory_is_bounded() -> None:
    sketch = Sketch()
    sketch.add(map(float, range(100_000)))
    assert sum(len(numbers) for _, numbers in sketch.dump()) <= 8 * SIZE * 9


def test_a_sketch_goes_on_after_a_restart_as_if_it_had_not_been_interrupted() -> None:
    values = np.random.default_rng(2).lognormal(size=5_000).tolist()
    whole, restarted = Sketch(), Sketch()
    whole.add(values)
    for start in range(0, 5_000, 700):
        restarted = Sketch(restarted.dump())
        restarted.add(values[start : start + 700])
    assert restarted.dump() == whole.dump()


# What a value becomes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-9.0, -1.0),
        (0.0, -1.0),
        (1.0, -0.75),  # half-way through the first of four bins
        (2.0, -0.5),
        (5.0, 0.125),  # a fourth of the third bin
        (8.0, 0.5),
        (9.0, 0.75),
        (10.0, 1.0),
        (1e38, 1.0),
        (np.nan, 0.0),
    ],
)
def test_a_value_lies_linearly_between_two_knots(value: float, expected: float) -> None:
    knots = np.array([0.0, 2.0, 4.0, 8.0, 10.0])
    assert positions(np.array([value]), knots).tolist() == [expected]


def test_a_value_that_many_have_lies_in_the_middle_of_them() -> None:
    knots = np.array([0.0, 0.0, 0.0, 3.0, 9.0])
    assert positions(np.array([-1.0, 0.0, 1.5, 3.0]), knots).tolist() == [-1.0, -0.5, 0.25, 0.5]
    assert positions(np.array([4.0, 5.0, 6.0]), np.full(5, 5.0)).tolist() == [-1.0, 0.0, 1.0]


def test_a_long_tail_is_spread_evenly() -> None:
    rng = np.random.default_rng(3)
    sketch = Sketch()
    sketch.add(rng.lognormal(0, 3, 20_000).tolist())
    found = positions(rng.lognormal(0, 3, 20_000), sketch.knots(100))
    assert np.abs(np.histogram(found, 10, (-1, 1))[0] / 20_000 - 0.1).max() < 0.01


# In a config -----------------------------------------------------------------------------------------------------


def test_nothing_is_said_before_enough_was_seen() -> None:
    few, enough = seen(config(), 1, 2, 3, 4, None), seen(config(), 1, 2, 3, 4, None, 5)
    assert encoded(config(), Snapshot.initial(config()), 1, 99) == [0.0, 0.0]
    assert encoded(config(), few.freeze(), 1, 99, None) == [0.0, 0.0, 0.0]
    assert encoded(config(), enough.freeze(), 1, 99, None) == [-1.0, 1.0, 0.0]


def test_a_missing_value_is_the_median_or_what_the_config_says() -> None:
    filled = config(missing={"fill": 99})
    assert encoded(filled, seen(filled, 1, 2, 3, 4, 5).freeze(), None, 3) == [1.0, 0.0]


def test_it_is_after_the_transform() -> None:
    log = config(transform="log1p")
    knots = seen(log, 0, 0, 0, 0, 0, np.e - 1).freeze().quantiles["price"]
    assert knots[-1] == pytest.approx(1.0)


def test_a_snapshot_keeps_the_knots_and_refuses_others() -> None:
    snapshot = seen(config(), 1, 2, 3, 4, 5).freeze()
    assert Snapshot.from_bytes(snapshot.to_bytes(), config()) == snapshot
    assert Snapshot.initial(config()) != snapshot
    content = msgspec.msgpack.decode(snapshot.to_bytes())
    for knots, message in (
        (b"1234567", "expected finite knots"),
        (np.array([1.0, 0.0, 2.0, 3.0, 4.0]).tobytes(), "expected finite knots that never fall for price"),
        (np.array([1.0, 1.0, 2.0, 3.0, np.inf]).tobytes(), "expected finite knots"),
        (np.array([1.0, 2.0]).tobytes(), "expected 5 knots of price, or none yet, found 2"),
    ):
        changed = msgspec.msgpack.encode(content | {"quantiles": {"price": knots}}, order="sorted")
        with pytest.raises(SnapshotError, match=message):
            Snapshot.from_bytes(changed, config())
    without = msgspec.msgpack.encode({k: x for k, x in content.items() if k != "quantiles"}, order="sorted")
    with pytest.raises(SnapshotError, match=r"expected quantiles of \['price'\], found \[\]"):
        Snapshot.from_bytes(without, config())


def test_statistics_refuse_sketches_of_others() -> None:
    content = msgspec.msgpack.decode(seen(config(), 1, 2).to_bytes())
    for sketches, message in (
        ({}, "expected statistics of"),
        ({"price": [[False, b"1234567"]]}, "expected fewer than 512 whole numbers in a buffer of a sketch, found 7"),
        ({"price": [[False, bytes(8 * SIZE)]]}, "found 4096 bytes"),
    ):
        changed = msgspec.msgpack.encode(content | {"sketches": sketches}, order="sorted")
        with pytest.raises(SnapshotError, match=message):
            Statistics.from_bytes(changed, config())


def test_what_was_seen_of_a_feature_that_stays_is_kept() -> None:
    former, now = config(), config(missing={"fill": 0})
    other = config(quantile={"bins": 5, "min_count": 5})
    statistics = seen(former, 1, 2, 3, 4, 5)
    for to, stays in ((now, True), (other, False)):
        difference = change(former, to)
        assert len(statistics.carried(to, difference).freeze().quantiles["price"]) == (5 if stays else 0)
        assert len(statistics.freeze().carried(to, difference).quantiles["price"]) == (5 if stays else 0)


def test_configs_without_quantiles_have_the_hash_and_the_statistics_that_they_had() -> None:
    """Where these change, every checkpoint and every snapshot that is in use is refused."""
    without = msgspec.structs.replace(config(), features=(Dense("price", "user.price"),))
    assert Snapshot.initial(without).config_sha == "96212c82f91ae3efe31fc330049bfa40431c07bbbe3fddbf9786c8ccbe9173b0"
    assert "sketches" not in msgspec.msgpack.decode(Statistics(without).to_bytes())
    asked = msgspec.structs.replace(config(), features=(Dense("price", "user.price", quantile=Quantile()),))
    assert Snapshot.initial(asked).config_sha != Snapshot.initial(without).config_sha


# How far a table is from another -----------------------------------------------------------------------------------


def table(values: np.ndarray, bins: int = 100) -> np.ndarray:
    sketch = Sketch()
    sketch.add(values.tolist())
    return sketch.knots(bins)


NORMAL = np.random.default_rng(4).normal(size=50_000)


@pytest.mark.parametrize("by", [0.25, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_the_distance_of_a_shifted_normal_is_the_shift(by: float, scale: float) -> None:
    assert shift(table(scale * NORMAL), table(scale * (NORMAL + by))) == pytest.approx(abs(by), rel=0.1)


def test_the_distance_is_that_of_ranks_and_not_of_values() -> None:
    """Prices with a long tail: the same as of their logarithms, but for what is linear between knots."""
    logs = table(NORMAL), table(NORMAL + 0.7)
    prices = table(np.exp(3 * NORMAL)), table(np.exp(3 * (NORMAL + 0.7)))
    assert shift(*prices) == pytest.approx(shift(*logs), rel=0.05)


def test_equal_tables_are_at_no_distance_and_those_apart_at_the_farthest() -> None:
    one = table(NORMAL)
    assert shift(one, one) == 0.0
    assert shift(one, one + 100) == shift(one + 100, one) == FARTHEST
    many = np.array([0.0, 0.0, 0.0, 0.0, 0.0])
    assert shift(many, many) == 0.0
    assert shift(many, many + 1) == FARTHEST


def test_another_width_moves_ranks_by_less_than_a_standard_deviation() -> None:
    for factor in (0.001, 0.1, 0.5, 2.0, 10.0, 1000.0):
        assert 0.2 < shift(table(NORMAL), table(factor * NORMAL)) < 1.0


def test_a_feature_that_was_constant_may_begin_to_differ_in_some() -> None:
    before, now = table(np.zeros(1_000)), table(np.concatenate([np.zeros(900), np.arange(1.0, 101.0)]))
    assert shift(before, now) < 0.2

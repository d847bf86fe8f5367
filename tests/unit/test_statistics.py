"""Statistics and snapshots: what is counted, who gets a row, and which bytes are refused."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import DynamicVocabulary, FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.errors import SnapshotError
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.features.vocabulary import Vocabulary
from pipeline.records import State

CITY = {"lookup": "graph", "dim": 2, "vocabulary": {"kind": "dynamic", "capacity": 6, "min_count": 2}}
CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "name": "feed",
    "kv_prefix": "fd",
    "embeddings": {"city": CITY},
    "features": [
        {"name": "x", "kind": "dense", "source": "user.x", "zscore": {"min_count": 2}, "missing": {"fill": "mean"}},
        {"name": "raw", "kind": "dense", "source": "user.raw", "missing": {"fill": 0}},
        {"name": "home", "kind": "id", "source": "user.home", "embedding": "city", "missing": {}},
        {"name": "here", "kind": "id", "source": "context.here", "embedding": "city", "missing": {}},
    ],
    "fusion": {"kind": "pay_plus_a_phi", "phi": 0.1},
    "action": [{"name": "a", "baseline": 1.0, "range": [0.5, 1.5]}],
    "reward": {"weights": {"click": 1.0}},
    "algorithm": {"kind": "ddpg", "gamma": 0.9},
    "policies": [{"name": "base", "kind": "baseline"}],
    "buckets": {"salt": "s", "assign": [{"name": "all", "policy": "base", "slots": [0, 99]}]},
}


@pytest.fixture
def config() -> FeatureConfig:
    return msgspec.convert(CONFIG, FeatureConfig)


@pytest.fixture
def other() -> FeatureConfig:
    return msgspec.convert(CONFIG | {"features": [*CONFIG["features"][1:]]}, FeatureConfig)


def rows(config: FeatureConfig, *states: tuple[float | None, str | None, str | None]) -> np.ndarray:
    encoder = Encoder(config)
    return encoder.stack(
        [encoder.prepare(State(user={"x": x, "home": home}, context={"here": here})) for x, home, here in states]
    )


def row_of(config: FeatureConfig, snapshot: Snapshot, city: str) -> int:
    encoder = Encoder(config)
    return int(encoder.finish(rows(config, (None, city, None)), snapshot)["home"][0])


def test_missing_values_are_not_counted(config: FeatureConfig) -> None:
    statistics = Statistics(config)
    statistics.update(rows(config, (1.0, None, None), (None, None, None), (3.0, None, None)))
    assert statistics.moments == {"x": Moments(2, 2.0, 2.0)}


def test_features_without_zscore_have_no_moments(config: FeatureConfig) -> None:
    assert Statistics(config).moments == {"x": Moments()}
    assert Statistics(config).freeze() == Snapshot.initial(config)


def test_the_standard_deviation_is_biased() -> None:
    assert Moments().add([1.0, 3.0]).std == 1.0
    assert Moments().std == 0.0


def test_features_of_one_table_share_its_vocabulary_row_by_row(config: FeatureConfig) -> None:
    statistics = Statistics(config)
    statistics.update(rows(config, (None, "a", "b"), (None, "b", "a"), (None, "c", "c")))
    snapshot = statistics.freeze()
    assert [row_of(config, snapshot, city) for city in "bac"] == [3, 4, 5]
    assert row_of(config, snapshot, "d") == 2


def test_a_full_vocabulary_admits_no_one_and_reassigns_nothing(config: FeatureConfig) -> None:
    statistics = Statistics(config)
    statistics.update(rows(config, *[(None, city, city) for city in "abcde"], *[(None, "z", "z")] * 9))
    snapshot = statistics.freeze()
    assert [row_of(config, snapshot, city) for city in "abcdez"] == [3, 4, 5, 2, 2, 2]


def test_a_snapshot_does_not_change_with_its_statistics(config: FeatureConfig) -> None:
    statistics = Statistics(config)
    before = statistics.freeze()
    sha = before.sha256
    statistics.update(rows(config, (1.0, "a", "a")))
    assert Snapshot.from_bytes(before.to_bytes()).sha256 == sha
    assert statistics.freeze() != before
    with pytest.raises(ValueError, match="read-only"):
        statistics.freeze().vocabularies["city"][0] = 1


def test_candidates_take_bounded_memory_and_frequent_ones_stay() -> None:
    vocabulary = Vocabulary(DynamicVocabulary(capacity=10, min_count=50, oov_buckets=1))
    for start in range(1000, 21000, 1000):
        vocabulary.count([7, *range(start, start + 1000), 7])
        assert len(vocabulary.dump()[1]) <= 8 * 1024
    vocabulary.count([7] * 10)
    assert vocabulary.hashes().tolist() == [7]


def test_forgetting_is_the_same_after_a_restart() -> None:
    config = DynamicVocabulary(capacity=10, min_count=3, oov_buckets=1)
    whole, restarted = Vocabulary(config), Vocabulary(config)
    ids = [(i * i) % 3001 for i in range(6000)]
    whole.count(ids)
    for start in range(0, 6000, 500):
        fresh = Vocabulary(config)
        fresh.load(*(np.frombuffer(part, "<u8").tolist() for part in restarted.dump()))
        fresh.count(ids[start : start + 500])
        restarted = fresh
    assert restarted.dump() == whole.dump()


# Bytes -----------------------------------------------------------------------------------------------------------


def unpacked(payload: bytes) -> dict[str, Any]:
    return msgspec.msgpack.decode(payload)


def packed(content: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(content, order="sorted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected a parameter snapshot of format 1"),
        ({"format_version": 2}, "expected a parameter snapshot of format 1"),
        ({"surprise": 1}, "expected a parameter snapshot of format 1"),
        ({"config_sha": "0" * 64}, "expected parameters of config"),
        ({"moments": {}}, r"expected moments of \['x'\], found \[\]"),
        ({"moments": {"x": {"count": 2, "mean": math.nan, "m2": 0.0}}}, "expected finite moments"),
        ({"moments": {"x": {"count": 2, "mean": 0.0, "m2": -1.0}}}, "expected finite moments"),
        ({"moments": {"x": {"count": -2, "mean": 0.0, "m2": 0.0}}}, "expected finite moments"),
        ({"vocabularies": {"city": b"1234"}}, "expected whole 64-bit hashes in vocabulary city, found 4 bytes"),
        ({"vocabularies": {"city": bytes(8)}}, "expected distinct hashes other than 0"),
        ({"vocabularies": {"city": b"12345678" * 2}}, "expected distinct hashes other than 0"),
        ({"vocabularies": {"city": np.arange(1, 5, dtype="<u8").tobytes()}}, "expected at most 3 ids in .* found 4"),
        ({"vocabularies": {}}, r"expected vocabularies of \['city'\], found \[\]"),
        ({"epochs": {"shop": "e1"}}, r"expected epochs of \[\], found \['shop'\]"),
    ],
)
def test_bytes_that_are_no_snapshot_of_the_config(config: FeatureConfig, change: dict[str, Any], message: str) -> None:
    content = unpacked(Snapshot.initial(config).to_bytes())
    with pytest.raises(SnapshotError, match=message):
        Snapshot.from_bytes(packed(content | change), config)


def test_truncated_and_foreign_bytes_are_refused(config: FeatureConfig) -> None:
    payload = Snapshot.initial(config).to_bytes()
    for broken in (b"", payload[:-1], payload + b"\0", b"{}", Statistics(config).to_bytes()):
        with pytest.raises(SnapshotError):
            Snapshot.from_bytes(broken)


def test_bytes_in_another_order_are_refused_for_their_hash_would_differ(config: FeatureConfig) -> None:
    content = unpacked(Snapshot.initial(config).to_bytes())
    with pytest.raises(SnapshotError, match="canonical"):
        Snapshot.from_bytes(msgspec.msgpack.encode(dict(reversed(content.items()))), config)


def test_snapshot_bytes_of_this_format_stay_as_they_are(config: FeatureConfig) -> None:
    """A change here is a change of the format: raise its version. The hash is xxh3_64 of "a", little-endian."""
    statistics = Statistics(config)
    statistics.update(rows(config, (1.0, "a", "a"), (2.5, "b", None)))
    content = unpacked(statistics.freeze().to_bytes())
    assert content.pop("config_sha") == Snapshot.initial(config).config_sha
    assert content == {
        "epochs": {},
        "format": "pageturn-parameters",
        "format_version": 1,
        "moments": {"x": {"count": 2, "m2": 1.125, "mean": 1.75}},
        "vocabularies": {"city": bytes.fromhex("1f4e961eb632c6e6")},
    }


def test_statistics_of_another_config_are_refused(config: FeatureConfig, other: FeatureConfig) -> None:
    with pytest.raises(SnapshotError, match="expected statistics of config"):
        Statistics.from_bytes(Statistics(config).to_bytes(), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected feature statistics of format 1"),
        ({"moments": {}}, "expected statistics of"),
        ({"vocabularies": {"city": [b"", b"12345678", b""]}}, "expected a count per candidate of vocabulary city"),
        ({"vocabularies": {"city": [b"1", b"", b""]}}, "expected whole 64-bit hashes"),
    ],
)
def test_broken_statistics_are_refused(config: FeatureConfig, change: dict[str, Any], message: str) -> None:
    content = unpacked(Statistics(config).to_bytes())
    with pytest.raises(SnapshotError, match=message):
        Statistics.from_bytes(packed(content | change), config)

"""Vocabularies whose counts fade: who has a row, who takes it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import pytest

from pipeline.config.reading import ConfigError, parse_config
from pipeline.config.schema import DynamicVocabulary, FeatureConfig
from pipeline.features.decaying import Counted, DecayingVocabulary
from pipeline.features.drift import out_of_vocabulary
from pipeline.features.encoder import Encoder, Prepared
from pipeline.features.errors import SnapshotError
from pipeline.features.inputs import config_sha
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.records import State
from tests.unit.test_config import VALID

FADING = VALID.replace("oov_buckets: 4", "oov_buckets: 4, half_life: 50")


def vocabulary(room: int, half_life: int, min_count: int = 1) -> DecayingVocabulary:
    return DecayingVocabulary(DynamicVocabulary(room + 3, min_count, oov_buckets=1, half_life=half_life))


def counted(vocabulary: DecayingVocabulary, ids: Iterable[int]) -> list[int]:
    """The ids by row, after a transition for each of these."""
    for each in ids:
        vocabulary.count([each])
    return vocabulary.hashes().tolist()


def test_an_id_takes_the_row_of_the_least_frequent_one_once_it_is_twice_as_frequent() -> None:
    mine = vocabulary(room=2, half_life=1_000_000)
    assert counted(mine, [1, 1, 1, 2, 2]) == [1, 2]
    assert counted(mine, [3] * 3) == [1, 2]
    assert counted(mine, [3]) == [1, 3]  # 4 against 2, and of the 2 a little has faded
    assert counted(mine, [2] * 3) == [1, 3]
    assert counted(mine, [2]) == [2, 3]  # the first 2 are not forgotten: 6 against 3


def test_who_comes_no_more_loses_the_row_to_rarer_ones() -> None:
    """A hundred sights are worth one and a half after six half-lives."""
    mine = vocabulary(room=1, half_life=50)
    assert counted(mine, [1] * 100) == [1]
    assert counted(mine, [0] * 100 + [2]) == [1]
    assert counted(mine, [0] * 250 + [2, 2, 2]) == [2]


def test_a_count_is_rounded_before_it_is_compared_with_min_count() -> None:
    half_life = 100
    assert counted(vocabulary(5, half_life, 2), [1, *[0] * 98, 1]) == [1]
    assert counted(vocabulary(5, half_life, 2), [1, *[0] * 100, 1]) == []


def test_a_row_stays_where_it_is() -> None:
    mine = vocabulary(room=3, half_life=30)
    counted(mine, [1, 2, 3] * 10)
    assert counted(mine, [1, 3, 4] * 40) == [1, 4, 3]


def test_missing_ids_are_not_counted() -> None:
    assert counted(vocabulary(2, 10), [0, 0, 0]) == []


def test_ids_without_a_row_take_bounded_memory_and_frequent_ones_stay() -> None:
    mine = vocabulary(room=7, half_life=10**6, min_count=50)
    for start in range(1000, 21000, 1000):
        counted(mine, [7, *range(start, start + 1000), 7])
        assert len(mine.dump().candidates) <= 8 * 1024
    assert counted(mine, [7] * 12) == [7]


def test_of_what_was_dumped_ids_and_counts_belong_together() -> None:
    rule = DynamicVocabulary(10, half_life=5)
    with pytest.raises(SnapshotError, match="expected a count per id of a vocabulary, found 8 bytes for 16"):
        DecayingVocabulary(rule, Counted(1, bytes(16), bytes(8), b"", b""))
    with pytest.raises(SnapshotError, match="found 7 bytes for 7"):
        DecayingVocabulary(rule, Counted(1, b"", b"", bytes(7), bytes(7)))


def test_only_a_config_that_asks_for_it_has_another_hash_and_other_statistics() -> None:
    before, now = parse_config(VALID), parse_config(FADING)
    assert config_sha(before) == "7cd84f5269d39d7eda4e18757cbd47b4e39aae2f0a904fad10d8333cfa3232a0"
    assert config_sha(now) != config_sha(before)
    of_each = [msgspec.msgpack.decode(Statistics(config).to_bytes()) for config in (before, now)]
    assert [sorted(each.get("decaying", ())) for each in of_each] == [[], ["city"]]
    assert [sorted(each["vocabularies"]) for each in of_each] == [["city"], []]


def test_an_id_that_lost_its_row_is_out_of_vocabulary() -> None:
    config = part_of_cities(parse_config(FADING.replace("capacity: 100", "capacity: 7")))  # room for one
    encoder, statistics = Encoder(config), Statistics(config)
    rows = {city: encoder.prepare(State(context={"city": city})).row for city in ("rome", "oslo")}

    def unknown(*cities: str) -> float:
        of_each = encoder.stack([Prepared(rows[city], {}) for city in cities])
        return out_of_vocabulary(of_each, config, statistics.freeze())["city_id"]

    for city, shares in (("rome", (0.0, 1.0)), ("oslo", (1.0, 0.0))):
        for _ in range(60):
            statistics.update(rows[city])
        assert (unknown("rome"), unknown("oslo")) == shares
    assert unknown("rome", "oslo", "oslo", "oslo") == 0.25


def part_of_cities(config: FeatureConfig) -> FeatureConfig:
    features = tuple(feature for feature in config.features if feature.name == "city_id")
    return msgspec.structs.replace(config, features=features, embeddings={"city": config.embeddings["city"]})


def test_statistics_of_the_other_kind_are_refused() -> None:
    now = parse_config(FADING)
    content = msgspec.msgpack.decode(Statistics(now).to_bytes())
    del content["decaying"]
    with pytest.raises(SnapshotError, match="expected statistics of"):
        Statistics.from_bytes(msgspec.msgpack.encode(content, order="sorted"), now)


def test_the_snapshot_has_the_form_that_it_always_had() -> None:
    now = parse_config(FADING)
    assert Snapshot.initial(now) == Statistics(now).freeze()
    assert Statistics(now).freeze().vocabularies["city"].dtype == np.uint64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{kind: ddpg, gamma: 0.9}", "{kind: q_learning, gamma: 0.9, cells: [{feature: city_id}]}"), "not for drn"),
        (("name: device", "name: city"), 'needs a name of its own: the hashed_id feature "city"'),
    ],
    ids=["q_learning", "name"],
)
def test_where_rows_cannot_be_handed_on_the_config_says_so(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"embeddings.city.vocabulary.half_life: .*{message}"):
        parse_config(FADING.replace(*change))

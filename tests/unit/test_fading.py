"""Moments that fade: numbers worked out by hand, what follows, what must not blow up, and that nothing else changed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import FeatureConfig
from pipeline.features.changing import change
from pipeline.features.encoder import Encoder
from pipeline.features.errors import SnapshotError
from pipeline.features.fading import Fading
from pipeline.features.inputs import config_sha
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.records import State

MISSING = math.nan


def config_of(**zscore: Any) -> FeatureConfig:
    return msgspec.convert(
        {
            "schema_version": 1,
            "name": "feed",
            "kv_prefix": "fd",
            "features": [
                {"name": "x", "kind": "dense", "source": "user.x", "zscore": {"min_count": 2, "clip": 1e6, **zscore}},
                {"name": "y", "kind": "dense", "source": "user.y", "zscore": {"min_count": 2}},
            ],
            "fusion": {"kind": "pay_plus_a_phi", "phi": 0.1},
            "action": [{"name": "a", "baseline": 1.0, "range": [0.5, 1.5]}],
            "reward": {"weights": {"click": 1.0}},
            "algorithm": {"kind": "ddpg", "gamma": 0.9},
            "policies": [{"name": "base", "kind": "baseline"}],
            "buckets": {"salt": "s", "assign": [{"name": "all", "policy": "base", "slots": [0, 99]}]},
        },
        FeatureConfig,
    )


def rows(config: FeatureConfig, values: list[float]) -> np.ndarray:
    encoder = Encoder(config)
    return encoder.stack([encoder.prepare(State(user={"x": x, "y": 1.0})) for x in values])


def z(config: FeatureConfig, seen: list[float], value: float) -> float:
    """What the model is given for a value, after others were seen."""
    statistics = Statistics(config)
    statistics.update(rows(config, seen))
    return float(Encoder(config).finish(rows(config, [value]), statistics.freeze())["dense"][0, 0])


def test_a_value_counts_half_after_the_half_life() -> None:
    fading = Fading(1).add([0.0, 3.0])
    assert (fading.weight, fading.mean, fading.m2) == (1.5, 2.0, 3.0)  # 3/2: 0 at a half, 3 at one
    fading = Fading(2).add([0.0, MISSING, 3.0])
    assert (fading.weight, fading.mean, fading.m2) == pytest.approx((1.5, 2.0, 3.0), abs=1e-12)


def test_what_is_served_are_as_many_values_as_there_were_with_the_spread_of_now() -> None:
    served = Fading(1).add([0.0, 3.0]).served()
    assert (served.count, served.mean) == (2, 2.0)
    assert served.std == pytest.approx(3.0)  # the move from 0 to 3; the weighted one is the root of 2
    assert Fading(1).served() == Moments()
    assert Fading(1).add([MISSING, MISSING]).served() == Moments()


def test_the_mean_follows_and_plain_moments_do_not() -> None:
    before, after = [0.0, 1.0] * 1_000, [100.0, 101.0] * 500
    assert Fading(50).add([*before, *after]).served().mean == pytest.approx(100.5, abs=0.1)
    assert Moments().add([*before, *after]).mean == pytest.approx(33.8, abs=0.1)


def test_a_trend_has_one_scale_however_long_it_goes_on() -> None:
    """Its variance over all time would grow without end; that of an exponential window of slope 1 is (H / ln 2)^2."""
    for length in (2_000, 20_000):
        served = Fading(20).add([float(i) for i in range(length)]).served()
        assert served.std == pytest.approx(20 / math.log(2), rel=0.03)
        assert (length - 1 - served.mean) / served.std == pytest.approx(1.0, rel=0.05)


def test_a_feature_that_stays_for_long_does_not_blow_up_at_its_next_change() -> None:
    """A step a hundred half-lives after the last: its weighted variance is 2^-100 of what it was."""
    stairs = [float(step) for step in range(5) for _ in range(2_000)]
    config = config_of(half_life=20, min_std=1e-9)
    faded = Fading(20).add(stairs)
    assert math.sqrt(faded.m2 / faded.weight) < 1e-12
    assert abs(z(config, stairs, 5.0)) < 100
    shorter = [float(step) for step in range(20) for _ in range(200)]  # ten half-lives
    assert abs(z(config, shorter, 20.0)) < 5
    assert z(config, shorter, 19.0) == pytest.approx(0.0, abs=0.01)


def test_a_feature_that_never_changed_has_its_least_divisor() -> None:
    assert z(config_of(half_life=20, min_std=0.5), [3.0] * 500, 4.0) == 2.0


def test_after_a_long_absence_the_first_value_is_no_distribution() -> None:
    """The others are forgotten: what remains is how far it lies from them."""
    fading = Fading(1).add([0.0, 1.0, *[MISSING] * 5_000, 9.0])
    assert (fading.count, fading.since, fading.weight, fading.mean, fading.m2) == (3, 0, 1.0, 9.0, 0.0)
    assert fading.served().std == pytest.approx(9.0 - 2 / 3)
    absent = Fading(1).add([0.0, 1.0, *[MISSING] * 5_000])
    assert absent.served() == Fading(1).add([0.0, 1.0]).served()


def test_an_outlier_is_forgotten() -> None:
    values = np.random.default_rng(1).normal(size=20_000).tolist()
    assert Fading(10).add([*values[:100], 1e9, *values]).served().std == pytest.approx(1.0, abs=0.4)


def test_without_a_half_life_bits_and_hash_are_as_before() -> None:
    config = config_of()
    statistics = Statistics(config)
    statistics.update(rows(config, [1.0, 2.5, 4.0]))
    assert statistics.moments == {"x": Moments().add([1.0, 2.5, 4.0]), "y": Moments(3, 1.0, 0.0)}
    assert "fading" not in msgspec.msgpack.decode(statistics.to_bytes())
    assert config_sha(config) != config_sha(config_of(half_life=50))


def test_only_the_feature_that_says_so_fades() -> None:
    config = config_of(half_life=2)
    statistics = Statistics(config)
    statistics.update(rows(config, [1.0, 2.5, 4.0]))
    assert statistics.moments == {"x": Fading(2).add([1.0, 2.5, 4.0]).served(), "y": Moments(3, 1.0, 0.0)}
    snapshot = statistics.freeze()
    assert Snapshot.from_bytes(snapshot.to_bytes(), config) == snapshot


def test_a_restart_goes_on_bit_for_bit() -> None:
    config = config_of(half_life=7)
    values = np.random.default_rng(2).normal(size=60).tolist()
    whole, restarted = Statistics(config), Statistics(config)
    whole.update(rows(config, values))
    for start in range(0, 60, 13):
        restarted = Statistics.from_bytes(restarted.to_bytes(), config)
        restarted.update(rows(config, values[start : start + 13]))
    assert restarted.to_bytes() == whole.to_bytes()
    assert restarted.freeze().sha256 == whole.freeze().sha256


def test_statistics_without_what_fades_are_refused() -> None:
    config = config_of(half_life=7)
    content = msgspec.msgpack.decode(Statistics(config).to_bytes())
    with pytest.raises(SnapshotError, match="expected statistics of"):
        Statistics.from_bytes(msgspec.msgpack.encode(content | {"fading": {}}, order="sorted"), config)


def test_what_fades_is_carried_to_a_config_that_grows_and_begins_anew_with_another_half_life() -> None:
    config = config_of(half_life=7)
    statistics = Statistics(config)
    statistics.update(rows(config, [1.0, 2.5, 4.0]))
    fewer = msgspec.structs.replace(config, features=config.features[:1])
    assert statistics.carried(fewer, change(config, fewer)).moments == {"x": statistics.moments["x"]}
    other = config_of(half_life=8)
    assert statistics.carried(other, change(config, other)).moments["x"] == Moments()

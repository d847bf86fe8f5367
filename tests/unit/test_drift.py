"""Drift of features: what PSI is, what it is of, and what it says of rows that have or have not moved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.reading import parse_config
from pipeline.features.drift import Column, Profile, columns, out_of_vocabulary, profile, psi
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import first_id_row, vocabularies
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.learning.watching import FILE, FeatureWatch
from pipeline.monitoring.catalogue import TRAINER
from pipeline.monitoring.metrics import Metrics
from pipeline.records import State

CONFIG = parse_config(
    """
schema_version: 1
name: f
kv_prefix: f
embeddings:
  city: {lookup: graph, dim: 2, vocabulary: {kind: dynamic, capacity: 64, min_count: 2}}
  hour: {lookup: graph, dim: 2, vocabulary: {kind: range, size: 24}}
features:
  - {name: ctr, kind: dense, source: user.ctr, zscore: {}, missing: {fill: mean}}
  - {name: city, kind: id, source: user.city, embedding: city, missing: {}}
  - {name: hour, kind: id, source: context.hour, embedding: hour}
  - {name: device, kind: hashed_id, source: context.device, buckets: 50, dim: 2, missing: {}}
  - {name: active, kind: bits, source: user.active, width: 8}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.5, 1.5]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets: {salt: s, assign: [{name: all, policy: rl, slots: [0, 49]}, {name: control, policy: base, slots: [50, 99]}]}
"""
)
ENCODER = Encoder(CONFIG)
NAMES = {"ctr", "city", "hour", "device", "active"}


def rows(n: int, seed: int, shift: float = 0.0, cities: int = 5, missing: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)

    def state() -> State:
        user: dict[str, object] = {"active": int(rng.integers(256))}
        if rng.random() >= missing:
            user |= {"ctr": float(rng.normal()) + shift, "city": f"c{rng.integers(cities)}"}
        return State(user=user, context={"hour": int(rng.integers(24)), "device": f"d{rng.integers(200)}"})

    return ENCODER.stack([ENCODER.prepare(state()) for _ in range(n)])


def test_it_is_the_sum_over_the_bins() -> None:
    """By hand: halves become quarters and three quarters; the smoothing is small against a million values."""
    reference = Profile((0.0,), (500_000, 500_000, 0))
    values = np.repeat([-1.0, 1.0], [250_000, 750_000])
    expected = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)
    assert psi(reference, values) == pytest.approx(expected, rel=1e-4)


def test_bins_are_tenths_and_values_on_an_edge_are_below_it() -> None:
    found = profile(Column(np.array([*range(10), np.nan]), None))
    assert sum(found.counts) == 11
    assert found.counts == (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    of_one_value = profile(Column(np.full(7, 3.0), None))
    assert (of_one_value.edges, of_one_value.counts) == ((3.0,), (7, 0, 0))
    assert profile(Column(np.full(7, np.nan), None)) == Profile((), (0, 7))


def test_every_feature_is_looked_at() -> None:
    assert {name for name, _ in columns(rows(3, 1), CONFIG)} == NAMES


def drifts(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    references = {name: profile(column) for name, column in columns(before, CONFIG)}
    return {name: psi(references[name], column.values) for name, column in columns(after, CONFIG)}


def test_rows_of_the_same_kind_have_not_moved() -> None:
    assert all(value < 0.05 for value in drifts(rows(2_000, 1), rows(2_000, 2)).values())


@pytest.mark.parametrize(
    ("change", "moved"),
    [({"shift": 1.0}, {"ctr"}), ({"cities": 1}, {"city"}), ({"missing": 0.6}, {"ctr", "city"})],
    ids=["shift", "cities", "missing"],
)
def test_what_has_moved_is_seen_and_nothing_beside(change: dict[str, float], moved: set[str]) -> None:
    found = drifts(rows(2_000, 1), rows(2_000, 2, **change))  # type: ignore[arg-type]
    assert {name for name, value in found.items() if value > 0.25} == moved


def test_ids_without_a_row_are_out_of_vocabulary() -> None:
    statistics = Statistics(CONFIG)
    known = rows(200, 1, missing=0.0)
    assert out_of_vocabulary(known, CONFIG, Snapshot.initial(CONFIG)) == {"city": 1.0}
    statistics.update(known)
    assert len(statistics.freeze().vocabularies["city"]) == 5 < 64 - first_id_row(vocabularies(CONFIG)["city"])
    assert out_of_vocabulary(known, CONFIG, statistics.freeze()) == {"city": 0.0}
    more = rows(4_000, 2, cities=10, missing=0.3)
    assert out_of_vocabulary(more, CONFIG, statistics.freeze())["city"] == pytest.approx(0.5, abs=0.05)


class Watched:
    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics(TRAINER)
        self._watch = FeatureWatch(CONFIG, folder, self.metrics, window=500)

    def see(self, many: np.ndarray) -> None:
        for i in range(len(many)):
            self._watch.add(many[i : i + 1], Snapshot.initial(CONFIG))

    def psi(self, feature: str) -> float:
        return self.metrics.total("feature_drift_psi", feature=feature)


def test_the_first_window_is_the_reference_also_after_a_restart(tmp_path: Path) -> None:
    first = Watched(tmp_path)
    first.see(rows(499, 1))
    assert not (tmp_path / FILE).exists()
    first.see(rows(1, 3))
    assert first.psi("ctr") == 0.0
    again = Watched(tmp_path)
    again.see(rows(500, 2, shift=1.0, missing=0.5))
    assert again.psi("ctr") > 0.25 > again.psi("hour")
    assert again.metrics.total("feature_missing_share", feature="ctr") == pytest.approx(0.5, abs=0.1)
    assert again.metrics.total("out_of_vocabulary_share", feature="city") == 1.0
    (tmp_path / FILE).unlink()
    anew = Watched(tmp_path)
    anew.see(rows(500, 2, shift=1.0))
    assert anew.psi("ctr") == 0.0


@pytest.mark.parametrize("content", [b"{", b'{"config_sha":"another","features":{}}'])
def test_a_reference_of_something_else_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    watched = Watched(tmp_path)
    watched.see(rows(500, 1))
    assert watched.psi("ctr") == 0.0
    assert b"another" not in (tmp_path / FILE).read_bytes()

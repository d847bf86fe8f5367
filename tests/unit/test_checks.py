"""The checks every version has to pass: numbers worked out by hand, and what happens exactly at the bound."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from model_export import checks
from model_export.candidate import Candidate, Probe
from model_export.checks import Reference, Verdict, every_version, evidence, explain, first_failure
from pipeline.config.reading import load_config, parse_config
from pipeline.config.schema import ActionDimension, Dense, FeatureConfig, Quantile, ZScore
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.records import State

CONFIG: FeatureConfig = parse_config(
    """
schema_version: 1
name: feed
kv_prefix: fd
features:
  - {kind: dense, name: age, source: user.age, zscore: {min_count: 10}}
fusion: {kind: pay_plus_a_phi, phi: 0.1}
action: [{name: a, baseline: 1.0, range: [0.0, 4.0]}]
reward: {weights: {click: 1.0}, clip: [-2.0, 5.0]}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: baseline, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  assign: [{name: b, policy: baseline, slots: [0, 49]}, {name: r, policy: rl, slots: [50, 99]}]
publish: {max_step_change: 0.2, max_total_change: 0.5, min_transitions: 100, max_at_bounds: 0.5, max_loss: 100.0}
"""
)
AGE = Snapshot("sha", {"age": Moments(100, 40.0, 100 * 25.0)}, {}, {})  # std 5
DIMENSIONS = CONFIG.action


def candidate(actions: tuple[float | None, ...] = (1.0, 1.0), **fields: Any) -> Candidate:
    record = Candidate(
        id="000000000500",
        policy="rl",
        model_name="feed_rl",
        config_sha="sha",
        parameters="p",
        created_ms=1,
        seed=1,
        transitions=500,
        explored=100,
        updates=100,
        first_transition="x@1",
        last_transition="y@1",
        losses={"value": 1.0, "advantage": 2.0},
        value_mean=3.0,
        advantage_mean=0.1,
        pages={"policy": 80, "fallback": 20},
        probes=tuple(Probe(State(), (action,)) for action in actions),
    )
    return replace(record, **fields)


def reference(actions: tuple[float, ...] = (1.0, 1.0), transitions: int = 400, version: int = 7) -> Reference:
    return Reference(version, transitions, [[action] for action in actions], AGE)


def judged(record: Candidate, accepted: Reference | None, certified: Reference | None) -> dict[str, checks.Check]:
    return {check.name: check for check in every_version(CONFIG, record, AGE, accepted, certified)}


def test_a_sound_candidate_passes_all() -> None:
    verdict = every_version(CONFIG, candidate(), AGE, reference(), reference())
    assert first_failure(verdict) is None
    assert [check.name for check in verdict] == [
        "probes",
        "finite",
        "loss",
        "divergence",
        "new_transitions",
        "inside_range",
        "at_bounds",
        "step_change",
        "step_change_max",
        "total_change",
        "drift",
        "fallback_share",
    ]


@pytest.mark.parametrize(
    ("record", "fails"),
    [
        (candidate(probes=()), "probes"),
        (candidate(probes=(Probe(State(), (1.0, 1.0)),)), "probes"),
        (candidate((1.0, None)), "finite"),
        (candidate((1.0, math.inf)), "finite"),
        (candidate(losses={"value": None}), "finite"),
        (candidate(losses={"value": math.nan}), "finite"),
        (candidate(losses={"actor": -100.1}), "loss"),
        (candidate(losses={"value": 1.0, "diverged": 1.0}), "divergence"),
        (candidate(transitions=499), "new_transitions"),
        (candidate((4.1, 1.0)), "inside_range"),
        (candidate((4.0, 0.0)), "at_bounds"),
        (candidate((1.9, 1.9)), "step_change"),
        (candidate(pages={"policy": 79, "fallback": 21}), "fallback_share"),
    ],
)
def test_each_fault_is_found_and_named(record: Candidate, fails: str) -> None:
    failed = first_failure(every_version(CONFIG, record, AGE, reference(), reference()))
    assert failed is not None
    assert failed.name == fails
    assert failed.name in explain(failed)


@pytest.mark.parametrize(
    "record",
    [
        candidate(losses={"actor": -100.0}),
        candidate(losses={"value": 1.0, "diverged": 0.0}),
        candidate(transitions=500),
        candidate((0.0, 1.6)),  # half of the probes on a bound; a mean step of (1 + .6) / 2 / 4 = .2
        candidate(pages={"policy": 80, "fallback": 20}),
        candidate(pages={}),
    ],
)
def test_exactly_at_the_bound_passes(record: Candidate) -> None:
    assert first_failure(every_version(CONFIG, record, AGE, reference(), reference())) is None


def test_changes_are_means_over_probes_in_ranges() -> None:
    found = judged(candidate((1.4, 2.2)), reference((1.0, 1.0)), reference((0.2, 0.2), version=3))
    assert found["step_change"].value == pytest.approx((0.1 + 0.3) / 2)
    assert found["step_change_max"].value == pytest.approx(0.3)
    assert found["total_change"].value == pytest.approx((0.3 + 0.5) / 2)
    assert found["total_change"].n == 2
    assert "version 3" in found["total_change"].note


def test_many_small_steps_are_no_way_around_the_sum() -> None:
    found = judged(candidate((3.2, 3.2)), reference((3.0, 3.0)), reference((1.0, 1.0)))
    assert found["step_change"].passed
    assert not found["total_change"].passed


def test_after_a_change_of_config_the_sum_is_measured_against_the_baseline() -> None:
    found = judged(candidate((3.2, 3.2)), None, None)
    assert (found["step_change"].value, found["step_change"].passed, found["step_change"].n) == (None, True, 0)
    assert "another feature config" in found["step_change"].note
    assert found["total_change"].value == pytest.approx(0.55)
    assert not found["total_change"].passed
    assert found["drift"].passed


def test_after_a_change_of_config_pages_that_fell_back_are_no_reason_to_refuse_for_ever() -> None:
    """No agent can use the old version, so all pages fall back until the first version of the new config is out."""
    found = every_version(CONFIG, candidate(pages={"fallback": 1_000}), AGE, None, None)
    assert first_failure(found) is None


def test_a_trainer_that_began_anew_need_not_catch_up_with_the_one_before() -> None:
    found = judged(candidate(transitions=100), reference(transitions=10_000_000), reference())["new_transitions"]
    assert (found.value, found.passed) == (100, True)
    assert "version 7 had 10000000" in found.note
    assert not judged(candidate(transitions=99), reference(), reference())["new_transitions"].passed


def test_a_bound_that_is_the_baseline_is_no_fault() -> None:
    dimension = ActionDimension(name="a", baseline=0.0, range=(0.0, 1.0))
    assert checks.at_bounds((dimension,), [[0.0], [0.0]], 0.5).value == 0.0
    assert checks.at_bounds((dimension,), [[1.0], [0.0]], 0.5).value == 0.5


def test_no_number_is_inside_a_range() -> None:
    assert not checks.inside_range(DIMENSIONS, [[math.nan]]).passed
    assert not checks.inside_range(DIMENSIONS, []).passed


def test_a_float32_at_the_bound_is_inside() -> None:
    assert checks.inside_range(DIMENSIONS, [[4.00001]]).passed
    assert not checks.inside_range(DIMENSIONS, [[4.0001]]).passed


# Drift -----------------------------------------------------------------------------------------------------------


def drift(before: Moments, now: Moments, **rule: Any) -> checks.Check:
    feature = Dense(name="age", source="user.age", zscore=ZScore(min_count=10, **rule))
    other = Dense(name="raw", source="user.raw")  # without statistics
    then, snapshot = (Snapshot("sha", {"age": moments}, {}, {}) for moments in (before, now))
    return checks.drift((feature, other), snapshot, Reference(7, 0, [], then), 1.0)


def test_drift_is_the_move_of_the_mean_in_old_standard_deviations() -> None:
    check = drift(Moments(100, 40.0, 100 * 25.0), Moments(200, 45.0, 200 * 900.0))
    assert check.value == pytest.approx(1.0)
    assert check.passed
    assert "age" in check.note
    assert not drift(Moments(100, 40.0, 100 * 25.0), Moments(200, 34.9, 0.0)).passed


def test_statistics_that_the_encoder_does_not_use_yet_do_not_drift() -> None:
    check = drift(Moments(9, 0.0, 1.0), Moments(500, 50.0, 1.0))
    assert (check.value, check.passed, check.n) == (None, True, 0)
    assert drift(Moments(), Moments()).passed


def test_a_feature_that_was_constant_is_measured_by_its_new_spread() -> None:
    assert drift(Moments(100, 0.0, 0.0), Moments(200, 0.5, 200 * 0.25)).value == pytest.approx(1.0)
    assert drift(Moments(100, 3.0, 0.0), Moments(200, 3.0, 0.0)).value == 0.0
    assert not drift(Moments(100, 3.0, 0.0), Moments(200, 4.0, 0.0)).passed


def drift_of_ranks(before: list[float], now: list[float], bound: float = 1.0) -> checks.Check:
    """Of a feature with quantiles, by its knots; beside it one that did not move."""
    features = [Dense(name=name, source=f"user.{name}", quantile=Quantile(bins=4)) for name in ("price", "stays")]
    still = np.arange(5.0)
    then, snapshot = (
        Snapshot("sha", {}, {}, {}, quantiles={"price": np.array(knots), "stays": still}) for knots in (before, now)
    )
    return checks.drift(features, snapshot, Reference(7, 0, [], then), bound)


def test_drift_of_a_feature_with_quantiles_is_how_far_its_ranks_moved() -> None:
    """From 0..4 to 1..5: -1, -.5, 0, .5 and 1 become -1, -1, -.5, 0, .5; on average .4375 of the way, ends count half.
    So far moves a shift of s, where 2 Phi(s / sqrt 2) - 1 is .4375."""
    check = drift_of_ranks([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert check.value == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(0.5 + 0.4375 / 2))
    assert check.note == "feature price"
    assert (check.n, check.passed) == (2, True)
    gone = drift_of_ranks([0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 11.0, 12.0, 13.0, 14.0])
    assert not gone.passed
    assert gone.value == 7.0


def test_quantiles_that_the_encoder_does_not_use_yet_do_not_drift() -> None:
    for before, now in (([], [0.0, 1.0, 2.0, 3.0, 4.0]), ([0.0, 1.0, 2.0, 3.0, 4.0], [])):
        check = drift_of_ranks(before, now)
        assert (check.value, check.n) == (0.0, 1)


def test_a_candidate_whose_quantiles_moved_is_refused() -> None:
    quantile = replace(CONFIG, features=(Dense(name="age", source="user.age", quantile=Quantile(bins=2)),))
    knots = ({"age": np.array([0.0, 1.0, 2.0])}, {"age": np.array([9.0, 10.0, 12.0])})
    then, now = (Snapshot("sha", {}, {}, {}, quantiles=each) for each in knots)
    accepted = reference()._replace(snapshot=then)
    assert first_failure(every_version(quantile, candidate(), then, accepted, accepted)) is None
    failed = first_failure(every_version(quantile, candidate(), now, accepted, accepted))
    assert failed is not None
    assert failed.name == "drift"


# Verdicts --------------------------------------------------------------------------------------------------------


def test_the_states_of_evidence_are_told_apart() -> None:
    assert evidence(candidate(value_mean=None)) == "no_baseline_yet"
    assert evidence(candidate(value_mean=0.0)) == "not_enough_evidence"


def test_an_explanation_says_what_would_have_passed() -> None:
    failed = first_failure(every_version(CONFIG, candidate((2.6, 1.4)), AGE, reference(), reference()))
    assert failed is not None
    assert explain(failed) == "step_change: expected <= 0.2, found 0.25 (n = 2); against version 7"


def test_a_verdict_survives_json_also_with_numbers_that_json_has_not() -> None:
    found = every_version(CONFIG, candidate((1.0, None), losses={"v": math.inf}), AGE, reference(), reference())
    verdict = Verdict("c", "rl", "every_version", "refused", "finite", "", "no_baseline_yet", 5, found)
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


@pytest.mark.parametrize(
    ("actions", "distance"),
    [
        ((1.0, 1.0), 0.0),
        ((1.4, 0.6), 0.1),
        ((1.0, 3.0), 0.25),
        ((1.0, None), None),
        ((1.0, math.nan), None),
        ((), None),
    ],
)
def test_how_far_a_policy_has_moved_is_told_from_the_baseline(
    actions: tuple[float | None, ...], distance: float | None
) -> None:
    """In ranges, of which one is 4: steps to either side do not cancel."""
    assert checks.moved(DIMENSIONS, candidate(actions)) == pytest.approx(distance)


def test_probes_of_other_dimensions_tell_nothing() -> None:
    assert checks.moved(DIMENSIONS, candidate(probes=(Probe(State(), (1.0, 2.0)),))) is None


def test_the_simulated_feeds_policies_may_do_what_is_best_there() -> None:
    """Learners pass its best constant action on their way: a rule that refuses it keeps them where they began."""
    root = Path(__file__).resolve().parents[2]
    config = load_config(root / "feature_configs" / "simulated.yaml")
    rows = {row["name"]: row for row in json.loads((root / "benchmarks" / "yardstick.json").read_text())["rows"]}
    best = float(rows["best constant"]["found_by"].removeprefix("a = "))
    assert best != config.action[0].baseline
    for check in (
        checks.at_bounds(config.action, [[best]], config.publish.max_at_bounds),
        checks.total_change(config.action, [[best]], None, config.publish.max_total_change),
        checks.step_change(config.action, [[best]], reference((1.0,)), config.publish.max_step_change)[0],
    ):
        assert check.passed, check

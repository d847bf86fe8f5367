"""Activeness: the paper's numbers, and that nothing matters but the set of request times."""

from __future__ import annotations

import itertools
import math

import pytest

from pipeline.ranking.activeness import (
    AS_PRINTED,
    EXACT,
    Activeness,
    ActivenessError,
    Survival,
    after,
    before,
    merge,
    observe,
    settle,
)

HOUR = 3_600_000
RETURNS_H = (6, 12, 12.1, 12.2, 36, 60)
BEFORE = (0.385834, 0.54467, 0.860943, 0.995689, 0.357664, 0.240291)
AFTER = (0.705834, 0.86467, 1, 1, 0.677664, 0.560291)
TIMES = tuple(round(h * HOUR) for h in (0, *RETURNS_H))


def test_the_constants_follow_from_s0_and_t0() -> None:
    assert EXACT.decay_per_s == pytest.approx(1.1574e-5, rel=1e-5)
    assert EXACT.lift == pytest.approx(0.3161, abs=5e-5)
    assert (AS_PRINTED.decay_per_s, AS_PRINTED.lift) == (1.2e-5, 0.32)


def test_t0_is_the_area_under_the_survival_function() -> None:
    steps = range(0, 40 * 86_400, 60)
    assert sum(60 * EXACT.kept(1000 * s + 30_000) for s in steps) == pytest.approx(86_400, rel=1e-6)


def test_the_vector_with_the_printed_constants() -> None:
    state = observe(Activeness(), TIMES)
    assert [before(AS_PRINTED, state, t) for t in TIMES[1:]] == pytest.approx(BEFORE, abs=1e-6)
    assert [after(AS_PRINTED, state, t) for t in TIMES[1:]] == pytest.approx(AFTER, abs=1e-6)


def test_daily_returns_stay_at_s0_with_exact_constants_and_drift_with_printed_ones() -> None:
    days = observe(Activeness(), [day * 24 * HOUR for day in range(200)])
    assert after(EXACT, days, 199 * 24 * HOUR) == pytest.approx(0.5, abs=1e-12)
    assert after(AS_PRINTED, days, 24 * HOUR) == pytest.approx(0.4973, abs=5e-5)
    assert after(AS_PRINTED, days, 199 * 24 * HOUR) == pytest.approx(0.4958, abs=5e-5)


def test_the_first_request_starts_at_s0_and_is_no_return() -> None:
    state = observe(Activeness(), [5 * HOUR])
    assert after(EXACT, state, 5 * HOUR) == 0.5
    assert after(EXACT, state, 29 * HOUR) == pytest.approx(0.5 / math.e)


def test_who_was_never_seen_has_s0() -> None:
    assert after(EXACT, Activeness(), HOUR) == 0.5
    assert before(EXACT, observe(Activeness(), [HOUR]), HOUR) == 0.5


def test_any_order_any_split_and_copies_make_no_difference() -> None:
    expected = observe(Activeness(), TIMES)
    for order in itertools.permutations(TIMES):
        one_by_one = Activeness()
        for time_ms in (*order, order[0]):
            one_by_one = observe(one_by_one, [time_ms])
        assert one_by_one == expected
        assert merge(observe(Activeness(), order[:3]), observe(Activeness(), order[2:])) == expected


def test_settling_in_any_steps_changes_no_later_value() -> None:
    whole = observe(Activeness(), TIMES)
    moments = [*TIMES, 61 * HOUR, 100 * HOUR]
    for until_ms in (0, 1, 12 * HOUR, TIMES[3] - 1, TIMES[3], 50 * HOUR, 60 * HOUR, 70 * HOUR):
        settled = settle(EXACT, settle(EXACT, whole, until_ms // 2), until_ms)
        later = [m for m in moments if m >= until_ms]
        assert [after(EXACT, settled, m) for m in later] == [after(EXACT, whole, m) for m in later]
        assert all(time_ms > until_ms for time_ms in settled.recent)


def test_what_is_settled_takes_no_older_request_in() -> None:
    settled = settle(EXACT, observe(Activeness(), TIMES), 12 * HOUR)
    assert observe(settled, [3 * HOUR, 12 * HOUR]) is settled
    assert observe(settled, [12 * HOUR + 1]).recent[0] == 12 * HOUR + 1


def test_a_moment_before_the_last_settled_request_is_refused() -> None:
    settled = settle(EXACT, observe(Activeness(), TIMES), 12 * HOUR)
    assert after(EXACT, settled, 12 * HOUR) == after(EXACT, observe(Activeness(), TIMES), 12 * HOUR)
    with pytest.raises(ActivenessError, match="at or after 43200000 ms"):
        after(EXACT, settled, 12 * HOUR - 1)


def test_states_that_were_settled_differently_do_not_merge() -> None:
    state = observe(Activeness(), TIMES)
    with pytest.raises(ActivenessError, match="settled alike"):
        merge(state, settle(EXACT, state, HOUR))


def test_it_is_capped_after_the_lift_and_decays_from_the_cap() -> None:
    state = observe(Activeness(), [i * 1000 for i in range(100)])
    assert after(EXACT, state, 99_000) == 1
    assert after(EXACT, state, 99_000 + 24 * HOUR) == pytest.approx(1 / math.e)


@pytest.mark.parametrize(
    "wrong", [{"initial": 0.0}, {"initial": 1.1}, {"absence_s": 0.0}, {"hazard_per_s": -1.0}, {"gain": 1.5}]
)
def test_senseless_models_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ActivenessError, match="expected"):
        Survival(**wrong)

"""A user's requests within a session: who is new, what is folded when, and when nothing of it is needed any more."""

from __future__ import annotations

import pytest
from msgspec import structs

from pipeline.ranking.activeness import Activeness, Survival
from pipeline.transitions import alive
from pipeline.transitions.rules import Choosing
from tests.laws.test_session_laws import RULES

SURVIVAL = Survival(0.5, 100.0)
WITHOUT = structs.replace(RULES, skew_ms=10, longest_window_ms=7)
WITH = structs.replace(WITHOUT, choosing=Choosing(2, SURVIVAL, remember_ms=1_000))


def of(*times_ms: int) -> Activeness | None:
    found = None
    for time_ms in times_ms:
        found = alive.observed(WITH, found, time_ms)
    return found


def test_nothing_of_it_is_kept_where_no_policy_chooses_items() -> None:
    known = of(5)
    assert alive.observed(WITHOUT, known, 9) is None
    assert alive.settled(WITHOUT, known, 9) is None
    assert alive.after(WITHOUT, known, 9) is None
    assert alive.forget_due_ms(WITHOUT, known) is None


def test_of_a_user_who_was_never_seen_nothing_is_said() -> None:
    assert alive.settled(WITH, None, 9) is None
    assert alive.after(WITH, None, 9) is None
    assert alive.forget_due_ms(WITH, None) is None


def test_requests_are_taken_in_any_order() -> None:
    assert of(5, 9, 7) == of(5, 7, 9) == Activeness(recent=(5, 7, 9))


def test_who_stays_away_for_longer_than_is_remembered_is_new() -> None:
    assert of(5, 1_005).recent == (5, 1_005)
    assert of(5, 1_006).recent == (1_006,)
    assert alive.after(WITH, of(5, 1_006), 1_006) == SURVIVAL.initial


def test_who_is_new_is_told_from_what_was_folded_too() -> None:
    folded = alive.settled(WITH, of(5), 50)
    assert (folded.recent, folded.value_ms) == ((), 5)
    assert alive.observed(WITH, folded, 1_005).value == SURVIVAL.initial  # a return
    assert alive.observed(WITH, folded, 1_006) == Activeness(recent=(1_006,))


def test_a_request_that_may_still_be_asked_about_is_not_folded() -> None:
    """Pages are consumed in the order of their times, but for the skew."""
    known = of(5, 20)
    assert alive.settled(WITH, known, 15).recent == (5, 20)
    found = alive.settled(WITH, known, 16)
    assert (found.recent, found.value, found.value_ms, found.settled_ms) == ((20,), SURVIVAL.initial, 5, 5)
    assert alive.after(WITH, found, 6) == SURVIVAL.initial * SURVIVAL.kept(1)  # the oldest moment that is asked about


def test_activeness_is_that_of_the_survival_model_with_a_request_at_that_moment() -> None:
    lifted = SURVIVAL.initial * SURVIVAL.kept(15) + SURVIVAL.lift
    assert alive.after(WITH, of(5, 20), 19) == SURVIVAL.initial * SURVIVAL.kept(14)
    assert alive.after(WITH, of(5, 20), 20) == lifted
    assert alive.after(WITH, of(5, 20), 30) == pytest.approx(lifted * SURVIVAL.kept(10))


def test_a_user_is_forgotten_once_no_open_page_can_be_of_the_same_life() -> None:
    """A request at the last moment that still counts closes with its window, and needs it one moment later."""
    assert alive.forget_due_ms(WITH, of(5, 20)) == 20 + 1_000 + 7 + 1
    assert alive.forget_due_ms(WITH, alive.settled(WITH, of(5, 20), 50)) == 20 + 1_000 + 7 + 1

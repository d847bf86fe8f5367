"""How the weights of a policy that ranks items move: periods, what counts as evidence, what is taken, what is next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pipeline.config.ranking import Dbgd, EvolutionStrategies, Gradient, Major, NoMinor, Ranking
from pipeline.learning.drn.method import Learning, Method
from pipeline.learning.drn.standing import Standing, decode_standing, encode_standing
from pipeline.ranking.comparing import Verdict
from pipeline.ranking.perturbing import Noise, Weights, dbgd, noise
from pipeline.ranking.updates import Update
from pipeline.records import DecidedBy, Decision, Explorer, Impression, Item, Labels, Page, Ranked, State

FRESH = {"advantage_w": np.array([1.0, 0.05], np.float32), "value_w": np.array([3.0], np.float32)}
DBGD = Dbgd(every=10, alpha=0.5, floor=0.2, eta=0.25, min_decisive=2, confidence=0.5)
ES = EvolutionStrategies(every=10, alpha=0.5, eta=0.25, pairs=1, min_decisive=2)
TRIED = Major(every=25, min_decisive=2, confidence=0.5)
AT_ONCE = structs.replace(TRIED, trial=False)
SEED = 7
OF_DBGD = Noise(0.5, 0.2, layers=("advantage",))


def method(minor: Any, major: Major | None = None, begun: bool = True) -> Method:
    made = Method("rl", Ranking({"rl": minor}, major=major), SEED, Standing(0, dict(FRESH)))
    if begun:
        made.begin(100)
    return made


def page(
    user: str, explorers: tuple[Explorer, ...], clicked: tuple[int, ...] = (0,), likes: int = 1, **decision: Any
) -> Page:
    """Two of three items are shown. Ranker `likes` has put the first place's item first and the second's last, the
    others the other way round: a click on place 0 speaks for it, and one on place 1 against it."""
    mine, others = (0, 2, 1), (1, 2, 0)
    orders = tuple(mine if ranker == likes else others for ranker in range(1 + len(explorers)))
    ranked = Ranked(2, "probabilistic", 3.0, explorers, orders, (0, 1, 2), (likes, 0)) if explorers else Ranked(2)
    made = {"decided_by": DecidedBy.POLICY, "policy": "rl", "bucket": "b", "ranked": ranked, **decision}
    items = tuple(Item(f"i{n}") for n in range(3))
    impression = Impression(1, f"r{user}", user, user, 1, 0, items, State(), Decision(**made))
    return Page(impression, tuple(Labels(clicks=int(place in clicked)) for place in range(3)), (), 2)


def hear(made: Method, *users: str, at_ms: int = 105, **how: Any) -> None:
    for user in users:
        made.hear(page(user, made.explorers, **how), at_ms)


def plus(weights: Weights, by: float) -> dict[str, np.ndarray]:
    return {name: w + np.float32(by) for name, w in weights.items()}


def learning(streamed: float | None = None, replayed: float | None = None) -> Learning:
    """What is learned adds so much to every weight."""

    def by(change: float | None) -> Any:
        return lambda weights: None if change is None else plus(weights, change)

    return Learning(by(streamed), by(replayed))


NOTHING = learning()


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[name], b[name], atol=1e-6) for name in a)


def summary(updates: list[Update]) -> list[tuple[str, str, bool, int, int]]:
    return [(u.kind, u.by, u.taken, u.version, u.base) for u in updates]


# Periods ------------------------------------------------------------------------------------------------------------


def test_a_period_begins_with_the_first_record() -> None:
    waits = method(DBGD, begun=False)
    assert waits.due_ms is None
    assert waits.explorers == ()
    assert method(NoMinor(every=10)).due_ms == 110
    assert method(Gradient(every=10)).standing.version == 0


def test_with_explorers_it_is_over_after_the_first_page_that_has_seen_them_or_after_six_times_as_long() -> None:
    made = method(DBGD)
    assert (made.explorers, made.standing.version) == ((Explorer(1, SEED),), 1)
    assert made.due_ms == 100 + 6 * 10
    hear(made, "u1", at_ms=130)
    hear(made, "u2", at_ms=135)
    assert (made.due_ms, made.standing.began_ms) == (140, 130)


def test_explorers_are_noise_around_the_served_weights_and_what_is_tried() -> None:
    made = method(DBGD)
    (moved,) = made.explorer_weights()
    delta = noise(made.standing.noise[0], FRESH, OF_DBGD)
    assert same(moved, {**FRESH, "advantage_w": FRESH["advantage_w"] + delta["advantage_w"]})
    pair = method(ES)
    assert [(e.version, e.mirrored) for e in pair.explorers] == [(1, False), (1, True)]
    one, opposite = pair.explorer_weights()
    assert same(FRESH, {name: (one[name] + opposite[name]) / 2 for name in FRESH})


# Evidence -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decision",
    [
        {"policy": "other"},
        {"decided_by": DecidedBy.BASELINE},
        {"decided_by": DecidedBy.FALLBACK},
        {"ranked": None},
        {"ranked": Ranked(2)},
    ],
)
def test_pages_that_the_policy_has_not_interleaved_say_nothing(decision: dict[str, Any]) -> None:
    made = method(DBGD)
    hear(made, "u1", **decision)
    assert (made.standing.heard[0].pages, made.standing.foreign, made.standing.began_ms) == (0, 0, None)


def test_pages_of_other_explorers_are_counted_and_count_for_nothing() -> None:
    made = method(DBGD)
    for other in (Explorer(1, 8), Explorer(0, SEED), Explorer(1, SEED, True)):
        made.hear(page("u1", (other,)), 105)
    assert (made.standing.heard[0].pages, made.standing.foreign, made.standing.began_ms) == (0, 3, None)
    without = method(Gradient(every=10))
    without.hear(page("u1", (Explorer(1, 8),)), 105)
    assert without.standing.foreign == 1


def test_clicks_are_counted_per_user_and_on_shown_places_only() -> None:
    made = method(DBGD)
    hear(made, "for", "for", clicked=(0,))
    hear(made, "against", clicked=(1,))
    hear(made, "silent", clicked=())
    hear(made, "below", clicked=(2,))
    (heard,) = made.standing.heard
    # The candidate's first item is the other's third: chances 1 to 1/27. Then 1/27 to 1 of what is left, 28/27 and 9/8.
    first, second = (
        (1 - 1 / 27) / (1 + 1 / 27),
        (1 / 27 / (1 / 8 + 1 / 27) - 1 / (1 + 1 / 8)) / (1 / 27 / (1 / 8 + 1 / 27) + 1 / (1 + 1 / 8)),
    )
    expected = {"for": 2 * first, "against": second, "silent": 0.0, "below": 0.0}
    assert heard.users == pytest.approx(expected)
    assert heard.pages == 5


def test_each_explorer_has_its_own_evidence() -> None:
    made = method(ES)
    hear(made, "u1", likes=2)
    first, second = (heard.users["u1"] for heard in made.standing.heard)
    assert (first, second > 0.3) == (0.0, True)  # the first ranks as the served weights do


# Minor updates --------------------------------------------------------------------------------------------------------


def test_a_candidate_that_has_won_is_stepped_towards() -> None:
    made = method(DBGD)
    tried = made.standing.noise[0]
    hear(made, "u1", "u1", "u2")
    made.hear(page("late", (Explorer(0, SEED),)), 106)
    (update,) = made.conclude(115, NOTHING)
    assert summary([update]) == [("minor", "dbgd", True, 2, 1)]
    (said,) = update.evidence
    assert (said.verdict, said.pages, said.decisive, said.foreign) == (Verdict.CANDIDATE, 3, 2, 1)
    assert said.candidate == tried
    assert same(made.standing.weights, dbgd(tried, FRESH, OF_DBGD, 0.25))
    assert made.explorers == (Explorer(2, SEED),)
    assert (made.standing.handed_ms, made.standing.began_ms, made.standing.foreign) == (115, None, 0)
    assert [(heard.pages, heard.users) for heard in made.standing.heard] == [(0, {})]


@pytest.mark.parametrize(
    ("users", "clicked", "verdict"),
    [(("u1", "u2"), (1,), Verdict.INCUMBENT), (("u1",), (0,), Verdict.TIE), (("u1", "u2"), (), Verdict.TIE)],
)
def test_one_that_has_not_won_is_left_and_another_is_tried(users: Any, clicked: Any, verdict: Verdict) -> None:
    made = method(DBGD)
    hear(made, *users, clicked=clicked)
    (update,) = made.conclude(115, NOTHING)
    assert (update.taken, update.evidence[0].verdict) == (False, verdict)
    assert same(made.standing.weights, FRESH)
    assert made.explorers == (Explorer(2, SEED),)


def test_who_is_ahead_by_less_than_the_confidence_has_not_won() -> None:
    made = method(structs.replace(DBGD, confidence=1.5))
    hear(made, "u1", "u2")
    (update,) = made.conclude(115, NOTHING)
    assert 1 < update.evidence[0].z < 1.5
    assert not update.taken


def test_a_gradient_step_is_taken_as_it_is_and_without_one_all_stays() -> None:
    made = method(Gradient(every=10))
    assert made.conclude(110, NOTHING) == []
    assert (made.standing.version, made.standing.handed_ms, made.due_ms) == (0, 110, 120)
    assert summary(made.conclude(120, learning(streamed=0.5))) == [("minor", "gradient", True, 1, 0)]
    assert same(made.standing.weights, plus(FRESH, 0.5))
    assert (made.standing.version, made.due_ms) == (1, 130)


def test_evolution_strategies_need_enough_users_of_every_candidate() -> None:
    made = method(ES)
    first = made.standing.noise[0]
    hear(made, "u1", "u2", likes=1)
    (update,) = made.conclude(115, NOTHING)
    assert not update.taken  # of the second ranks as the served weights do: nobody tells them apart
    assert [o.decisive for o in update.evidence] == [2, 0]
    enough = method(structs.replace(ES, min_decisive=1))
    hear(enough, "u1", "u2", likes=1)
    hear(enough, "u3", likes=2, clicked=(1,))
    (update,) = enough.conclude(115, NOTHING)
    assert update.taken
    towards = noise(first, FRESH, Noise(0.5, layers=("advantage",)))["advantage_w"]
    assert same(enough.standing.weights, {**FRESH, "advantage_w": FRESH["advantage_w"] + 0.25 * towards})


def test_candidates_are_ranked_by_what_all_their_users_said() -> None:
    """One user who likes it much is less than three who like it a little less each."""
    made = method(structs.replace(ES, min_decisive=1))
    one, opposite = made.standing.heard
    one.users.update({"u1": 0.9})
    opposite.users.update({"u2": 0.5, "u3": 0.5, "u4": 0.5})
    hear(made, "silent", clicked=())
    towards = noise(made.standing.noise[1], FRESH, Noise(0.5, layers=("advantage",)))["advantage_w"]
    made.conclude(115, NOTHING)
    assert same(made.standing.weights, {**FRESH, "advantage_w": FRESH["advantage_w"] + 0.25 * towards})


# Major updates --------------------------------------------------------------------------------------------------------


def test_a_major_update_comes_at_the_first_minor_one_and_then_after_its_period() -> None:
    made = method(NoMinor(every=10), AT_ONCE)
    assert made.conclude(110, NOTHING) == []
    assert made.standing.major_ms is None  # nothing was learned: it is still due
    assert summary(made.conclude(120, learning(replayed=1.0))) == [("major", "replay", True, 1, 0)]
    assert same(made.standing.weights, plus(FRESH, 1.0))
    assert (made.standing.major_ms, made.explorers) == (120, ())
    assert made.conclude(144, learning(replayed=1.0)) == []
    assert (made.standing.major_ms, made.standing.version) == (120, 1)
    assert len(made.conclude(145, learning(replayed=1.0))) == 1
    assert same(made.standing.weights, plus(FRESH, 2.0))


def test_it_starts_from_what_the_minor_update_has_made() -> None:
    made = method(Gradient(every=10), AT_ONCE)
    updates = made.conclude(110, learning(streamed=0.5, replayed=1.0))
    assert summary(updates) == [("minor", "gradient", True, 1, 0), ("major", "replay", True, 1, 0)]
    assert same(made.standing.weights, plus(FRESH, 1.5))


def tried(minor: Any = None) -> Method:
    """With a major update that is tried."""
    made = method(minor or NoMinor(every=10), TRIED)
    if isinstance(minor, Dbgd):
        hear(made, "u1", clicked=())
    made.conclude(110, learning(replayed=1.0))
    return made


def test_it_is_tried_beside_the_served_weights() -> None:
    made = tried()
    assert made.explorers == (Explorer(1),)
    assert same(made.standing.weights, FRESH)
    assert same(made.explorer_weights()[0], plus(FRESH, 1.0))
    assert (made.standing.major_ms, made.due_ms) == (110, 110 + 6 * 10)
    both = tried(DBGD)
    assert both.explorers == (Explorer(2, SEED), Explorer(2))
    assert len(both.explorer_weights()) == len(both.standing.heard) == 2


@pytest.mark.parametrize(
    ("clicked", "verdict", "taken"),
    [((0,), Verdict.CANDIDATE, True), ((), Verdict.TIE, True), ((1,), Verdict.INCUMBENT, False)],
)
def test_it_takes_the_place_of_the_served_weights_unless_clicks_say_that_it_is_worse(
    clicked: tuple[int, ...], verdict: Verdict, taken: bool
) -> None:
    made = tried()
    hear(made, "u1", "u2", at_ms=112, clicked=clicked)
    (update,) = made.conclude(122, NOTHING)
    assert summary([update]) == [("major", "replay", taken, 2, 1)]
    assert update.evidence[0].verdict is verdict
    assert same(made.standing.weights, plus(FRESH, 1.0) if taken else FRESH)
    assert (made.standing.trial, made.explorers, made.standing.major_ms) == (None, (), 110)


def test_fewer_users_than_are_asked_for_refuse_no_major_update() -> None:
    made = tried()
    hear(made, "u1", at_ms=112, clicked=(1,))
    (update,) = made.conclude(122, NOTHING)
    assert (update.taken, update.evidence[0].verdict) == (True, Verdict.TIE)


def test_users_who_are_not_clearly_against_it_refuse_none() -> None:
    made = method(NoMinor(every=10), structs.replace(TRIED, confidence=1.5))
    made.conclude(110, learning(replayed=1.0))
    hear(made, "u1", "u2", at_ms=112, clicked=(1,))
    (update,) = made.conclude(122, NOTHING)
    assert (update.taken, update.evidence[0].verdict) == (True, Verdict.TIE)
    assert -1.5 < update.evidence[0].z < -1


def test_a_minor_update_outlives_a_trial_that_was_refused() -> None:
    made = tried(Gradient(every=10))
    hear(made, "u1", "u2", at_ms=112, clicked=(1,))
    minor, major = made.conclude(122, learning(streamed=0.5))
    assert (minor.taken, major.taken) == (True, False)
    assert same(made.standing.weights, plus(FRESH, 0.5))


def test_its_evidence_is_not_that_of_the_minor_update() -> None:
    made = tried(DBGD)
    hear(made, "u1", "u2", at_ms=112, likes=2, clicked=(1,))
    minor, major = made.conclude(122, NOTHING)
    assert (minor.evidence[0].decisive, major.evidence[0].decisive) == (0, 2)
    assert (minor.taken, major.taken) == (False, False)
    assert (major.evidence[0].candidate.version, major.evidence[0].candidate.seed) == (2, 0)


def test_a_trial_that_nobody_has_seen_goes_on_with_the_minor_updates_on_top() -> None:
    made = tried(Gradient(every=10))
    assert summary(made.conclude(170, learning(streamed=0.5, replayed=9.0))) == [("minor", "gradient", True, 2, 1)]
    assert made.explorers == (Explorer(2),)
    assert same(made.standing.weights, plus(FRESH, 0.5))
    assert same(made.standing.trial, plus(FRESH, 1.5))
    assert made.standing.major_ms == 110  # none begins while one is tried


def test_minor_updates_that_were_accepted_while_it_was_tried_are_on_top_of_it() -> None:
    made = tried(Gradient(every=10))
    hear(made, "u1", "u2", at_ms=112)
    minor, major = made.conclude(122, learning(streamed=0.5))
    assert (minor.taken, major.taken) == (True, True)
    assert same(made.standing.weights, plus(FRESH, 1.5))


def test_when_a_trial_is_over_the_next_one_may_begin() -> None:
    made = tried()
    hear(made, "u1", "u2", at_ms=130)
    made.conclude(140, learning(replayed=1.0))
    assert same(made.standing.weights, plus(FRESH, 1.0))
    assert same(made.standing.trial, plus(FRESH, 2.0))
    assert (made.standing.major_ms, made.explorers) == (140, (Explorer(2),))


def test_one_that_was_refused_is_not_what_the_next_one_starts_from() -> None:
    made = tried()
    hear(made, "u1", "u2", at_ms=130, clicked=(1,))
    made.conclude(140, learning(replayed=3.0))
    assert same(made.standing.trial, plus(FRESH, 3.0))


def test_where_it_stands_outlives_a_checkpoint() -> None:
    made = tried(DBGD)
    hear(made, "u1", at_ms=112)
    again = decode_standing(encode_standing(made.standing))
    assert same(again.weights, made.standing.weights)
    assert same(again.trial, made.standing.trial)
    plain = {"weights": {}, "trial": None}
    assert structs.replace(again, **plain) == structs.replace(made.standing, **plain)

"""Interleaving: who is shown, who is credited, and that clicks at random speak for nobody."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from pipeline.ranking.candidates import Candidate
from pipeline.ranking.comparing import Comparison, Outcome, Rule, Verdict, best, outcome
from pipeline.ranking.interleaving import (
    InterleavingError,
    Leaving,
    credit,
    marginal_credits,
    preference,
    probabilistic,
    rank_weights,
    team_draft,
    uniform,
)

LIVE = Candidate(version=7, seed=1)
PAGES = 3_000


def pages(make, orders, size: int) -> list[Leaving]:
    return [make(orders, size, uniform("salt", f"r{i}")) for i in range(PAGES)]


def z_of(values: list[float]) -> float:
    """Standard errors of the mean from 0."""
    mean = sum(values) / len(values)
    return mean / math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) / len(values))


# Who is shown -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "first"), [(5, 0.8434), (10, 0.8351), (20, 0.8327)])
def test_the_probability_of_the_first_rank(n: int, first: float) -> None:
    weights = rank_weights(n)
    assert weights[0] / sum(weights) == pytest.approx(first, abs=5e-5)


def test_of_two_items_the_top_one_comes_first_8_times_in_9() -> None:
    found = [page.shown[0] for page in pages(probabilistic, ((0, 1), (0, 1)), 2)]
    assert abs(found.count(0) / PAGES - 8 / 9) < 4 * math.sqrt(8 / 81 / PAGES)


def exact_pages(orders, size: int, tau: float = 3.0) -> dict[tuple[int, ...], float]:
    """The probability of every page, by going through all draws."""
    found: dict[tuple[int, ...], float] = {}

    def go(shown: tuple[int, ...], p: float) -> None:
        if len(shown) == size:
            found[shown] = found.get(shown, 0.0) + p
            return
        for order in orders:
            left = [(item, (rank + 1) ** -tau) for rank, item in enumerate(order) if item not in shown]
            total = sum(w for _, w in left)
            for item, w in left:
                go((*shown, item), p / len(orders) * w / total)

    go((), 1.0)
    return found


def test_pages_are_drawn_with_their_probabilities() -> None:
    orders = ((0, 1, 2, 3), (2, 0, 3, 1))
    expected = exact_pages(orders, 2)
    shown = [page.shown for page in pages(probabilistic, orders, 2)]
    chi2 = sum((shown.count(page) - PAGES * p) ** 2 / (PAGES * p) for page, p in expected.items())
    assert len(expected) == 12
    assert chi2 < 31.3  # 99.9 % of chi-squared with 11 degrees of freedom


def test_a_page_is_a_function_of_salt_and_request() -> None:
    orders = ((0, 1, 2, 3), (3, 2, 1, 0))
    for make in (probabilistic, team_draft):
        assert make(orders, 3, uniform("s", "r1")) == make(orders, 3, uniform("s", "r1"))
        assert len({make(orders, 3, uniform("s", f"r{i}")).shown for i in range(50)}) >= 4
        assert len({make(orders, 3, uniform(f"s{i}", "r1")).shown for i in range(50)}) >= 4


def test_draws_are_fixed_for_good() -> None:
    """A change of the hash or its keys would make every logged page impossible to recompute."""
    orders = (tuple(range(8)), tuple(reversed(range(8))))
    assert probabilistic(orders, 5, uniform("salt", "request")).shown == (6, 0, 2, 1, 7)
    assert team_draft(orders, 5, uniform("salt", "request")).shown == (0, 7, 6, 1, 5)


def test_nothing_is_shown_twice_and_no_more_than_there_is() -> None:
    orders = ((0, 1, 2), (2, 1, 0), (1, 0, 2))
    for make in (probabilistic, team_draft):
        for page in pages(make, orders, 5)[:300]:
            assert sorted(page.shown) == [0, 1, 2]
            assert len(page.teams) == len(page.credits) == 3


def test_team_draft_gives_every_ranker_a_turn_in_every_round() -> None:
    orders = ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (2, 3, 0, 1, 5, 4))
    for page in pages(team_draft, orders, 6)[:300]:
        assert sorted(page.teams[:3]) == sorted(page.teams[3:]) == [0, 1, 2]
        assert page.shown[0] == orders[page.teams[0]][0]


@pytest.mark.parametrize("orders", [(), ((),), ((0, 2),), ((0, 1), (0, 0)), ((0, 1), (0, 1, 2))])
def test_orders_of_different_candidates_are_refused(orders) -> None:
    for make in (probabilistic, team_draft):
        with pytest.raises(InterleavingError, match="orders: expected"):
            make(orders, 2, uniform("s", "r"))


# Who is credited ----------------------------------------------------------------------------------------------------


def test_the_credit_of_a_place_is_the_posterior_of_its_team() -> None:
    """By enumeration of all assignments, as Hofmann et al. do it: sum over those that lead to the page."""
    orders, shown = ((0, 1, 2, 3), (2, 0, 3, 1)), (2, 0, 1)
    posterior = [[0.0, 0.0] for _ in shown]
    for teams in itertools.product((0, 1), repeat=3):
        p, left = 1.0, [0, 1, 2, 3]
        for item, team in zip(shown, teams, strict=True):
            weights = {i: (orders[team].index(i) + 1) ** -3.0 for i in left}
            p *= weights[item] / sum(weights.values())
            left.remove(item)
        for place, team in enumerate(teams):
            posterior[place][team] += p
    for place, found in zip(posterior, marginal_credits(orders, shown), strict=True):
        assert found == pytest.approx([p / sum(place) for p in place], rel=1e-12)


def test_one_candidates_preference_is_the_sum_of_p2_less_p1_over_their_sum() -> None:
    credits = marginal_credits(((0, 1), (1, 0)), (1, 0))
    assert credits[0] == pytest.approx((1 / 9, 8 / 9))
    assert credits[1] == pytest.approx((1 / 2, 1 / 2))  # only one item is left: whoever draws, draws it
    assert preference(credit(credits, [0])) == pytest.approx(8 / 9 - 1 / 9)
    assert preference(credit(credits, [1])) == pytest.approx(0)


def test_a_place_counts_once_and_no_click_is_a_tie() -> None:
    credits = marginal_credits(((0, 1, 2), (2, 1, 0)), (2, 0))
    assert credit(credits, [0, 0, 0]) == credits[0]
    assert credit(credits, []) == (0, 0)
    assert preference(credit(credits, [])) == 0


def test_rankers_that_agree_tie_whatever_is_clicked() -> None:
    order = (3, 1, 0, 2)
    for make in (probabilistic, team_draft):
        for page in pages(make, (order, order), 4)[:100]:
            assert preference(credit(page.credits, [0, 2, 3])) == 0


def test_a_shared_beginning_is_nobodys_with_team_draft() -> None:
    for page in pages(team_draft, ((0, 1, 2, 3), (0, 1, 3, 2)), 4)[:100]:
        assert page.shown[:2] == (0, 1)
        assert page.credits[:2] == ((0, 0), (0, 0))
        assert [sum(c) for c in page.credits[2:]] == [1, 1]


ORDERS = {
    "two": ((0, 1, 2, 3, 4, 5), (1, 2, 0, 4, 5, 3)),
    "nearly alike": ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 5, 4)),
    "three": ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (1, 0, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("make", [probabilistic, team_draft])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("chances", [(0.4,) * 5, (0.9, 0.5, 0.3, 0.2, 0.1)], ids=["even", "by place"])
def test_clicks_that_know_places_only_speak_for_nobody(make, name: str, chances: tuple[float, ...]) -> None:
    rng = random.Random(3)
    found = []
    for page in pages(make, ORDERS[name], 5):
        clicked = [place for place, chance in enumerate(chances) if rng.random() < chance]
        found.append(preference(credit(page.credits, clicked), len(ORDERS[name]) - 1))
    assert abs(z_of(found)) < 4


@pytest.mark.parametrize("make", [probabilistic, team_draft])
def test_clicks_on_what_a_candidate_ranks_higher_speak_for_it(make) -> None:
    orders = ((0, 1, 2, 3, 4, 5), (5, 0, 1, 2, 3, 4))
    found = [preference(credit(p.credits, [p.shown.index(5)])) for p in pages(make, orders, 5) if 5 in p.shown]
    assert sum(found) / len(found) > 0.5


def test_balanced_credit_would_not_be_unbiased() -> None:
    """The known-wrong way: of every click the ranker that has the item higher is credited, and pages start at random
    with either ranker. The test above must be able to tell."""
    rng, found = random.Random(3), []
    orders = ORDERS["two"]
    for _ in range(PAGES):
        turns = itertools.cycle(orders if rng.random() < 0.5 else orders[::-1])
        shown: list[int] = []
        while len(shown) < 3:
            shown.append(next(item for item in next(turns) if item not in shown))
        item = shown[rng.randrange(3)]
        found.append(orders[0].index(item) - orders[1].index(item))
    signs = [float((x > 0) - (x < 0)) for x in found]
    assert abs(z_of(signs)) > 5


# The outcome of a period ----------------------------------------------------------------------------------------------


def compared(*preferences: float, candidate: Candidate = LIVE) -> list[Comparison]:
    return [Comparison(candidate, f"u{i}", x) for i, x in enumerate(preferences)]


def test_ties_decide_nothing() -> None:
    found = outcome(LIVE, compared(*[0.0] * 500), Rule(min_decisive=0, confidence=0))
    assert found == Outcome(LIVE, Verdict.TIE, 500, 0, 0.0, 0.0)


def test_whoever_is_ahead_clearly_enough_has_won() -> None:
    rule = Rule(min_decisive=4, confidence=1.0)
    assert outcome(LIVE, compared(1, 1, 1, -1), rule).z == pytest.approx(1.0)
    assert outcome(LIVE, compared(1, 1, 1, -1), rule).verdict is Verdict.CANDIDATE
    assert outcome(LIVE, compared(-1, -1, -1, 1), rule).verdict is Verdict.INCUMBENT
    assert outcome(LIVE, compared(1, 1, 1, -1.1), rule).verdict is Verdict.TIE
    assert outcome(LIVE, compared(1, 1, 1), rule).verdict is Verdict.TIE
    assert outcome(LIVE, compared(1, -1, 1, -1), Rule(0, 0.0)).verdict is Verdict.TIE


def test_pages_of_one_user_are_one_piece_of_evidence() -> None:
    one = [Comparison(LIVE, "u", 1.0)] * 100
    found = outcome(LIVE, one, Rule(min_decisive=10, confidence=1.0))
    assert (found.verdict, found.pages, found.decisive, found.z) == (Verdict.TIE, 100, 1, 1.0)


def test_feedback_for_another_candidate_counts_for_nothing() -> None:
    """Late, of the version before, of another seed, or of the mirrored one."""
    others = [Candidate(6, 1), Candidate(7, 2), Candidate(7, 1, mirrored=True)]
    late = [c for other in others for c in compared(*[1.0] * 30, candidate=other)]
    found = outcome(LIVE, [*late, *compared(-1, -1)], Rule(min_decisive=2, confidence=1.0))
    assert (found.verdict, found.pages, found.foreign) == (Verdict.INCUMBENT, 2, 90)


def test_the_order_of_pages_does_not_matter() -> None:
    rng = random.Random(1)
    period = compared(*[rng.gauss(0, 1) for _ in range(200)])
    found = outcome(LIVE, period, Rule())
    for _ in range(20):
        rng.shuffle(period)
        assert outcome(LIVE, period, Rule()) == found


def test_random_clicks_win_as_rarely_as_the_rule_says() -> None:
    """400 periods of rankers that nobody can tell apart: z beyond 1.645 five times in a hundred."""
    rng, orders = random.Random(5), ORDERS["two"]
    wins = 0
    for period in range(400):
        comparisons = []
        for i in range(60):
            page = probabilistic(orders, 3, uniform("salt", f"{period}/{i}"))
            clicked = [place for place in range(3) if rng.random() < 0.3]
            comparisons.append(Comparison(LIVE, f"u{i}", preference(credit(page.credits, clicked))))
        wins += outcome(LIVE, comparisons, Rule(confidence=1.645)).verdict is Verdict.CANDIDATE
    assert abs(wins / 400 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)


def test_counting_signs_would_be_biased() -> None:
    """Of marginalised credits more may be positive than negative under clicks that know nothing; their mean is 0."""
    orders, found = ((0, 1, 2), (1, 2, 0)), []
    for page in pages(probabilistic, orders, 1):
        found.append(preference(credit(page.credits, [0])))
    assert abs(z_of(found)) < 4
    assert z_of([float((x > 0) - (x < 0)) for x in found]) > 4


def test_of_several_winners_the_clearest_is_taken() -> None:
    a, b, c = (outcome(LIVE, compared(*xs), Rule(1, 1.0)) for xs in ((1, 1), (1, 1, 1, 1), (-1,) * 9))
    assert best([a, b, c]) is b
    assert best([c]) is None
    assert best([]) is None

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.agent.fusion import UnusableScores, fuse
from pipeline.config.schema import Exponents, PayPlusAPhi
from pipeline.records import Item

PHI = PayPlusAPhi(phi=0.05)
scores = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.1, 1.0, 1e-300, 1e300]), st.floats(0, 1e100))
pages = st.lists(st.tuples(scores, scores), min_size=1, max_size=30)


def items(*pairs: tuple[float | None, float | None]) -> list[Item]:
    return [Item(f"i{n}", click, pay) for n, (click, pay) in enumerate(pairs)]


def stable_descending(values: list[float]) -> tuple[int, ...]:
    """The specification: best first, ties as received."""
    return tuple(sorted(range(len(values)), key=lambda i: (-values[i], i)))


@settings(deadline=None, max_examples=200)
@given(pages, st.floats(1e-6, 10))
def test_at_the_baseline_the_order_is_exactly_that_of_the_rankers_formula(page, phi):
    formula = [click * (pay + phi) for click, pay in page]
    if all(math.isfinite(score) for score in formula):
        assert fuse(PayPlusAPhi(phi=phi), (1.0,), items(*page)) == stable_descending(formula)


@settings(deadline=None, max_examples=200)
@given(pages)
def test_at_the_baseline_exponents_give_the_order_of_the_product(page):
    product = [click * pay for click, pay in page]
    if all(math.isfinite(score) for score in product):
        assert fuse(Exponents(), (1.0, 1.0), items(*page)) == stable_descending(product)


@settings(deadline=None, max_examples=200)
@given(pages, st.floats(-5, 5), st.floats(-5, 5), st.booleans())
def test_a_page_is_ordered_as_a_whole_or_refused(page, a, b, by_exponents):
    fusion, action = (Exponents(), (a, b)) if by_exponents else (PHI, (a,))
    try:
        order = fuse(fusion, action, items(*page))
    except UnusableScores:
        return
    assert sorted(order) == list(range(len(page)))


@settings(deadline=None)
@given(pages, st.floats(-5, 5))
def test_fusing_what_was_fused_changes_nothing(page, a):
    """So the order of a logged page, which has its items in shown order, can be checked."""
    received = items(*page)
    try:
        shown = [received[i] for i in fuse(PHI, (a,), received)]
    except UnusableScores:
        return
    assert fuse(PHI, (a,), shown) == tuple(range(len(page)))


def test_a_larger_action_favours_clicks():
    page = items((0.9, 0.0), (0.1, 0.5))
    assert fuse(PHI, (0.5,), page) == (1, 0)  # .0225 and .0525
    assert fuse(PHI, (3.0,), page) == (0, 1)  # .135 and .065


def test_exponents_weigh_the_scores():
    page = items((0.9, 0.1), (0.2, 0.3))
    assert fuse(Exponents(), (1.0, 1.0), page) == (0, 1)  # .09 and .06
    assert fuse(Exponents(), (0.1, 1.0), page) == (1, 0)  # .099 and .255


def test_ties_keep_the_received_order():
    assert fuse(PHI, (1.0,), items((0.5, 0.1), (0.6, 0.2), (0.5, 0.1), (0.6, 0.2))) == (1, 3, 0, 2)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, -1e-9])
@pytest.mark.parametrize("field", [0, 1])
def test_one_unusable_score_makes_the_page_unusable(bad: float | None, field: int):
    pair: list[float | None] = [0.5, 0.5]
    pair[field] = bad
    name = ("click_score", "pay_score")[field]
    with pytest.raises(UnusableScores, match=f"item i1: expected a finite {name} of 0 or more, found"):
        fuse(PHI, (1.0,), items((0.1, 0.1), (pair[0], pair[1])))


@pytest.mark.parametrize(
    ("fusion", "action", "pair"),
    [
        (PHI, (1.0,), (1e200, 1e200)),
        (Exponents(), (2.0, 1.0), (1e200, 1.0)),
        (Exponents(), (-1.0, 1.0), (0.0, 0.5)),
        (Exponents(), (-1.0, 1.0), (0.0, 0.0)),
    ],
)
def test_scores_that_fuse_to_no_number_are_unusable(fusion, action, pair):
    with pytest.raises(UnusableScores, match="item at 0: expected scores that fuse to a number"):
        fuse(fusion, action, items(pair))


def test_scores_may_be_so_large_that_no_sum_holds_them():
    assert fuse(PHI, (0.0,), items((1.0, 1e308), (1.0, 1.5e308), (1e308, 0.0))) == (1, 0, 2)


def test_infinities_that_cancel_out_are_found():
    with pytest.raises(UnusableScores, match="item i0: expected a finite click_score of 0 or more, found inf"):
        fuse(PHI, (1.0,), items((math.inf, 0.1), (-math.inf, 0.1)))


def test_a_page_without_items_has_no_order():
    assert fuse(PHI, (1.0,), ()) == ()


def test_zero_to_the_power_of_zero_is_one():
    assert fuse(Exponents(), (0.0, 1.0), items((0.5, 0.1), (0.0, 0.2))) == (1, 0)

"""From an action and the ranker's scores to the order of a page. Pure.

Contract: the baseline action gives exactly the order in which the ranker's own formula puts the items. Sorting is
stable, so ties keep the order in which they were received. No score is ever infinite or NaN: a page whose scores
cannot be used has no fused order, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.config.schema import Exponents, PayPlusAPhi
from pipeline.records import Item

Fusion = PayPlusAPhi | Exponents


class UnusableScores(Exception):  # noqa: N818
    """An item has no click or pay score, or one with which the formula makes no sense; says which."""


def pay_plus_a_phi(click: float, pay: float, a: float, phi: float) -> float:
    """click * (pay + a * phi). Meituan 2018 prints it without `a`; its place is our reading, a = 1 is their formula."""
    return click * (pay + a * phi)


def exponents(click: float, pay: float, a: float, b: float) -> float:
    """click**a * pay**b."""
    return _power(click, a) * _power(pay, b)


def fuse(fusion: Fusion, action: Sequence[float], items: Sequence[Item]) -> tuple[int, ...]:
    """Positions of the items, best first. Raises UnusableScores."""
    scores = [_score(fusion, action, item) for item in items]
    return tuple(sorted(range(len(items)), key=lambda position: -scores[position]))


def _score(fusion: Fusion, action: Sequence[float], item: Item) -> float:
    click, pay = _usable(item, "click_score", item.click_score), _usable(item, "pay_score", item.pay_score)
    match fusion:
        case PayPlusAPhi(phi=phi):
            score = pay_plus_a_phi(click, pay, action[0], phi)
        case Exponents():
            score = exponents(click, pay, action[0], action[1])
    if not math.isfinite(score):
        msg = f"item {item.item_id}: click_score {click} and pay_score {pay} fuse to {score} with action {list(action)}"
        raise UnusableScores(msg)
    return score


def _usable(item: Item, field: str, score: float | None) -> float:
    if score is None or not 0 <= score < math.inf:  # NaN fails every comparison
        msg = f"item {item.item_id}: expected a finite {field} of 0 or more, found {score}"
        raise UnusableScores(msg)
    return score


def _power(base: float, exponent: float) -> float:
    if base == 0 and exponent < 0:
        return math.inf
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf

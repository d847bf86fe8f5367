"""From an action and the ranker's scores to the order of a page. Pure.

Contract: the baseline action gives exactly the order in which the ranker's own formula puts the items. Sorting is
stable, so ties keep the order in which they were received. No score is ever infinite or NaN: a page whose scores
cannot be used has no fused order, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config.schema import Exponents, PayPlusAPhi
from pipeline.records import Item

Fusion = PayPlusAPhi | Exponents


class UnusableScores(Exception):
    """An item has no click or pay score, or one with which the formula makes no sense; says which."""


class Scores(NamedTuple):
    click: list[float]
    pay: list[float]


def read_scores(items: Sequence[Item]) -> Scores:
    """The ranker's scores. Raises UnusableScores where one is missing, negative, infinite or NaN."""
    return Scores(
        _usable(items, "click_score", [item.click_score for item in items]),
        _usable(items, "pay_score", [item.pay_score for item in items]),
    )


def pay_plus_a_phi(scores: Scores, a: float, phi: float) -> list[float]:
    """click * (pay + a * phi). Meituan 2018 prints it without `a`; its place is our reading, a = 1 is their formula."""
    a_phi = a * phi
    return [click * (pay + a_phi) for click, pay in zip(*scores, strict=True)]


def exponents(scores: Scores, a: float, b: float) -> list[float]:
    """click**a * pay**b."""
    return [_power(click, a) * _power(pay, b) for click, pay in zip(*scores, strict=True)]


def order_by(fusion: Fusion, action: Sequence[float], scores: Scores) -> tuple[int, ...]:
    """Positions of the items, best first. Raises UnusableScores where the formula leaves the numbers."""
    match fusion:
        case PayPlusAPhi(phi=phi):
            fused = pay_plus_a_phi(scores, action[0], phi)
        case Exponents():
            fused = exponents(scores, action[0], action[1])
    if not math.isfinite(sum(fused)):  # which may also be too large a sum of finite ones
        _check_fused(fused, action, scores)
    return tuple(sorted(range(len(fused)), key=fused.__getitem__, reverse=True))  # reversed sorting is stable, too


def _check_fused(fused: Sequence[float], action: Sequence[float], scores: Scores) -> None:
    for i, score in enumerate(fused):
        if not math.isfinite(score):
            found = f"click_score {scores.click[i]} and pay_score {scores.pay[i]}"
            msg = f"item at {i}: expected scores that fuse to a number with action {list(action)}, found {found}"
            raise UnusableScores(msg)


def fuse(fusion: Fusion, action: Sequence[float], items: Sequence[Item]) -> tuple[int, ...]:
    """Positions of the items, best first. Raises UnusableScores."""
    return order_by(fusion, action, read_scores(items))


def _usable(items: Sequence[Item], field: str, scores: list[float | None]) -> list[float]:
    """All at once, for they are many: a sum that is finite has finite terms. Another says nothing of each."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores) or not (math.isfinite(sum(known)) and min(known, default=0.0) >= 0):
        for item, score in zip(items, scores, strict=True):
            _check(item, field, score)
    return known


def _check(item: Item, field: str, score: float | None) -> None:
    if score is None or not 0 <= score < math.inf:  # NaN fails every comparison
        msg = f"item {item.item_id}: expected a finite {field} of 0 or more, found {score}"
        raise UnusableScores(msg)


def _power(base: float, exponent: float) -> float:
    if base == 0 and exponent < 0:
        return math.inf
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf

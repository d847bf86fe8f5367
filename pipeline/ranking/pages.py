"""From what rankers think of a page's candidates to the page, and from its log to what a click on it is worth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.ranking.interleaving import (
    TAU,
    Orders,
    Uniform,
    marginal_credits,
    probabilistic,
    team_credits,
    team_draft,
)
from pipeline.records import Explorer, Ranked

How = Literal["probabilistic", "team_draft"]


def best_first(scores: Sequence[float]) -> tuple[int, ...]:
    """Positions by score; of equal ones the first that was received."""
    return tuple(sorted(range(len(scores)), key=scores.__getitem__, reverse=True))  # reversed sorting is stable, too


def received(candidates: int, page_size: int) -> Ranked:
    """A page of the first candidates, as they came."""
    return Ranked(shown=min(candidates, page_size))


def chosen(
    orders: Orders, explorers: tuple[Explorer, ...], page_size: int, how: How, tau: float | None, draw: Uniform
) -> Ranked:
    """`orders`: of the served weights, and of each explorer. What is not on the page follows in the first order."""
    shown = min(len(orders[0]), page_size)
    if not explorers:
        return Ranked(shown, "greedy", places=tuple(orders[0]))
    tau = TAU if tau is None else tau
    made = team_draft(orders, page_size, draw) if how == "team_draft" else probabilistic(orders, page_size, draw, tau)
    on_page = set(made.shown)
    return Ranked(
        shown,
        how,
        tau if how == "probabilistic" else None,
        explorers,
        tuple(tuple(order) for order in orders),
        (*made.shown, *(position for position in orders[0] if position not in on_page)),
        made.teams,
    )


def credits_of(ranked: Ranked) -> tuple[tuple[float, ...], ...]:
    """What a click on each shown place gives each ranker, from the log; nothing where one ranker made the page."""
    if not ranked.explorers or not ranked.teams:
        return ()
    if ranked.by == "team_draft":
        return team_credits(ranked.orders, ranked.teams)
    return marginal_credits(ranked.orders, ranked.places[: ranked.shown], TAU if ranked.tau is None else ranked.tau)

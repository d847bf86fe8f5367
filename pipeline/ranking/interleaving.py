"""One page out of the orders of several rankers, and which of them its clicks speak for. Pure.

Ranker 0 is the one that is served, the others are candidates that would replace it; with one candidate it is
interleaving, with more multileaving.

*Probabilistic*: every place of the page is given to a ranker by a fair draw, which draws an item with probability
proportional to 1 / rank^tau; the item is gone for all rankers, ranks stay what they were, and probabilities are over
what is left. Whoever was drawn, the place is credited to each ranker by how likely it was to have drawn the item, so a
click says something about every ranker, and no luck of the draw is in it.

*Team draft*: in each round every ranker, in a drawn order, adds the best of its items that are left. Clicks are its
team's; places that all rankers fill alike are nobody's.

Draws come from a hash of (salt, request id, place), as in `pipeline/exploration.py`: a page can be made again from its
log, by any replica.

Sources: Hofmann, Whiteson & de Rijke, CIKM 2011 (probabilistic interleaving); Radlinski, Kurup & Joachims, CIKM 2008
(team draft); Schuth et al., CIKM 2014 and SIGIR 2015 (multileaving); Zheng et al., WWW 2018 (its use in DRN).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

import xxhash
from msgspec import Struct

from pipeline.errors import PageturnError

TAU = 3.0
NOBODY = -1

Orders = Sequence[Sequence[int]]  # per ranker all candidates of the page, by position in the request, best first
Uniform = Callable[[str], float]  # what is drawn -> [0, 1)


class InterleavingError(PageturnError):
    """Orders that cannot be interleaved; says what was expected and found."""


class Leaving(Struct, frozen=True):
    """A page of several rankers. `credits[place]` has what a click on that place gives each ranker; sums to 1, or 0."""

    shown: tuple[int, ...]  # positions in the request, in the order of the page
    teams: tuple[int, ...]  # the ranker that filled each place
    credits: tuple[tuple[float, ...], ...]


def uniform(salt: str, request_id: str) -> Uniform:
    """The draws of one page: numbers that depend on nothing but the arguments and what they are for."""

    def draw(what: str) -> float:
        key = "\x1f".join((salt, request_id, what)).encode()
        return (xxhash.xxh3_64_intdigest(key) >> 11) / 2**53

    return draw


def probabilistic(orders: Orders, size: int, draw: Uniform, tau: float = TAU) -> Leaving:
    """A page of `size` places, or of all candidates where there are fewer."""
    _check(orders)
    weights = _weights(orders, tau)
    left = list(range(len(orders[0])))
    shown, teams = [], []
    for place in range(min(size, len(left))):
        team = int(draw(f"team{place}") * len(orders))
        at = _drawn(map(weights[team].__getitem__, left), draw(f"item{place}"))
        shown.append(left.pop(at))
        teams.append(team)
    return Leaving(tuple(shown), tuple(teams), marginal_credits(orders, shown, tau))


def rank_weights(n: int, tau: float = TAU) -> tuple[float, ...]:
    """1 / rank^tau for the ranks 1 to n: what the softmax over ranks makes of them, up to their sum."""
    return tuple((rank + 1) ** -tau for rank in range(n))


def marginal_credits(orders: Orders, shown: Sequence[int], tau: float = TAU) -> tuple[tuple[float, ...], ...]:
    """P(ranker r filled the place | what is shown), per place and ranker. No matter of the draws: the draws of a page's
    places are independent given what was shown before them."""
    _check(orders)
    weights = _weights(orders, tau)
    left = set(range(len(orders[0])))
    credits = []
    for item in shown:
        credits.append(_shares([ranker[item] / sum(map(ranker.__getitem__, left)) for ranker in weights]))
        left.remove(item)
    return tuple(credits)


def team_draft(orders: Orders, size: int, draw: Uniform) -> Leaving:
    """A page of `size` places, or of all candidates where there are fewer."""
    _check(orders)
    size = min(size, len(orders[0]))
    shown: list[int] = []
    teams: list[int] = []
    while len(shown) < size:
        for team in _drawn_order(len(orders), draw, len(shown)):
            if len(shown) < size:
                shown.append(next(item for item in orders[team] if item not in shown))
                teams.append(team)
    return Leaving(tuple(shown), tuple(teams), team_credits(orders, teams))


def team_credits(orders: Orders, teams: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Of a page that was drafted: a place is its team's, unless all rankers would have filled it alike."""
    shared = _shared_prefix(orders, len(teams))
    credited = [NOBODY if place < shared else team for place, team in enumerate(teams)]
    return tuple(tuple(float(team == ranker) for ranker in range(len(orders))) for team in credited)


def credit(leaving_credits: Sequence[Sequence[float]], clicked: Iterable[int]) -> tuple[float, ...]:
    """What the clicks on a page give each ranker; a place counts once, however often it was clicked."""
    rankers = len(leaving_credits[0]) if leaving_credits else 0
    places = sorted(set(clicked))
    return tuple(sum(leaving_credits[place][ranker] for place in places) for ranker in range(rankers))


def preference(credits: Sequence[float], candidate: int = 1) -> float:
    """Above 0 where a page speaks for a candidate; for one candidate: sum over clicks of (P2 - P1) / (P1 + P2)."""
    return credits[candidate] - credits[0]


def _check(orders: Orders) -> None:
    candidates = sorted(orders[0]) if orders else []
    if not candidates or candidates != list(range(len(candidates))):
        msg = f"orders: expected a permutation of the positions 0 to {len(candidates) - 1}, found {list(orders)}"
        raise InterleavingError(msg)
    if any(sorted(order) != candidates for order in orders[1:]):
        msg = "orders: expected every ranker to order the same candidates"
        raise InterleavingError(msg)


def _weights(orders: Orders, tau: float) -> list[list[float]]:
    """[ranker][item]."""
    by_rank = rank_weights(len(orders[0]), tau)
    found = [[0.0] * len(by_rank) for _ in orders]
    for ranker, order in zip(found, orders, strict=True):
        for item, weight in zip(order, by_rank, strict=True):
            ranker[item] = weight
    return found


def _drawn(weights: Iterable[float], u: float) -> int:
    """Where u, in [0, 1), falls among the weights."""
    sums = list(accumulate(weights))
    return min(bisect_right(sums, u * sums[-1]), len(sums) - 1)


def _shares(chances: Sequence[float]) -> tuple[float, ...]:
    total = sum(chances)
    return tuple(chance / total for chance in chances)


def _drawn_order(n: int, draw: Uniform, place: int) -> list[int]:
    return sorted(range(n), key=lambda team: (draw(f"turn{place}/{team}"), team))


def _shared_prefix(orders: Orders, size: int) -> int:
    """How many of the first places all rankers would fill alike."""
    for place in range(size):
        if any(a[place] != b[place] for a, b in pairwise(orders)):
            return place
    return size

"""One run: a method meets the users of a seed, after a day that was shown at random and logged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from benchmarks.news.methods import Method, best_first
from pipeline.simulation import draws
from pipeline.simulation.news.feed import NewsFeed, Requests
from pipeline.simulation.news.params import Params

MINOR_MIN, MAJOR_MIN = 30, 60
BETA = 0.05  # of the reward that is reported, whatever a method learns from

Make = Callable[[int, int, int, Requests], Method]  # seed, users, places, requests whose widths matter


class Scale(Struct, frozen=True):
    users: int = 1_000
    warm_days: int = 1
    days: int = 7  # measured, after those


class Day(Struct, frozen=True):
    """Means over the pages of a day, and over users."""

    ctr: float  # clicks per shown item
    precision5: float  # clicks on the first five places, of five
    ndcg: float  # gain of the clicked, discount 1 / log(1 + rank); 0 for a page without a click
    ils: float  # mean cosine between the items of a page: low is diverse
    activeness: float  # at the requests
    reward: float  # per shown item: click + BETA activeness
    requests: float  # per user
    clicks: float  # per user


class Run(Struct, frozen=True):
    days: tuple[Day, ...]
    updates: dict[str, int]


class Tally:
    """Sums over the pages of a day."""

    def __init__(self) -> None:
        self.pages, self.sums = 0, np.zeros(6)

    def add(self, feed: NewsFeed, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        there = shown >= 0
        items = np.take_along_axis(requests.items, np.maximum(shown, 0), axis=1)
        rate = clicked.sum(1) / np.maximum(there.sum(1), 1)
        found = (rate, clicked[:, :5].sum(1) / 5, ndcg(clicked), ils(feed.items.topics[items], there))
        self.sums += [float(x.sum()) for x in (*found, requests.activeness, clicked.sum(1))]
        self.pages += len(shown)

    def day(self, users: int) -> Day:
        ctr, precision5, gain, alike, activeness, clicks = (float(x) for x in self.sums / max(self.pages, 1))
        per_user = self.pages / users
        return Day(ctr, precision5, gain, alike, activeness, ctr + BETA * activeness, per_user, clicks * per_user)


def ndcg(clicked: np.ndarray) -> np.ndarray:
    """[B, K] -> [B]."""
    weight = 1 / np.log(2 + np.arange(clicked.shape[1]))
    ideal = np.concatenate([[0], np.cumsum(weight)])[clicked.sum(axis=1)]
    return np.divide(clicked @ weight, ideal, out=np.zeros(len(clicked)), where=ideal > 0)


def ils(vectors: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean over pairs of different places of the cosine: [B, K, T] of length 1, [B, K] -> [B]."""
    n = there.sum(axis=1)
    total = (vectors * there[..., None]).sum(axis=1)
    return ((total**2).sum(axis=1) - n) / np.maximum(n * (n - 1), 1)


def run(make: Make, params: Params, scale: Scale, seed: int) -> Run:
    feed = NewsFeed(params, seed, scale.users, scale.warm_days + scale.days)
    method, tally, days = None, Tally(), []
    while not feed.over:
        now_min, requests = feed.now_min, feed.requests()
        if method is None:
            method = make(seed, scale.users, params.page_size, requests)
        warm = now_min < 1440 * scale.warm_days
        shown = at_random(requests, seed, params.page_size) if warm else method.show(requests, params.page_size)
        clicked = feed.show(requests, shown)
        method.heard(requests, shown, clicked)
        tally.add(feed, requests, shown, clicked)
        if feed.now_min == 1440 * scale.warm_days:
            method.begin()
        elif not warm:
            update(method, feed.now_min)
        if feed.now_min % 1440 == 0:
            days.append(tally.day(scale.users))
            tally = Tally()
    assert method is not None
    return Run(tuple(days[scale.warm_days :]), method.updates())


def update(method: Method, now_min: int) -> None:
    if now_min % MINOR_MIN == 0:
        method.minor(now_min)
    if now_min % MAJOR_MIN == 0:
        method.major(now_min)


def at_random(requests: Requests, seed: int, places: int) -> np.ndarray:
    """The same for every method."""
    users = draws.key(draws.key(draws.key(draws.root(seed), 7), requests.users), requests.numbers)
    scores = draws.uniform(draws.key(users[:, None], requests.items))
    return best_first(scores, requests.exists, places)

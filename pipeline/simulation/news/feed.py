"""The running feed: who asks for a page now, what of it is clicked, and when the user is back. Vectorised over users.

    feed = NewsFeed(Params(), seed=1, users=1000, days=7)
    while not feed.over:
        requests = feed.requests()
        clicks = feed.show(requests, shown)     # [B, K] of positions among the candidates, -1 where there is none

What is drawn depends on (seed, user, number of the request, item), never on the order of things: two policies meet the
same users and items, and differ by what they show.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.ranking.activeness import EXACT
from pipeline.simulation import draws
from pipeline.simulation.draws import Array
from pipeline.simulation.news.items import Items, published
from pipeline.simulation.news.params import Params
from pipeline.simulation.news.people import People, arriving, interests


class Requests(NamedTuple):
    """The pages asked for in one tick, of B users."""

    now_min: int
    users: Array  # [B]
    numbers: Array  # [B] how many requests each of them made before
    items: Array  # [B, N] indices into all items; anything where there is none
    exists: Array  # [B, N] bool
    user_features: Array  # [B, U] float32
    item_features: Array  # [B, N, I] float32
    activeness: Array  # [B] right after this request


class NewsFeed:
    """Owns the state of a run."""

    def __init__(self, params: Params, seed: int, users: int, days: float) -> None:
        self.params, self.seed, self.now_min = params, seed, 0
        self.end_min = round(days * 1440)
        self.items: Items = published(params, seed, days)
        self.people: People = arriving(params, seed, users, len(self.items.hook))
        self.interests = interests(params, seed, users)
        self._views, self._clicks = np.zeros((2, len(self.items.hook)))
        self._keys = draws.key(draws.key(draws.root(seed), 4), np.arange(users))

    @property
    def over(self) -> bool:
        return self.now_min >= self.end_min

    @property
    def widths(self) -> tuple[int, int]:
        """Columns of user_features and item_features."""
        p = self.params
        return p.topics + 6, p.topics + p.providers + 6

    def requests(self) -> Requests:
        """Those of this tick, in order of users; `show` answers all of them and ends the tick."""
        users = np.flatnonzero(self.people.next_min <= self.now_min)
        numbers = self.people.requests[users]
        activeness = self._arrive(users)
        items, exists = self._candidates(users, numbers)
        user_features = self._user_features(users, activeness)
        item_features = self._item_features(users, items) * exists[..., None]
        as_float = user_features.astype(np.float32), item_features.astype(np.float32)
        return Requests(self.now_min, users, numbers, items, exists, *as_float, activeness)

    def show(self, requests: Requests, shown: Array) -> Array:
        """Which of the shown items, [B, K] of positions, are clicked: [B, K] bool."""
        users, there = requests.users, shown >= 0
        items = np.take_along_axis(requests.items, np.maximum(shown, 0), axis=1)
        keys = draws.key(self._keys[users], 2 * requests.numbers)
        chance = self._attention(shown.shape[1]) * self.attraction(users, items)
        clicked = (draws.uniform(draws.key(keys[:, None], items)) < chance) & there
        self._count(users, items, there, clicked)
        self._please(users, items, clicked)
        self._schedule(users, draws.key(self._keys[users], 2 * requests.numbers + 1))
        self.now_min += self.params.tick_min
        return clicked

    def attraction(self, users: Array, items: Array) -> Array:
        """P(click | looked at), which nobody sees: [B], [B, K] -> [B, K]. What was clicked is not clicked again."""
        p, people, topics = self.params, self.people, self.items.topics[items]
        age_h = np.minimum((self.now_min - self.items.born_min[items]) / 60, p.click_stale_h)
        leaning = (
            p.click_level
            + p.click_match * np.einsum("bt,bkt->bk", self.interests[users], topics)
            + p.click_hook * self.items.hook[items]
            + p.click_quality * self.items.quality[items]
            + p.click_stale_per_h * age_h
            + p.click_worn * np.einsum("bt,bkt->bk", people.worn[users], topics)
        )
        return np.asarray(draws.squash(leaning) * ~people.clicked[users[:, None], items])

    def _arrive(self, users: Array) -> Array:
        """Activeness and wear of who is here now. The same as `pipeline.ranking.activeness`, of many users at once."""
        people, p = self.people, self.params
        pause_min = self.now_min - people.last_min[users]
        returned = people.requests[users] > 0
        kept = np.exp(-EXACT.decay_per_s * 60 * np.where(returned, pause_min, 0))
        lifted = np.minimum(1.0, people.activeness[users] * kept + EXACT.lift)
        people.activeness[users] = np.where(returned, lifted, EXACT.initial)
        another = ~returned | (pause_min > p.visit_gap_min)
        people.worn[users] *= np.where(another, 0.0, 1.0)[:, None]
        people.depth[users] = np.where(another, 0, people.depth[users] + 1)
        people.pause_min[users] = np.where(returned, pause_min, 1440)
        people.last_min[users] = self.now_min
        people.requests[users] += 1
        return people.activeness[users].copy()

    def _candidates(self, users: Array, numbers: Array) -> tuple[Array, Array]:
        """N of the items that are alive, drawn for each request."""
        alive, n = self.items.alive(self.now_min), self.params.candidates
        keys = draws.key(draws.key(self._keys[users], 2 * numbers)[:, None], 1 + alive[None])
        places = np.argsort(draws.uniform(draws.key(keys, 0)), axis=1, kind="stable")[:, :n]
        padded = np.pad(alive[places], ((0, 0), (0, n - places.shape[1])))
        return padded, np.broadcast_to(np.arange(n) < places.shape[1], padded.shape)

    def _user_features(self, users: Array, activeness: Array) -> Array:
        people, hour = self.people, 2 * np.pi * (self.now_min % 1440) / 1440
        columns = (
            activeness,
            np.minimum(people.depth[users], 10) / 10,
            np.minimum(people.pause_min[users], 1440) / 1440,
            np.minimum(people.requests[users], 50) / 50,
            np.full(len(users), np.sin(hour)),
            np.full(len(users), np.cos(hour)),
        )
        return np.concatenate([people.profile[users], np.column_stack(columns)], axis=1)

    def _item_features(self, users: Array, items: Array) -> Array:
        people, topics = self.people, self.items.topics[items]  # [B, N, topics]
        age_h = (self.now_min - self.items.born_min[items]) / 60
        views, clicks = self._views[items], self._clicks[items]
        columns = (
            np.minimum(age_h, 12) / 12,
            5 * (clicks + 1) / (views + 20),  # click rate of the last hours, drawn to 1 / 20
            np.log1p(views) / 5,
            np.einsum("bt,bnt->bn", people.profile[users], topics),
            np.einsum("bt,bnt->bn", people.worn[users], topics),
            people.seen[users[:, None], items],
        )
        provider = np.eye(self.params.providers)[self.items.provider[items]]
        return np.concatenate([topics, provider, np.stack(columns, axis=-1)], axis=-1)

    def _attention(self, places: int) -> Array:
        return np.asarray(1 / (1 + self.params.attention_decay * np.arange(places)))

    def _count(self, users: Array, items: Array, there: Array, clicked: Array) -> None:
        kept = np.exp(-self.params.tick_min / 60 / self.params.counted_h)
        self._views *= kept
        self._clicks *= kept
        np.add.at(self._views, items[there], 1)
        np.add.at(self._clicks, items[clicked], 1)
        who = np.broadcast_to(users[:, None], items.shape)
        self.people.seen[who[there], items[there]] = True
        self.people.clicked[who[clicked], items[clicked]] = True

    def _please(self, users: Array, items: Array, clicked: Array) -> None:
        p, people, topics = self.params, self.people, self.items.topics[items]
        joy = (
            p.goodwill_click + p.goodwill_hook * self.items.hook[items] + p.goodwill_quality * self.items.quality[items]
        )
        goal = draws.squash(p.goodwill_level + np.sum(joy * clicked, axis=1))
        people.goodwill[users] += p.goodwill_rate * (goal - people.goodwill[users])
        shown = np.mean(topics, axis=1)
        people.worn[users] = p.worn_keep * people.worn[users] + (1 - p.worn_keep) * shown
        clicks = clicked.sum(axis=1, keepdims=True)
        liked = np.einsum("bk,bkt->bt", clicked.astype(float), topics) / np.maximum(clicks, 1)
        rate = 1 - (1 - p.profile_rate) ** clicks
        people.profile[users] += rate * (liked - people.profile[users])

    def _schedule(self, users: Array, keys: Array) -> None:
        p, goodwill = self.params, 2 * self.people.goodwill[users] - 1
        stays = draws.uniform(draws.key(keys, 0)) < draws.squash(p.stay_level + p.stay_goodwill * goodwill)
        pause_min = p.tick_min * (1 + np.asarray(draws.uniform(draws.key(keys, 1)) * p.pause_ticks).astype(int))
        mean_min = 60 * p.absence_h * p.absence_goodwill**-goodwill
        absent_min = p.visit_gap_min + p.tick_min - mean_min * np.log1p(-draws.uniform(draws.key(keys, 2)))
        self.people.next_min[users] = self.now_min + np.where(stays, pause_min, absent_min)

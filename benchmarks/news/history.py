"""Pages with the next request of the same user: what DRN learns from. The last ones, in a ring.

A page waits for its user's next request. Who stays away for longer than the horizon is given up: nothing follows
(discount 0), and the activeness that the page is credited with is what is left of it by then. Pages of users who come
back at once are complete first, so the newest examples are of the livelier users.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.learning.drn.learner import Pages
from pipeline.ranking.activeness import EXACT
from pipeline.simulation.news.feed import Requests

HORIZON_MIN = 1440


class History:
    def __init__(self, capacity: int, users: int, places: int, requests: Requests) -> None:
        """Of `requests` only the widths matter."""
        width, (candidates, item_width) = requests.user_features.shape[1], requests.item_features.shape[1:]
        self.capacity, self.added = capacity, 0
        self._user = np.zeros((capacity, width), np.float32)
        self._items = np.zeros((capacity, places, item_width), np.float32)
        self._shown, self._clicked = np.zeros((2, capacity, places), bool)
        self._next_user = np.zeros((capacity, width), np.float32)
        self._next_items = np.zeros((capacity, candidates, item_width), np.float32)
        self._next_exists = np.zeros((capacity, candidates), bool)
        self._scalars = np.zeros((capacity, 3), np.float32)  # discount, activeness credited, activeness at the request
        self._minute = np.zeros(capacity)
        self._complete = np.zeros(capacity, bool)
        self._open = np.full(users, -1)  # number of the page of each user that waits
        self._fresh: list[int] = []  # numbers of the pages that were completed since they were last asked for

    def arrive(self, requests: Requests) -> None:
        """Before they are answered: they are the next requests of the pages that wait."""
        numbers = self._open[requests.users]
        waits = self._alive(numbers)
        at, who = numbers[waits] % self.capacity, np.flatnonzero(waits)
        in_time = requests.now_min - self._minute[at] <= HORIZON_MIN
        self._give_up(numbers[waits][~in_time])
        at, who = at[in_time], who[in_time]
        self._next_user[at], self._next_items[at] = requests.user_features[who], requests.item_features[who]
        self._next_exists[at] = requests.exists[who]
        self._scalars[at, 0], self._scalars[at, 1] = 1.0, requests.activeness[who]
        self._completed(numbers[waits][in_time])
        self._open[requests.users] = -1

    def add(self, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        numbers = self.added + np.arange(len(requests.users))
        at = numbers % self.capacity
        there = shown >= 0
        rows = np.arange(len(at))[:, None]
        self._user[at] = requests.user_features
        self._items[at] = requests.item_features[rows, np.maximum(shown, 0)] * there[..., None]
        self._shown[at], self._clicked[at] = there, clicked
        self._scalars[at] = np.column_stack([np.zeros((len(at), 2)), requests.activeness])
        self._minute[at], self._complete[at] = requests.now_min, False
        self._open[requests.users] = numbers
        self.added += len(at)

    def expire(self, now_min: int) -> None:
        numbers = self._open[self._alive(self._open)]
        late = numbers[now_min - self._minute[numbers % self.capacity] > HORIZON_MIN]
        self._give_up(late)
        self._open[np.isin(self._open, late)] = -1

    def fresh(self) -> np.ndarray:
        """Numbers of the pages that were completed since the last call, in their order."""
        found, self._fresh = np.array(self._fresh, int), []
        return found[self._alive(found)]

    def sample(self, rng: np.random.Generator, updates: int, size: int) -> np.ndarray:
        """[updates, size] numbers of complete pages."""
        numbers = np.arange(max(0, self.added - self.capacity), self.added)
        complete = numbers[self._complete[numbers % self.capacity]]
        return complete[rng.integers(0, len(complete), (updates, size))]

    def pages(self, numbers: np.ndarray, beta: float) -> Pages:
        """With the axis of one seed: [..., n] numbers -> [..., 1, n, ...]."""
        at = (numbers % self.capacity)[..., None, :]
        discount, credited = self._scalars[at, 0], self._scalars[at, 1]
        reward = (self._clicked[at] + np.float32(beta) * credited[..., None]).astype(np.float32)
        following: tuple[Any, ...] = (self._next_user[at], self._next_items[at], self._next_exists[at])
        return Pages(self._user[at], self._items[at], self._shown[at], reward, discount, *following)

    def _alive(self, numbers: np.ndarray) -> np.ndarray:
        """Which of them are pages that the ring still holds."""
        return (numbers >= 0) & (numbers >= self.added - self.capacity)

    def _give_up(self, numbers: np.ndarray) -> None:
        at = numbers % self.capacity
        left = np.exp(-EXACT.decay_per_s * 60 * HORIZON_MIN)
        self._next_exists[at] = False
        self._scalars[at, 0], self._scalars[at, 1] = 0.0, self._scalars[at, 2] * left
        self._completed(numbers)

    def _completed(self, numbers: np.ndarray) -> None:
        self._complete[numbers % self.capacity] = True
        self._fresh += numbers.tolist()

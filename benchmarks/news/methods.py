"""What ranks pages: at random, by a linear model, or as `benchmarks.news.ranking` does it by DRN."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pipeline.ranking.ftrl import Ftrl
from pipeline.ranking.linucb import LinUcb
from pipeline.simulation.news.feed import Requests


class Method(Protocol):
    def show(self, requests: Requests, places: int) -> np.ndarray:
        """Positions among the candidates, [B, K]; -1 where there are too few."""

    def heard(self, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        """What became of the pages, as they were shown by whoever."""

    def begin(self) -> None:
        """The log of others that it starts from is at an end."""

    def minor(self, now_min: int) -> None:
        """A minor update is due."""

    def major(self, now_min: int) -> None:
        """A major update is due."""

    def updates(self) -> dict[str, int]:
        """How many minor updates there were, by what became of them."""


def best_first(scores: np.ndarray, exists: np.ndarray, places: int) -> np.ndarray:
    """[B, N] -> positions [B, K]; of equal scores the one that comes first."""
    order = np.argsort(np.where(exists, -scores, np.inf), axis=1, kind="stable")[:, :places]
    return np.where(np.take_along_axis(exists, order, axis=1), order, -1)


class Still:
    """What does not update."""

    def heard(self, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        pass

    def begin(self) -> None:
        pass

    def minor(self, now_min: int) -> None:
        pass

    def major(self, now_min: int) -> None:
        pass

    def updates(self) -> dict[str, int]:
        return {}


class Random(Still):
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])

    def show(self, requests: Requests, places: int) -> np.ndarray:
        return best_first(self._rng.random(requests.items.shape), requests.exists, places)


class Linear(Still):
    """FTRL or LinUCB on the columns that DRN sees, and a constant. Learns at every minor update."""

    def __init__(self, model: Ftrl | LinUcb) -> None:
        self.model = model
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def show(self, requests: Requests, places: int) -> np.ndarray:
        x = columns(requests)
        scores = self.model.scores(x) if isinstance(self.model, LinUcb) else self.model.predict(x)
        return best_first(scores, requests.exists, places)

    def heard(self, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        there = shown >= 0
        x = columns(requests)[np.arange(len(shown))[:, None], np.maximum(shown, 0)]
        self._waiting.append((x[there], clicked[there].astype(float)))

    def begin(self) -> None:
        self._learn()

    def minor(self, now_min: int) -> None:
        self._learn()

    def _learn(self) -> None:
        if not self._waiting:
            return
        x, clicked = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        if isinstance(self.model, LinUcb):
            self.model.learn(x, clicked)
        else:
            self.model.learn(x, clicked, chunk=10)  # about a page at a time
        self._waiting.clear()


def columns(requests: Requests) -> np.ndarray:
    """[B, N, 1 + U + I]."""
    user = np.repeat(requests.user_features[:, None], requests.items.shape[1], axis=1)
    one = np.ones((*requests.items.shape, 1))
    return np.concatenate([one, user, requests.item_features], axis=-1).astype(np.float64)

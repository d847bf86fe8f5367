"""LinUCB with one linear model for all items: a bandit to compare with. Pure.

News items live too briefly for a model of their own each (the disjoint form of the paper); what is learned has to be
about their features.

Source: Li, Chu, Langford & Schapire, WWW 2010, Algorithm 1, with theta shared by all arms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class LinUcb:
    """`a` = ridge I + sum x x^T and `b` = sum r x are its whole state."""

    def __init__(self, features: int, alpha: float = 1.0, ridge: float = 1.0) -> None:
        self.alpha = alpha
        self.a, self.b = ridge * np.eye(features), np.zeros(features)
        self._solve()

    def scores(self, x: Array) -> Array:
        """Upper confidence bounds: theta x + alpha sqrt(x^T A^-1 x), [..., features] -> [...]."""
        spread = np.einsum("...i,...i->...", x @ self._inverse, x)
        return np.asarray(x @ self.theta + self.alpha * np.sqrt(np.maximum(spread, 0.0)))

    def learn(self, x: Array, reward: Array) -> None:
        """Examples [n, features] and rewards [n]; their order does not matter."""
        self.a = self.a + x.T @ x
        self.b = self.b + reward @ x
        self._solve()

    def _solve(self) -> None:
        self._inverse = np.linalg.inv(self.a)
        self.theta = self._inverse @ self.b

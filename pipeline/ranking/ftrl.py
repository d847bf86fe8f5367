"""FTRL-Proximal logistic regression: a click predictor that learns online, to compare with. Pure.

Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct

Array = np.ndarray[Any, np.dtype[Any]]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.1
    l2: float = 1.0


class Ftrl:
    """Weights of features that are mostly 0 or within some units of it; `z` and `n` are its whole state."""

    def __init__(self, features: int, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self.z, self.n = np.zeros(features), np.zeros(features)

    @property
    def weights(self) -> Array:
        s = self._settings
        rate = (s.beta + np.sqrt(self.n)) / s.alpha + s.l2
        return np.where(np.abs(self.z) <= s.l1, 0.0, -(self.z - np.sign(self.z) * s.l1) / rate)

    def predict(self, x: Array) -> Array:
        """Probability of a click: [..., features] -> [...]."""
        return np.asarray(_sigmoid(x @ self.weights))

    def learn(self, x: Array, clicked: Array, chunk: int = 1) -> None:
        """Examples [n, features] and labels [n], in order. A chunk is one step along the sum of its gradients; the
        published algorithm has chunks of 1."""
        for start in range(0, len(x), chunk):
            some = x[start : start + chunk]
            self.apply((self.predict(some) - clicked[start : start + chunk]) @ some)

    def apply(self, gradient: Array) -> None:
        """One step along a gradient [features] of the loss."""
        grown = self.n + gradient * gradient
        sigma = (np.sqrt(grown) - np.sqrt(self.n)) / self._settings.alpha
        self.z = self.z + gradient - sigma * self.weights
        self.n = grown


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))

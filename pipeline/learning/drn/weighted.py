"""Networks whose weights go out and come back by name, one seed (or ranker) of the stack at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class Weighted(tf.Module):
    """Variables are [S, ...], and their names differ."""

    def by_name(self) -> dict[str, tf.Variable]:
        return {variable.name.removesuffix(":0"): variable for variable in self.variables}

    def weights(self, seed: int = 0) -> dict[str, np.ndarray]:
        return {name: variable[seed].numpy() for name, variable in self.by_name().items()}

    def assign(self, weights: Mapping[str, np.ndarray], seed: int = 0) -> None:
        for name, variable in self.by_name().items():
            variable[seed].assign(weights[name])

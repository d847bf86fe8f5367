"""Proximal policy optimisation: several epochs over a rollout, with the ratio to the logged density clipped.

The old density is the one that was logged when the page was served, of the raw action before clipping, not one that is
recomputed: features are normalised anew with every version. Where minibatches show that mu has gone further than
`max_kl` from what was served, mu rests for the rest of the rollout; D goes on. Rollouts that were decided before the
last one was learned from count their distance from further back, so mu waits for the log to catch up.
Source: Schulman et al. 2017, equations 7 and 9; the early stop is that of widespread implementations.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.policy_gradient import Losses, OnPolicy
from pipeline.learning.policy_losses import Surrogate, clipped_surrogate, normalised


class Ppo(OnPolicy):
    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config, "ppo")
        self._algorithm = config.algorithm

    def _prepared(self, advantage: np.ndarray, usable: np.ndarray) -> np.ndarray:
        return normalised(advantage, usable)

    def _lots(self, pages: int, number: int) -> Iterator[np.ndarray]:
        """Every page once in each epoch. Seeds shuffle as each would alone."""
        algorithm = self._algorithm
        draws = [np.random.default_rng([seed % 2**64, number]) for seed in algorithm.all_seeds]
        for _ in range(algorithm.epochs):
            order = np.stack([draw.permutation(pages) for draw in draws])
            yield from np.array_split(order, algorithm.minibatches, axis=1)

    def _surrogate(self, log_ratio: tf.Tensor, log_pi: tf.Tensor, advantage: tf.Tensor) -> Surrogate:
        return clipped_surrogate(log_ratio, advantage, self._algorithm.clip)

    def _goes_on(self, losses: Losses, going: tf.Tensor) -> tf.Tensor:
        return going & (losses.kl <= self._algorithm.max_kl)

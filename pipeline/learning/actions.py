"""The action in units, and the network that is served: inputs of the config -> action inside its range."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.networks import Draw, Inputs, Mlp, Tower


class ActionSpace:
    """The action in units: 0 at the baseline, 1 half a range above it. `low` and `high` are in units too."""

    def __init__(self, config: FeatureConfig):
        bounds = np.array([d.range for d in config.action], np.float64)
        baseline = np.array([d.baseline for d in config.action], np.float64)
        half = (bounds[:, 1] - bounds[:, 0]) / 2
        self.size = len(config.action)
        self.baseline, self.half_range = baseline.astype(np.float32), half.astype(np.float32)
        self.bounds = bounds.astype(np.float32)
        self.low, self.high = ((bounds - baseline[:, None]) / half[:, None]).astype(np.float32).T

    def units(self, action: tf.Tensor) -> tf.Tensor:
        return (action - self.baseline) / self.half_range

    def action(self, units: tf.Tensor) -> tf.Tensor:
        """Exactly the baseline where units are 0, and never outside the range."""
        raw = self.baseline + self.half_range * units
        return tf.clip_by_value(raw, self.bounds[:, 0], self.bounds[:, 1])


class Served(tf.Module):
    """What is served of a learner: S seeds of K policies. `tower` has an axis of seeds, `heads` one of policies too.

    A served policy is one seed and one policy, with a copy of their weights. Before any update the action is exactly
    the baseline.
    """

    def __init__(self, space: ActionSpace, tower: tf.Module, heads: tf.Module) -> None:
        super().__init__(name="actor")
        self.space, self.tower, self.heads = space, tower, heads  # heads: action in units, [S, K, B, N]

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        """[S, B, ...] -> action [S, K, B, N]."""
        return self.space.action(self.heads(self.tower(inputs)))

    def copy_from(self, other: Served, seed: int, policy: int) -> None:
        """Of another one's seeds and policies one of each. This one has room for just that."""
        for mine, theirs in zip(self.tower.variables, other.tower.variables, strict=True):
            mine.assign(theirs[seed : seed + 1])
        for mine, theirs in zip(self.heads.variables, other.heads.variables, strict=True):
            mine.assign(theirs[seed : seed + 1, policy : policy + 1])


class Actor(Served):
    """mu of every policy: a head of its own on the shared tower."""

    def __init__(self, config: FeatureConfig, draw: Draw, policies: int) -> None:
        tower, space = Tower(config, draw), ActionSpace(config)
        super().__init__(
            space, tower, Mlp(draw, "actor", tower.width, config.algorithm.head, space.size, stack=policies)
        )

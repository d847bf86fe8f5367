"""The learners of a feed's policies: one for major updates of each, and one for its TD steps where it takes such."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.config.ranking import Gradient
from pipeline.config.schema import FeatureConfig
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.history import History
from pipeline.learning.drn.learner import Drn, Settings
from pipeline.learning.drn.network import kind_of

_UPDATES_AT_ONCE = 16  # whose pages are encoded together; a matter of memory and speed

Weights = dict[str, np.ndarray]


class Trained(NamedTuple):
    weights: Weights
    losses: dict[str, float]  # means over the updates
    updates: int
    pages: int


class Learners(tf.Module):
    """All policies begin with the same weights: they differ in what is tried, and in what users say of it."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="learners")
        assert config.ranking is not None
        self._ranking, self._seed = config.ranking, config.algorithm.seed
        self.major = {policy: _learner(config) for policy in config.learned_policies()}
        by_gradient = [p for p in self.major if isinstance(config.ranking.minor_of(p), Gradient)]
        self.minor = {policy: _learner(config) for policy in by_gradient}
        self._fresh: Weights = next(iter(self.major.values())).online.weights()

    def fresh(self, policy: str) -> Weights:
        """Those that say 0 of everything."""
        return dict(self._fresh)

    def of(self, policy: str) -> list[tf.Variable]:
        """All that is the policy's, its optimisers among it."""
        return [v for kind in (self.major, self.minor) if policy in kind for v in kind[policy].variables]

    def streamed(
        self, policy: str, weights: Weights, history: History, numbers: np.ndarray, snapshot: Snapshot
    ) -> Trained | None:
        """TD steps on these pages, each page once; what fills no batch is left out, but for one of fewer pages."""
        minor = self._ranking.minor_of(policy)
        assert isinstance(minor, Gradient)
        size = min(minor.batch, len(numbers))
        if size == 0:
            return None
        batches = numbers[: len(numbers) // size * size].reshape(-1, size)
        return _trained(self.minor[policy], weights, history, batches, snapshot)

    def replayed(
        self, policy: str, weights: Weights, history: History, numbers: np.ndarray, snapshot: Snapshot, salt: int
    ) -> Trained | None:
        """A major update on pages drawn from these; None where they do not fill a batch."""
        major = self._ranking.major
        assert major is not None
        if len(numbers) < major.batch:
            return None
        rng = np.random.default_rng([self._seed, salt])
        batches = numbers[rng.integers(0, len(numbers), (major.updates, major.batch))]
        begin = weights if major.start == "served" else self._fresh
        return _trained(self.major[policy], begin, history, batches, snapshot)


def _learner(config: FeatureConfig) -> Drn:
    algorithm = config.algorithm
    settings = Settings(
        algorithm.gamma, True, algorithm.hidden, algorithm.learning_rate, algorithm.target_period, (algorithm.seed,)
    )
    return Drn(kind_of(config), settings)


def _trained(learner: Drn, weights: Weights, history: History, batches: np.ndarray, snapshot: Snapshot) -> Trained:
    """From the given weights on, with these to look ahead with. The optimiser keeps what it knows of former updates."""
    learner.online.assign(weights)
    if learner.target.networks is not learner.online:
        learner.target.networks.assign(weights)
    reports: list[dict[str, Any]] = []
    for start in range(0, len(batches), _UPDATES_AT_ONCE):
        found = learner.steps(history.batches(batches[start : start + _UPDATES_AT_ONCE], snapshot))
        reports.append({name: x.numpy() for name, x in found.items()})
    losses = {name: float(np.concatenate([r[name] for r in reports]).mean()) for name in reports[0]}
    return Trained(learner.online.weights(), losses, len(batches), len(np.unique(batches)))

"""A3C without races: workers with a part of the sessions each, and parameters as they were at their last turn.

A worker takes the gradient of its rollout at its own copy, applies it to the shared parameters, and copies these. So it
lags behind by what the others did in the meantime, as in the original, but the order of turns is that in which rollouts
fill up in the log, not that of a scheduler: the same log gives the same weights, and a race would not.

What is left out of the original: its workers also act with their copy. Here the agent acts, with the version that is
served, and its logged density corrects for that as in `a2c`. Moments of the optimiser are shared (Adam; there RMSProp).
Source: Mnih et al. 2016, algorithm S3.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.a2c import A2c
from pipeline.learning.networks import drawing
from pipeline.learning.policy_value import PolicyValue
from pipeline.learning.rollouts import Lesson, Pages, Turn


class A3c(A2c):
    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config, "a3c")
        draw = drawing(config.algorithm.all_seeds)
        self._working = PolicyValue(config, draw, len(config.learned_policies()))  # of the worker whose turn it is
        self.copies = [[_copy(v) for v in self._working.variables] for _ in range(config.algorithm.workers)]

    @property
    def _used(self) -> PolicyValue:
        return self._working

    def learn(self, pages: Pages, turn: Turn) -> Lesson:
        copy = self.copies[turn.worker]
        _assign(self._working.variables, copy)
        lesson = super().learn(pages, turn)
        _assign(copy, self.networks.variables)
        return lesson


def _copy(variable: tf.Variable) -> tf.Variable:
    """Under its name: where features change, or rows of a table, it goes the way of what it is a copy of."""
    return tf.Variable(variable, name=variable.name.removesuffix(":0"))


def _assign(these: list[tf.Variable], those: list[tf.Variable]) -> None:
    for this, that in zip(these, those, strict=True):
        this.assign(that)

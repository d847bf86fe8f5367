"""Which learner and which served network belong to an `algorithm.kind`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import Actor
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.learner import Learner
from pipeline.learning.networks import Draw, drawing


class Kind(NamedTuple):
    learner: Callable[[FeatureConfig], Learner]
    actor: Callable[[FeatureConfig, Draw, int], Actor]


KINDS: dict[type, Kind] = {
    schema.Ddpg: Kind(Ddpg, Actor),
}


def learner_of(config: FeatureConfig) -> Learner:
    return KINDS[type(config.algorithm)].learner(config)


def actor_of(config: FeatureConfig, seeds: Sequence[int], policies: int) -> Actor:
    """A fresh one: exactly the baseline."""
    return KINDS[type(config.algorithm)].actor(config, drawing(seeds), policies)

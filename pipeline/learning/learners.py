"""Which learner and which served network belong to an `algorithm.kind`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.learning.a2c import A2c
from pipeline.learning.a3c import A3c
from pipeline.learning.actions import Actor, Served
from pipeline.learning.actor_critic import ddpg_actor
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.dqn import Dqn, greedy_actor
from pipeline.learning.errors import TrainerError
from pipeline.learning.learner import Learner
from pipeline.learning.networks import Draw, drawing
from pipeline.learning.ppo import Ppo
from pipeline.learning.q_learning import QLearning, table_actor
from pipeline.learning.rollouts import RolloutLearner


class Kind(NamedTuple):
    learner: Callable[[FeatureConfig], Learner | RolloutLearner]
    actor: Callable[[FeatureConfig, Draw, int], Served]


KINDS: dict[type, Kind] = {
    schema.Ddpg: Kind(Ddpg, ddpg_actor),
    schema.Dqn: Kind(Dqn, greedy_actor),
    schema.DoubleDqn: Kind(Dqn, greedy_actor),
    schema.DuelingDqn: Kind(Dqn, greedy_actor),
    schema.QLearning: Kind(QLearning, table_actor),
    schema.A2c: Kind(A2c, Actor),
    schema.A3c: Kind(A3c, Actor),
    schema.Ppo: Kind(Ppo, Actor),
}


def learner_of(config: FeatureConfig) -> Learner | RolloutLearner:
    """Raises TrainerError for policies that rank items: `drn/training.py` has their learners."""
    if type(config.algorithm) not in KINDS:
        msg = "algorithm: expected a policy whose action is a number, found drn; a log that is replayed initialises it"
        raise TrainerError(msg)
    return KINDS[type(config.algorithm)].learner(config)


def actor_of(config: FeatureConfig, seeds: Sequence[int], policies: int) -> Served:
    """A fresh one: exactly the baseline."""
    return KINDS[type(config.algorithm)].actor(config, drawing(seeds), policies)

"""The networks of `ddpg` as the config composes them, together: what a target is a copy of."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import Actor, Served
from pipeline.learning.networks import Draw, Inputs, Mlp, NetworkAdvantages, QuadraticAdvantages, Tower
from pipeline.learning.parabola import TopHeads, top_actor


class Ahead(NamedTuple):
    """What a policy that goes on from a state is worth."""

    value: tf.Tensor  # [S, B] V(s)
    advantage: tf.Tensor  # [S, K, B] A_k(s, mu_k(s))
    units: tf.Tensor  # [S, K, B, N] mu_k(s) as it would be executed, hence clipped


def ddpg_actor(config: FeatureConfig, draw: Draw, policies: int) -> Served:
    return (Actor if config.algorithm.actor == "ascent" else top_actor)(config, draw, policies)


class NoValue(tf.Module):
    """V of a critic that has none: 0, with nothing to train. What is regressed as A_k is then all of Q_k."""

    def __call__(self, hidden: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(hidden[..., :1])


class ActorCritic(tf.Module):
    """Towers, V, and for each policy k A_k and mu_k. With `towers: shared` the actors read the critic's tower."""

    def __init__(self, config: FeatureConfig, draw: Draw, policies: int) -> None:
        super().__init__(name="actor_critic")
        algorithm = config.algorithm
        self.climbs = algorithm.actor == "ascent"
        self.actor = ddpg_actor(config, draw, policies)
        self.space = self.actor.space
        self.tower = self.actor.tower if algorithm.towers == "shared" else Tower(config, _of_critic(draw))
        width = self.tower.width
        self.value_head = NoValue() if algorithm.critic == "plain" else Mlp(draw, "value", width, algorithm.head, 1)
        self.advantage_heads = self._advantages(config, draw, policies)

    def _advantages(self, config: FeatureConfig, draw: Draw, policies: int) -> QuadraticAdvantages | NetworkAdvantages:
        algorithm = config.algorithm
        if isinstance(self.actor.heads, TopHeads):
            return self.actor.heads.advantages
        advantages = QuadraticAdvantages if algorithm.advantage == "quadratic" else NetworkAdvantages
        return advantages(draw, self.tower.width, self.space.size, algorithm.head, policies)

    @property
    def shared(self) -> bool:
        return self.tower is self.actor.tower

    def value(self, hidden: tf.Tensor) -> tf.Tensor:
        return tf.squeeze(self.value_head(hidden), -1)  # [S, B, H] -> [S, B]

    def hidden(self, state: Inputs) -> tuple[tf.Tensor, tf.Tensor]:
        """What the critic reads, and what the actors read: of a shared tower the same, which they do not train."""
        hidden = self.tower(state)
        return hidden, tf.stop_gradient(hidden) if self.shared else self.actor.tower(state)

    def ahead(self, state: Inputs) -> Ahead:
        hidden, for_actors = self.hidden(state)
        units = tf.clip_by_value(self.actor.heads(for_actors), self.space.low, self.space.high)
        advantage = self.advantage_heads(self.advantage_heads.of_state(hidden), units)
        return Ahead(self.value(hidden), advantage, units)

    def at_baseline(self, state: Inputs) -> tf.Tensor:
        """A_k(s, baseline) [S, K, B]."""
        part = self.advantage_heads.of_state(self.tower(state))
        shape = tf.shape(part)
        return self.advantage_heads(part, tf.zeros([shape[0], shape[1], shape[2], self.space.size]))


def _of_critic(draw: Draw) -> Draw:
    """Draws of its own: two towers that start alike would be one more thing to explain."""
    return lambda name, shape, bound: draw(f"critic_{name}", shape, bound)

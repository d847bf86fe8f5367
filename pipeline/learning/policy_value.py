"""The networks of on-policy learners: V of the baseline, what each policy adds to it, and the policies' means."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import ActionSpace, Actor
from pipeline.learning.losses import ranks
from pipeline.learning.networks import Draw, Inputs, Mlp


class Group(NamedTuple):
    """Variables that learn together; `axes` of them at the front, seeds and policies, have members that may rest."""

    variables: tuple[tf.Variable, ...]
    axes: int


class Seen(NamedTuple):
    """What the networks say of a state about one policy k; of the baseline, about itself."""

    value: tf.Tensor  # [S, B] V(s)
    gain: tf.Tensor  # [S, B] D_k(s)
    mean: tf.Tensor  # [S, B, N] mu_k(s) as it is served


class PolicyValue(tf.Module):
    """V_k(s) = V(s) + D_k(s): the value of going on with policy k, noise included, is V and what k adds.

    V learns from the baseline's pages, so their traffic serves the policies' critics as well, and D_k starts at 0:
    a policy is worth what the baseline is until its own pages say otherwise.
    """

    def __init__(self, config: FeatureConfig, draw: Draw, policies: int) -> None:
        super().__init__(name="policy_value")
        algorithm = config.algorithm
        self._trained_by = frozenset(algorithm.tower_trained_by)
        self.actor = Actor(config, draw, policies)
        self.space, self.tower, self.actor_heads = self.actor.space, self.actor.tower, self.actor.heads
        self.value_head = Mlp(draw, "value", self.tower.width, algorithm.head, 1)
        self.gain_heads = Mlp(draw, "gain", self.tower.width, algorithm.head, 1, stack=policies)

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        """Tower, V, D and mu."""
        parts = ((self.tower, 1), (self.value_head, 1), (self.gain_heads, 2), (self.actor_heads, 2))
        return tuple(Group(tuple(part.trainable_variables), axes) for part, axes in parts)

    def __call__(self, state: Inputs, of_policy: tf.Tensor) -> Seen:
        """`of_policy` [K]: 1 at one policy, or nowhere."""
        hidden = self.tower(state)
        to_value, to_actor = (self._part("value", hidden), self._part("actor", hidden))
        units = _pick(self.actor_heads(to_actor), of_policy)
        mean = served(self.space, units)
        gain = _pick(self.gain_heads(to_value), of_policy)
        return Seen(tf.squeeze(self.value_head(to_value), -1), tf.squeeze(gain, -1), mean)

    def _part(self, loss: str, hidden: tf.Tensor) -> tf.Tensor:
        return hidden if loss in self._trained_by else tf.stop_gradient(hidden)

    def all_policies(self, state: Inputs) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """V [S, B], D_k [S, K, B] and mu_k [S, K, B, N] inside the range."""
        hidden = self.tower(state)
        gain = tf.squeeze(self.gain_heads(hidden), -1)
        return tf.squeeze(self.value_head(hidden), -1), gain, self.space.action(self.actor_heads(hidden))


def served(space: ActionSpace, units: tf.Tensor) -> tf.Tensor:
    """The action as it is served, clipped, with a gradient that is 0 only where descending it would lead further out.

    That of a plain clip is 0 beyond the bounds, and a mean that had left its range would never come back.
    """

    @tf.custom_gradient
    def clipped(units: tf.Tensor) -> tuple[tf.Tensor, object]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            outwards = ((units >= space.high) & (upstream < 0)) | ((units <= space.low) & (upstream > 0))
            return tf.where(outwards, 0.0, upstream * space.half_range)

        return space.action(units), gradient

    return clipped(units)


def _pick(x: tf.Tensor, of_policy: tf.Tensor) -> tf.Tensor:
    """[S, K, B, ...] -> [S, B, ...] of one policy, 0 of none."""
    ranks((x, 4), (of_policy, 1))
    return tf.reduce_sum(x * of_policy[:, None, None], axis=1)

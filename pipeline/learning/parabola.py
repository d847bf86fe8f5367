"""The actor that its critic implies: where A_k(s, .) is a parabola, its top is known without a network that climbs it.

An actor that climbs is behind its critic by what it has yet to climb, and next to a bound it hardly moves. This one is
never behind, and has no step size. Source of the idea: Gu et al. 2016, "Continuous deep Q-learning with model-based
acceleration" (NAF), where the parabola has its top at a network's output; here the top follows from the parabola, so it
may lie outside the range, and a parabola that opens upwards is highest at a bound.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import ActionSpace, Served
from pipeline.learning.losses import ranks
from pipeline.learning.networks import Draw, QuadraticAdvantages, Tower


def top(slope: tf.Tensor, curvature: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """u in [low, high] at which slope u + curvature u^2 / 2 is largest, one by one; 0 where no u is better than 0."""
    ranks((slope, 4), (curvature, 4), (low, 1), (high, 1))

    def gain(u: tf.Tensor) -> tf.Tensor:
        return u * (slope + 0.5 * curvature * u)

    falls = curvature < 0
    inside = tf.clip_by_value(-slope / tf.where(falls, curvature, -1.0), low, high)
    bound = tf.where(gain(high) >= gain(low), high, low)
    best = tf.where(falls, inside, bound)
    return tf.where(gain(best) > 0, best, 0.0)  # [S, K, B, N]


class TopHeads(tf.Module):
    """What the tower gives -> the action in units: [S, B, H] -> [S, K, B, N].

    Where A_k - cost_k |u|^2 is highest. The cost is what a prior belief still weighs that the baseline is best: without
    it the top is, at first, where luck puts it. A policy whose gate is shut stays at the baseline, whatever its A says.
    Both are variables like the weights, so that they are served with them.
    """

    def __init__(self, advantages: QuadraticAdvantages, space: ActionSpace, draw: Draw, policies: int) -> None:
        super().__init__(name="top")
        self.advantages, self._bounds = advantages, (space.low, space.high)
        nothing = tf.convert_to_tensor(draw("gate", (policies,), 0.0))  # [S, K]
        self.gate = tf.Variable(tf.cast(nothing, tf.bool), trainable=False, name="gate")
        self.cost = tf.Variable(nothing, trainable=False, name="cost")

    def __call__(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.units(self.advantages.of_state(hidden))

    def units(self, state_part: tf.Tensor) -> tf.Tensor:
        _, slope, curvature = self.advantages.coefficients(state_part)
        gate, cost = (x[:, :, None, None] for x in (self.gate, self.cost))
        return tf.where(gate, top(slope, curvature - 2 * cost, *self._bounds), 0.0)

    def open(self, active: tf.Tensor, cost: tf.Tensor) -> None:
        """[K]: which policies may leave the baseline from now on, and at what cost of half a range."""
        self.gate.assign(tf.broadcast_to(active, tf.shape(self.gate)))
        self.cost.assign(tf.broadcast_to(cost, tf.shape(self.cost)))


class Prior(tf.Module):
    """Of every policy: as if `transitions` pages had shown that half a range away from the baseline costs `cost`.

    The parabola that fits those and n pages of its own data is, to the factor 1 + transitions / n, the one of the data
    less cost * transitions / n * u^2. n is counted in updates of A_k, each of which stands for
    1 / updates_per_transition pages: a policy that is new has none, whatever others have learned from.
    """

    def __init__(self, algorithm: schema.Ddpg, policies: int) -> None:
        super().__init__(name="prior")
        self._weight = (algorithm.prior_cost or 0.0) * (algorithm.prior_transitions or 5_000)
        self._per_page = algorithm.updates_per_transition
        self.updates = tf.Variable(tf.zeros([policies]), trainable=False, name="prior_updates")

    def cost(self) -> tf.Tensor:
        """[K], with one update more behind it."""
        return self._weight * self._per_page / self.updates.assign_add(tf.ones_like(self.updates))


def top_actor(config: FeatureConfig, draw: Draw, policies: int) -> Served:
    """The tower, and A of every policy: mu needs no weights of its own."""
    tower, space = Tower(config, draw), ActionSpace(config)
    advantages = QuadraticAdvantages(draw, tower.width, space.size, config.algorithm.head, policies)
    return Served(space, tower, TopHeads(advantages, space, draw, policies))

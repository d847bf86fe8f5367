"""DQN, double DQN and dueling DQN over a grid of actions, for all seeds and learned policies k in one compiled step.

They are one learner that differs in who chooses the next action (the target network, or the online one) and in the
shape of Q. All policies share the tower, and every Q_k learns from every page: the one-step target holds for whatever
action was executed. Policies differ in the weights that their heads start from, and in what they are served as.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import ActionSpace, Served
from pipeline.learning.greedy import GreedyHeads, Report, best, evaluated, reported
from pipeline.learning.grid import ActionGrid
from pipeline.learning.learner import Batch, Evaluation, batch_spec, for_seeds, in_turn, inputs_spec
from pipeline.learning.networks import Draw, Inputs, Mlp, Tower, drawing
from pipeline.learning.optimiser import Adam
from pipeline.learning.q_losses import dueling, huber, q_learning
from pipeline.learning.reducing import averaged
from pipeline.learning.targets import NoTarget, Periodic, Target

_TARGET_PERIOD = 200  # updates


class _Variant(NamedTuple):
    double: bool  # the online network chooses the next action, the target network values it
    dueling: bool  # Q = V + A - mean A


_VARIANTS: dict[type, _Variant] = {
    schema.Dqn: _Variant(double=False, dueling=False),
    schema.DoubleDqn: _Variant(double=True, dueling=False),
    schema.DuelingDqn: _Variant(double=True, dueling=True),  # as Wang et al. 2016 trained it
}


def greedy_actor(config: FeatureConfig, draw: Draw, policies: int) -> Served:
    """The tower and, per policy, Q or with a dueling network A: what all actions have in common chooses none."""
    tower, grid = Tower(config, draw), ActionGrid(config)
    q = Mlp(draw, "q", tower.width, config.algorithm.head, grid.size, stack=policies)
    return Served(ActionSpace(config), tower, GreedyHeads(grid, q, draw, policies))


class QNetwork(tf.Module):
    """State inputs [S, B, ...] -> Q_k of every atom [S, K, B, M]; 0 before any update.

    V of a dueling network is one for all policies: it is the mean of Q over the atoms, all Q_k have the same target,
    and what all pages have in common is learned once.
    """

    def __init__(self, config: FeatureConfig, draw: Draw, policies: int, dueling: bool) -> None:
        super().__init__(name="q_network")
        self.actor = greedy_actor(config, draw, policies)
        self.value = Mlp(draw, "value", self.actor.tower.width, config.algorithm.head, 1) if dueling else None

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        hidden = self.actor.tower(inputs)
        q = self.actor.heads.q(hidden)
        return q if self.value is None else dueling(tf.squeeze(self.value(hidden), -1), q)


class Dqn(tf.Module):
    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="dqn")
        algorithm, policies = config.algorithm, len(config.learned_policies())
        self.gamma, self._variant = algorithm.gamma, _VARIANTS[type(algorithm)]
        self._huber = algorithm.loss == "huber"
        self._seeds, self._policies = len(algorithm.all_seeds), max(policies, 1)

        def network() -> QNetwork:
            return QNetwork(config, drawing(algorithm.all_seeds), policies, self._variant.dueling)

        self.online = network()
        period = algorithm.target_period or _TARGET_PERIOD
        still = algorithm.target == "none"
        self.target: Target = NoTarget(self.online) if still else Periodic(self.online, network(), period)
        self.actor = self.online.actor
        self.space, self.heads = self.actor.space, self.actor.heads
        self.adam = Adam(self.online.trainable_variables, algorithm.learning_rate)
        signature = (batch_spec(config, self._seeds), tf.TensorSpec([policies], tf.bool))
        self.step = tf.function(self._step, input_signature=signature, autograph=False)
        self.steps = in_turn(self.step)
        self.evaluate = tf.function(self._evaluate, input_signature=(inputs_spec(config),), autograph=False)

    @property
    def unserved(self) -> dict[str, tf.Module]:
        return {} if self.online.value is None else {"value": self.online.value}

    def losses(self, batch: Batch) -> Report:
        q_tm1, q_t = self.online(batch.state), self.target.networks(batch.next_state)
        choice_t = best(self.online(batch.next_state) if self._variant.double else q_t)
        atom = self.heads.grid.nearest(self.space.units(batch.action))
        fit = q_learning(q_tm1, atom, batch.reward, self.gamma * batch.discount, q_t, choice_t)
        return reported(huber(fit) if self._huber else fit, evaluated(self.heads, self.space, q_tm1))

    def _evaluate(self, inputs: Inputs) -> Evaluation:
        return evaluated(self.heads, self.space, self.online(for_seeds(inputs, self._seeds)))

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = self.losses(batch)
            loss = tf.reduce_sum(losses.q_loss) / self._policies  # seeds share no weight
        variables = self.online.trainable_variables
        self.adam.apply(averaged(tape.gradient(loss, variables)))
        self.heads.open(active)
        self.target.follow()
        return losses._asdict()

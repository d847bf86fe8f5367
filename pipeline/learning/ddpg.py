"""DDPG with a split critic: Q_k(s, a) = V(s) + A_k(s, a), for all seeds and learned policies k in one compiled step.

V is the value of the baseline and learns from pages that the baseline decided. Pages on which the agent fell back to
the baseline are among them: the one-step target holds for the action that was executed, whoever's bucket it was in.
A_k learns the residual from every page. mu_k = baseline + half range * head_k, and head_k ascends A_k only.
There is no target network: targets are stopped, and `q_abs` against r_max / (1 - gamma) raises the alarm.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import Actor
from pipeline.learning.learner import Batch, Evaluation, batch_spec, for_seeds, inputs_spec
from pipeline.learning.losses import baseline_value, invert_gradient, masked_mean, policy_ascent, residual_advantage
from pipeline.learning.networks import (
    Inputs,
    Mlp,
    NetworkAdvantages,
    QuadraticAdvantages,
    drawing,
    for_policies,
)
from pipeline.learning.optimiser import Adam


class Losses(NamedTuple):
    """Means over the batch: three losses, then what else is worth watching."""

    value_loss: tf.Tensor  # [S]
    advantage_loss: tf.Tensor  # [S, K]
    actor_loss: tf.Tensor  # [S, K]
    q_abs: tf.Tensor  # [S, K] |V(s) + A_k(s, a)|
    value_mean: tf.Tensor  # [S] V(s)
    value_abs: tf.Tensor  # [S] |V(s)|
    advantage_mean: tf.Tensor  # [S, K] A_k(s, mu_k(s))
    advantage_abs: tf.Tensor  # [S, K] |A_k(s, mu_k(s))|
    action_mean: tf.Tensor  # [S, K, N] mu_k(s) inside the range


class Ddpg(tf.Module):
    def __init__(self, config: FeatureConfig):
        super().__init__(name="ddpg")
        algorithm, policies = config.algorithm, len(config.learned_policies())
        draw = drawing(algorithm.all_seeds)
        self.gamma = algorithm.gamma
        self._seeds, self._policies = len(algorithm.all_seeds), max(policies, 1)
        self.tower_trained_by = frozenset(algorithm.tower_trained_by)
        self.actor = Actor(config, draw, policies)
        self.space, self.tower, self.actor_heads = self.actor.space, self.actor.tower, self.actor.heads
        self.value_head = Mlp(draw, "value", self.tower.width, algorithm.head, 1)
        advantages = QuadraticAdvantages if algorithm.advantage == "quadratic" else NetworkAdvantages
        self.advantage_heads = advantages(draw, self.tower.width, self.space.size, algorithm.head, policies)
        self.critic_variables = tuple(
            v for part in (self.tower, self.value_head, self.advantage_heads) for v in part.trainable_variables
        )
        self.actor_variables = tuple(self.actor_heads.trainable_variables)
        self.critic_adam = Adam(self.critic_variables, algorithm.learning_rate)
        self.actor_adam = Adam(self.actor_variables, algorithm.actor_learning_rate)
        signature = (batch_spec(config, self._seeds), tf.TensorSpec([policies], tf.bool))
        # There is no control flow to translate, and translating takes most of the tracing time.
        self.step = tf.function(self._step, input_signature=signature, autograph=False)
        self.evaluate = tf.function(self._evaluate, input_signature=(inputs_spec(config),), autograph=False)

    def value(self, hidden: tf.Tensor) -> tf.Tensor:
        return tf.squeeze(self.value_head(hidden), -1)  # [S, B, H] -> [S, B]

    def losses(self, batch: Batch) -> Losses:
        hidden, detached = self._hidden(batch.state)
        to_value = hidden if "value" in self.tower_trained_by else detached
        to_advantage = hidden if "advantage" in self.tower_trained_by else detached
        v_t, a_t, _ = self._ahead(batch.next_state)
        discount_t = self.gamma * batch.discount

        v_tm1 = self.value(to_value)
        value = baseline_value(v_tm1, batch.reward, discount_t, v_t)
        state_part = self.advantage_heads.of_state(to_advantage)
        a_tm1 = self.advantage_heads(state_part, self.space.units(batch.action))
        advantage = residual_advantage(a_tm1, v_tm1, batch.reward, discount_t, v_t, a_t)
        actor, units, a_mu = self._actor(detached, tf.stop_gradient(state_part))
        return Losses(
            masked_mean(value.loss, batch.by_baseline),
            tf.reduce_mean(advantage.loss, axis=2),
            tf.reduce_mean(actor, axis=2),
            tf.reduce_mean(tf.abs(v_tm1[:, None] + a_tm1), axis=2),
            tf.reduce_mean(v_tm1, axis=1),
            tf.reduce_mean(tf.abs(v_tm1), axis=1),
            tf.reduce_mean(a_mu, axis=2),
            tf.reduce_mean(tf.abs(a_mu), axis=2),
            tf.reduce_mean(self.space.action(units), axis=2),
        )

    def _hidden(self, state: Inputs) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = self.tower(state)
        return hidden, tf.stop_gradient(hidden)

    def _ahead(self, state: Inputs) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """V [S, B], A_k [S, K, B] at the policy's own action, and that action: the executed one, hence clipped."""
        hidden = self.tower(state)
        units = tf.clip_by_value(self.actor_heads(hidden), self.space.low, self.space.high)
        advantage = self.advantage_heads(self.advantage_heads.of_state(hidden), units)
        return self.value(hidden), advantage, self.space.action(units)

    def _evaluate(self, inputs: Inputs) -> Evaluation:
        value, advantage, action = self._ahead(for_seeds(inputs, self._seeds))
        return Evaluation(tf.broadcast_to(for_policies(value, 3), tf.shape(advantage)), advantage, action)

    def _actor(self, hidden: tf.Tensor, state_part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss [S, K, B], mu in units [S, K, B, N], and A at mu [S, K, B].

        The critic is fixed and the tower detached: only the actors' own heads receive a gradient.
        """
        units = self.actor_heads(hidden)
        inside = tf.stop_gradient(tf.clip_by_value(units, self.space.low, self.space.high))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inside)
            q = self.advantage_heads(state_part, inside)
        dq_da = invert_gradient(tape.gradient(q, inside), units, self.space.low, self.space.high)
        return policy_ascent(units, dq_da), units, q

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as critic_tape, tf.GradientTape() as actor_tape:
            losses = self.losses(batch)
            of_seed = losses.value_loss + tf.reduce_sum(losses.advantage_loss, axis=1) / self._policies
            critic_loss = tf.reduce_sum(of_seed)  # V and A weigh alike; seeds share no weight
            actor_loss = tf.reduce_sum(tf.where(active, losses.actor_loss, 0.0))
        self.critic_adam.apply(critic_tape.gradient(critic_loss, self.critic_variables))
        self.actor_adam.apply(actor_tape.gradient(actor_loss, self.actor_variables), moving=tf.reduce_any(active))
        return losses._asdict()

"""DDPG with a split critic: Q_k(s, a) = V(s) + A_k(s, a), for all learned policies k in one compiled step.

V is the value of the baseline and learns from pages that the baseline decided. Pages on which the agent fell back to
the baseline are among them: the one-step target holds for the action that was executed, whoever's bucket it was in.
A_k learns the residual from every page. mu_k = baseline + half range * head_k, and head_k ascends A_k only.
There is no target network: targets are stopped, and `q_abs` against r_max / (1 - gamma) raises the alarm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import model_inputs
from pipeline.learning.losses import baseline_value, invert_gradient, masked_mean, policy_ascent, residual_advantage
from pipeline.learning.networks import Inputs, Mlp, NetworkAdvantages, QuadraticAdvantages, Tower, drawing
from pipeline.learning.optimiser import Adam


class Batch(NamedTuple):
    state: Inputs
    next_state: Inputs  # anything that is finite where discount is 0
    action: tf.Tensor  # [B, N] as executed
    reward: tf.Tensor  # [B]
    discount: tf.Tensor  # [B] 0 or 1, without gamma
    by_baseline: tf.Tensor  # [B] 1 where the baseline acted


class Losses(NamedTuple):
    """Means over the batch: three losses, then what else is worth watching."""

    value: tf.Tensor  # []
    advantage: tf.Tensor  # [K]
    actor: tf.Tensor  # [K]
    q_abs: tf.Tensor  # [K] |V(s) + A_k(s, a)|
    value_mean: tf.Tensor  # [] V(s)
    value_abs: tf.Tensor  # [] |V(s)|
    advantage_mean: tf.Tensor  # [K] A_k(s, mu_k(s))
    advantage_abs: tf.Tensor  # [K] |A_k(s, mu_k(s))|
    action_mean: tf.Tensor  # [K, N] mu_k(s) inside the range


class Evaluation(NamedTuple):
    value: tf.Tensor  # [B] V(s)
    advantage: tf.Tensor  # [K, B] A_k(s, mu_k(s))
    action: tf.Tensor  # [K, B, N] mu_k(s) inside the range


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


def batch_spec(config: FeatureConfig) -> Batch:
    state = {i.name: tf.TensorSpec([None, *i.shape], i.dtype) for i in model_inputs(config)}
    vector = tf.TensorSpec([None], tf.float32)
    return Batch(state, dict(state), tf.TensorSpec([None, len(config.action)], tf.float32), vector, vector, vector)


class Ddpg(tf.Module):
    def __init__(self, config: FeatureConfig):
        super().__init__(name="ddpg")
        algorithm, policies = config.algorithm, len(config.learned_policies())
        draw = drawing(algorithm.seed)
        self.space = ActionSpace(config)
        self.gamma = algorithm.gamma
        self._policies = max(policies, 1)
        self.tower_trained_by = frozenset(algorithm.tower_trained_by)
        self.tower = Tower(config, draw)
        self.value_head = Mlp(draw, "value", self.tower.width, algorithm.head, 1)
        advantages = QuadraticAdvantages if algorithm.advantage == "quadratic" else NetworkAdvantages
        self.advantage_heads = advantages(draw, self.tower.width, self.space.size, algorithm.head, policies)
        self.actor_heads = Mlp(draw, "actor", self.tower.width, algorithm.head, self.space.size, stack=policies)
        self.critic_variables = tuple(
            v for part in (self.tower, self.value_head, self.advantage_heads) for v in part.trainable_variables
        )
        self.actor_variables = tuple(self.actor_heads.trainable_variables)
        self.critic_adam = Adam(self.critic_variables, algorithm.learning_rate)
        self.actor_adam = Adam(self.actor_variables, algorithm.actor_learning_rate)
        active = tf.TensorSpec([policies], tf.bool)
        # There is no control flow to translate, and translating takes most of the tracing time.
        self.step = tf.function(self._step, input_signature=(batch_spec(config), active), autograph=False)
        self.evaluate = tf.function(self._next, input_signature=(batch_spec(config).state,), autograph=False)

    def value(self, hidden: tf.Tensor) -> tf.Tensor:
        return tf.squeeze(self.value_head(hidden), -1)  # [B, H] -> [B]

    def losses(self, batch: Batch) -> Losses:
        hidden, detached = self._hidden(batch.state)
        to_value = hidden if "value" in self.tower_trained_by else detached
        to_advantage = hidden if "advantage" in self.tower_trained_by else detached
        v_t, a_t, _ = self._next(batch.next_state)
        discount_t = self.gamma * batch.discount

        v_tm1 = self.value(to_value)
        value = baseline_value(v_tm1, batch.reward, discount_t, v_t)
        state_part = self.advantage_heads.of_state(to_advantage)
        a_tm1 = self.advantage_heads(state_part, self.space.units(batch.action))
        advantage = residual_advantage(a_tm1, v_tm1, batch.reward, discount_t, v_t, a_t)
        actor, units, a_mu = self._actor(detached, tf.stop_gradient(state_part))
        return Losses(
            masked_mean(value.loss, batch.by_baseline),
            tf.reduce_mean(advantage.loss, axis=1),
            tf.reduce_mean(actor, axis=1),
            tf.reduce_mean(tf.abs(v_tm1 + a_tm1), axis=1),
            tf.reduce_mean(v_tm1),
            tf.reduce_mean(tf.abs(v_tm1)),
            tf.reduce_mean(a_mu, axis=1),
            tf.reduce_mean(tf.abs(a_mu), axis=1),
            tf.reduce_mean(self.space.action(units), axis=1),
        )

    def _hidden(self, state: Inputs) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = self.tower(state)
        return hidden, tf.stop_gradient(hidden)

    def _next(self, state: Inputs) -> Evaluation:
        """V and A_k at the policy's own next action: the executed one, hence clipped."""
        hidden = self.tower(state)
        units = tf.clip_by_value(self.actor_heads(hidden), self.space.low, self.space.high)
        advantage = self.advantage_heads(self.advantage_heads.of_state(hidden), units)
        return Evaluation(self.value(hidden), advantage, self.space.action(units))

    def _actor(self, hidden: tf.Tensor, state_part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss [K, B], mu in units [K, B, N], and A at mu [K, B].

        The critic is fixed and the tower detached: only the actors' own heads receive a gradient.
        """
        units = self.actor_heads(hidden)  # [K, B, N]
        inside = tf.stop_gradient(tf.clip_by_value(units, self.space.low, self.space.high))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inside)
            q = self.advantage_heads(state_part, inside)
        dq_da = invert_gradient(tape.gradient(q, inside), units, self.space.low, self.space.high)
        return policy_ascent(units, dq_da), units, q

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        """One update. `active` [K]: whose actor may move; the others stay where they are to the last bit."""
        with tf.GradientTape() as critic_tape, tf.GradientTape() as actor_tape:
            losses = self.losses(batch)
            critic_loss = losses.value + tf.reduce_sum(losses.advantage) / self._policies  # V and A weigh alike
            actor_loss = tf.reduce_sum(tf.where(active, losses.actor, 0.0))
        self.critic_adam.apply(critic_tape.gradient(critic_loss, self.critic_variables))
        self.actor_adam.apply(actor_tape.gradient(actor_loss, self.actor_variables), moving=tf.reduce_any(active))
        return losses._asdict()

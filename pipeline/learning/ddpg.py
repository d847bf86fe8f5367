"""DDPG with a split critic: Q_k(s, a) = V(s) + A_k(s, a), for all seeds and learned policies k in one compiled step.

V is the value of the baseline and learns from pages that the baseline decided. Pages on which the agent fell back to
the baseline are among them: the one-step target holds for the action that was executed, whoever's bucket it was in.
A_k learns the residual from every page. mu_k = baseline + half range * head_k, and head_k ascends A_k only.
With `actor: argmax` mu_k needs no weights: it is where A_k's parabola has its top inside the range.
There is no target network: targets are stopped, and `q_abs` against r_max / (1 - gamma) raises the alarm. With one, the
V whose residual A_k learns is the target's, too: A_k need not run after what V picked up a moment ago.

Each of these has a switch in the config that puts the textbook's way in its place (Lillicrap et al. 2016), so that what
it brings can be measured. Without V (`critic: plain`) what is said of A_k is said of Q_k, but for an `Evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.learning.actor_critic import ActorCritic
from pipeline.learning.learner import Batch, Evaluation, batch_spec, for_seeds, in_turn, inputs_spec
from pipeline.learning.losses import (
    Regression,
    baseline_value,
    invert_gradient,
    masked_mean,
    penalise_excess,
    policy_ascent,
    residual_advantage,
)
from pipeline.learning.networks import Inputs, drawing, for_policies
from pipeline.learning.optimiser import Adam
from pipeline.learning.parabola import Prior
from pipeline.learning.reducing import averaged
from pipeline.learning.targets import NoTarget, Periodic, Polyak, Target

Pages = Callable[[Batch], tf.Tensor]  # which of a batch: [S, B] 0 or 1


class Losses(NamedTuple):
    """Means over the batch: three losses, then what else is worth watching.

    Covered are the states of the baseline's pages: elsewhere V, and with it "better than the baseline", is a guess.
    """

    value_loss: tf.Tensor  # [S]
    advantage_loss: tf.Tensor  # [S, K]
    actor_loss: tf.Tensor  # [S, K]
    q_abs: tf.Tensor  # [S, K] |V(s) + A_k(s, a)|
    value_mean: tf.Tensor  # [S] V(s)
    value_abs: tf.Tensor  # [S] |V(s)|
    value_covered: tf.Tensor  # [S] V(s) on covered states
    advantage_mean: tf.Tensor  # [S, K] A_k(s, mu_k(s))
    advantage_abs: tf.Tensor  # [S, K] |A_k(s, mu_k(s))|
    advantage_covered: tf.Tensor  # [S, K] A_k(s, mu_k(s)) on covered states
    action_mean: tf.Tensor  # [S, K, N] mu_k(s) inside the range
    action_norm: tf.Tensor  # [S, K] how far mu_k(s) is from the baseline, in half ranges


class Ddpg(tf.Module):
    def __init__(self, config: FeatureConfig):
        super().__init__(name="ddpg")
        algorithm, policies = config.algorithm, len(config.learned_policies())
        self.gamma = algorithm.gamma
        self._seeds, self._policies = len(algorithm.all_seeds), max(policies, 1)
        self.tower_trained_by = frozenset(algorithm.tower_trained_by)
        self._plain = algorithm.critic == "plain"
        self._v_pages, self._steer = _v_data(algorithm), _steer(algorithm)

        def networks() -> ActorCritic:
            return ActorCritic(config, drawing(algorithm.all_seeds), policies)

        self.online = online = networks()
        self.target = _target(algorithm, online, networks)
        self.prior = None if online.climbs else Prior(algorithm, policies)
        self.actor, self.space, self.tower = online.actor, online.space, online.tower
        self.value_head, self.advantage_heads, self.actor_heads = (
            online.value_head, online.advantage_heads, online.actor.heads,
        )  # fmt: skip
        own_pace = algorithm.value_learning_rate is not None
        parts = (self.tower, *(() if own_pace else (self.value_head,)), self.advantage_heads)
        self.critic_variables = tuple(v for part in parts for v in part.trainable_variables)
        self.value_variables = tuple(self.value_head.trainable_variables) if own_pace else ()
        self.actor_variables = tuple(self.actor_heads.trainable_variables) if online.climbs else ()
        self.actor_tower_variables = () if online.shared else tuple(self.actor.tower.trainable_variables)
        self.critic_adam = Adam(self.critic_variables, algorithm.learning_rate, decay=algorithm.weight_decay)
        self.value_adam = _value_adam(algorithm, self.value_variables)
        self.actor_adam = Adam(self.actor_variables, algorithm.actor_learning_rate, policies=policies)
        self.actor_tower_adam = Adam(self.actor_tower_variables, algorithm.actor_learning_rate)
        signature = (batch_spec(config, self._seeds), tf.TensorSpec([policies], tf.bool))
        # There is no control flow to translate, and translating takes most of the tracing time.
        self.step = tf.function(self._step, input_signature=signature, autograph=False)
        self.steps = in_turn(self.step)
        self.evaluate = tf.function(self._evaluate, input_signature=(inputs_spec(config),), autograph=False)

    def value(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.online.value(hidden)

    def losses(self, batch: Batch) -> Losses:
        hidden, for_actors = self.online.hidden(batch.state)
        detached = tf.stop_gradient(hidden)
        to_value = hidden if "value" in self.tower_trained_by else detached
        to_advantage = hidden if "advantage" in self.tower_trained_by else detached
        ahead = self.target.networks.ahead(batch.next_state)
        discount_t = self.gamma * batch.discount

        v_tm1 = self.value(to_value)
        value = baseline_value(v_tm1, batch.reward, discount_t, ahead.value)
        state_part = self.advantage_heads.of_state(to_advantage)
        a_tm1 = self.advantage_heads(state_part, self.space.units(batch.action))
        advantage = residual_advantage(
            a_tm1, self._reference(batch, v_tm1), batch.reward, discount_t, ahead.value, ahead.advantage
        )
        actor, units, a_mu = self._actor(for_actors, tf.stop_gradient(state_part))
        covered, inside = batch.by_baseline, tf.clip_by_value(units, self.space.low, self.space.high)
        return Losses(
            value_loss=masked_mean(value.loss, self._v_pages(batch)),
            advantage_loss=tf.reduce_mean(advantage.loss, axis=2),
            actor_loss=tf.reduce_mean(actor, axis=2),
            q_abs=tf.reduce_mean(tf.abs(v_tm1[:, None] + a_tm1), axis=2),
            value_mean=tf.reduce_mean(v_tm1, axis=1),
            value_abs=tf.reduce_mean(tf.abs(v_tm1), axis=1),
            value_covered=masked_mean(v_tm1, covered),
            advantage_mean=tf.reduce_mean(a_mu, axis=2),
            advantage_abs=tf.reduce_mean(tf.abs(a_mu), axis=2),
            advantage_covered=masked_mean(a_mu, covered),
            action_mean=tf.reduce_mean(self.space.action(units), axis=2),
            action_norm=tf.reduce_mean(tf.norm(inside, axis=3), axis=2),
        )

    def value_fit(self, batch: Batch) -> Regression:
        """Of V alone, one by one [S, B], whoever decided the pages."""
        v_tm1, v_t = (self.value(self.tower(state)) for state in (batch.state, batch.next_state))
        return baseline_value(v_tm1, batch.reward, self.gamma * batch.discount, v_t)

    @property
    def value_parts(self) -> tuple[tf.Module, ...]:
        """What pre-training trains: nothing where there is no V."""
        return () if self._plain else (self.tower, self.value_head)

    @property
    def unserved(self) -> dict[str, tf.Module]:
        return {"value": self.value_head, "advantage": self.advantage_heads}

    def adopt_value(self, other: Ddpg) -> None:
        for networks in (self.online, self.target.networks):
            for part, of_other in zip((networks.tower, networks.value_head), other.value_parts, strict=True):
                for mine, theirs in zip(part.variables, of_other.variables, strict=True):
                    mine.assign(theirs)

    def _evaluate(self, inputs: Inputs) -> Evaluation:
        states = for_seeds(inputs, self._seeds)
        value, advantage, units = self.online.ahead(states)
        value = tf.broadcast_to(for_policies(value, 3), tf.shape(advantage))
        if self._plain:  # Q_k of the baseline's action is the nearest that it has to the baseline's value
            value = self.online.at_baseline(states)
            advantage -= value
        return Evaluation(value, advantage, self.space.action(units))

    def _reference(self, batch: Batch, v_tm1: tf.Tensor) -> tf.Tensor:
        """The V(s) [S, B] that A is to add to."""
        networks = self.target.networks
        return v_tm1 if networks is self.online else networks.value(networks.tower(batch.state))

    def _actor(self, hidden: tf.Tensor, state_part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss [S, K, B], mu in units [S, K, B, N], and A at mu [S, K, B].

        The critic is fixed, and `hidden` detached from it: only what is the actors' own receives a gradient.
        """
        if not self.online.climbs:
            units = self.actor_heads.units(state_part)
            q = self.advantage_heads(state_part, units)
            return tf.zeros_like(q), units, q  # there is nothing to descend
        units = self.actor_heads(hidden)
        inside = tf.stop_gradient(tf.clip_by_value(units, self.space.low, self.space.high))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inside)
            q = self.advantage_heads(state_part, inside)
        direction = self._steer(tape.gradient(q, inside), units, self.space.low, self.space.high)
        return policy_ascent(units, direction), units, q

    def _open(self, active: tf.Tensor) -> None:
        """Tops of parabolas follow by themselves, as soon as they may."""
        if self.prior is not None:
            cost = self.prior.cost()
            for networks in {id(n): n for n in (self.online, self.target.networks)}.values():
                networks.actor.heads.open(active, cost)

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as critic_tape, tf.GradientTape() as actor_tape:
            losses = self.losses(batch)
            of_seed = losses.value_loss + tf.reduce_sum(losses.advantage_loss, axis=1) / self._policies
            critic_loss = tf.reduce_sum(of_seed)  # V and A weigh alike; seeds share no weight
            actor_loss = tf.reduce_sum(tf.where(active, losses.actor_loss, 0.0))
        of_actor = actor_tape.gradient(actor_loss, (self.actor_variables, self.actor_tower_variables))
        of_both = critic_tape.gradient(critic_loss, (self.critic_variables, self.value_variables))
        (of_heads, of_tower), (of_critic, of_value) = averaged((of_actor, of_both))
        self.critic_adam.apply(of_critic)
        if self.value_adam is not None:
            self.value_adam.apply(of_value)
        self.actor_adam.apply(of_heads, moving=active)
        self.actor_tower_adam.apply(of_tower, moving=tf.reduce_any(active))
        self._open(active)
        self.target.follow()
        return losses._asdict()


def _value_adam(algorithm: schema.Ddpg, variables: tuple[tf.Variable, ...]) -> Adam | None:
    """None where V goes at the pace of A, by the same optimiser."""
    rate = algorithm.value_learning_rate
    return None if rate is None else Adam(variables, rate, decay=algorithm.weight_decay)


def _v_data(algorithm: schema.Ddpg) -> Pages:
    """The pages that V learns from."""
    if algorithm.critic == "plain":
        return lambda batch: tf.zeros_like(batch.reward)
    return {"baseline": lambda batch: batch.by_baseline, "all": lambda batch: tf.ones_like(batch.reward)}[
        algorithm.v_data
    ]


def _steer(algorithm: schema.Ddpg) -> Callable[..., tf.Tensor]:
    """What becomes of dQ/da near the clip and beyond."""
    if algorithm.saturation == "invert":
        return invert_gradient
    return partial(penalise_excess, weight=algorithm.penalty_weight or 1.0)


def _target(algorithm: schema.Ddpg, online: ActorCritic, make: Callable[[], ActorCritic]) -> Target:
    match algorithm.target:
        case "polyak":
            return Polyak(online, make(), algorithm.target_tau or 0.005)
        case "periodic":
            return Periodic(online, make(), algorithm.target_period or 500)
    return NoTarget(online)

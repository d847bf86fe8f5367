"""What `a2c`, `a3c` and `ppo` have in common: from a rollout of one policy to steps of its mean, its D and the tower.

A rollout of the baseline trains V. One of policy k trains D_k and, when k is active, mu_k; nobody else's heads move.
Pages that were decided with a mean too far from the present one are left out, and no advantage is summed across them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.learner import Evaluation, for_seeds, inputs_spec
from pipeline.learning.losses import masked_mean, ranks, regression
from pipeline.learning.masked_adam import MaskedAdam
from pipeline.learning.networks import Inputs, drawing, for_policies
from pipeline.learning.policy_losses import Surrogate, advantages, divergence, effective_share, log_density
from pipeline.learning.policy_value import PolicyValue, Seen
from pipeline.learning.rollouts import Lesson, Pages, Turn


class Examples(NamedTuple):
    """Pages as a step learns from them, for every seed its own selection."""

    state: Inputs  # [S, B, ...]
    raw: tf.Tensor  # [S, B, N], as in `Pages`
    mean: tf.Tensor
    carried: tf.Tensor
    sigma: tf.Tensor
    log_density: tf.Tensor  # [S, B]
    advantage: tf.Tensor  # [S, B]
    target: tf.Tensor  # [S, B] of V or V_k
    usable: tf.Tensor  # [S, B] 1 where the page is on policy


class Assessed(NamedTuple):
    """Before a rollout is learned from, [S, n]."""

    v_tm1: tf.Tensor
    v_t: tf.Tensor
    lag: tf.Tensor  # of the mean since the page was decided, in sigmas


class Losses(NamedTuple):
    """Means over the usable pages, [S]; one of the first two is 0."""

    value_loss: tf.Tensor  # of the baseline's pages
    advantage_loss: tf.Tensor  # of a policy's
    actor_loss: tf.Tensor
    ratio_mean: tf.Tensor
    clip_share: tf.Tensor
    kl: tf.Tensor  # of the present policy from the one that was served
    effective_share: tf.Tensor


class OnPolicy(tf.Module):
    """One step per rollout, unless `_lots` and `_learn` are overridden."""

    def __init__(self, config: FeatureConfig, name: str) -> None:
        super().__init__(name=name)
        algorithm, self._policies = config.algorithm, len(config.learned_policies())
        self.gamma, self._gae_lambda, self._max_lag = algorithm.gamma, algorithm.gae_lambda, algorithm.max_lag
        self._seeds = len(algorithm.all_seeds)
        draw = drawing(algorithm.all_seeds)
        self.networks = PolicyValue(config, draw, self._policies)
        self.actor, self.space = self.networks.actor, self.networks.space
        rates = (*[algorithm.learning_rate] * 3, algorithm.actor_learning_rate)
        lead = (self._seeds, self._policies)
        groups = zip(self.networks.groups, rates, strict=True)
        self.adams = [MaskedAdam(g.variables, rate, lead[: g.axes]) for g, rate in groups]
        self._compile(config)

    def _compile(self, config: FeatureConfig) -> None:
        states, wide = inputs_spec(config), tf.TensorSpec([None, self.space.size])
        whose = tf.TensorSpec([self._policies])
        flags = (tf.TensorSpec([], tf.bool), tf.TensorSpec([self._seeds], tf.bool))
        step, assess = (self._examples_spec(config), whose, *flags), (states, dict(states), wide, wide, whose)
        self._step = tf.function(self._steps, input_signature=step, autograph=False)
        self._assess = tf.function(self._assessed, input_signature=assess, autograph=False)
        self._look = tf.function(self._seen, input_signature=(states, whose), autograph=False)
        self.evaluate = tf.function(self._evaluate, input_signature=(states,), autograph=False)

    def _examples_spec(self, config: FeatureConfig) -> Examples:
        wide, row = tf.TensorSpec([self._seeds, None, self.space.size]), tf.TensorSpec([self._seeds, None])
        return Examples(inputs_spec(config, self._seeds), *[wide] * 4, *[row] * 4)

    @property
    def unserved(self) -> dict[str, tf.Module]:
        return {"value": self.networks.value_head, "gain": self.networks.gain_heads}

    # A rollout -------------------------------------------------------------------------------------------------------

    def learn(self, pages: Pages, turn: Turn) -> Lesson:
        whose = np.zeros(self._policies, np.float32)
        whose[turn.policy : turn.policy + 1] = 1  # of the baseline: nowhere
        examples = self._examples(pages, whose)
        going, history = np.full(self._seeds, turn.active), []
        for lot in self._lots(len(pages.reward), turn.number):
            losses, going = self._step(_select(examples, lot), whose, tf.constant(turn.active), going)
            history.append({name: x.numpy() for name, x in losses._asdict().items()})
        means = {name: np.mean([each[name] for each in history], axis=0) for name in history[0]}
        left_out = (1 - examples.usable).sum(axis=1)
        return Lesson(len(history), self._summary(pages, whose, means, left_out), left_out)

    def _examples(self, pages: Pages, whose: np.ndarray) -> Examples:
        """Advantages and targets are of the parameters before the rollout, for all of its steps."""
        found = self._assess(pages.state, pages.next_state, pages.mean, pages.sigma, whose)
        v_tm1, v_t, lag = (x.numpy().astype(np.float64) for x in found)
        usable = (lag <= self._max_lag).astype(np.float64)
        follows = pages.linked * np.append(usable[:, 1:], np.zeros((self._seeds, 1)), axis=1)
        discount = self.gamma * pages.discount
        advantage = advantages(pages.reward, discount, v_tm1, v_t, follows, self._gae_lambda)
        rows = (self._prepared(advantage, usable), v_tm1 + advantage, usable)
        shared = (pages.raw, pages.mean, pages.carried, pages.sigma, pages.log_density)
        state, *columns = _repeated((pages.state, *shared), self._seeds)
        return Examples(state, *columns, *(x.astype(np.float32) for x in rows))

    def _prepared(self, advantage: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """The advantages as the policy's gradient weighs them, [S, n]."""
        return advantage

    def _lots(self, pages: int, number: int) -> Iterator[np.ndarray]:
        """Which pages each step learns from, [S, B]."""
        yield np.tile(np.arange(pages), (self._seeds, 1))

    def _summary(
        self, pages: Pages, whose: np.ndarray, means: dict[str, np.ndarray], left_out: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What is worth watching, of the networks as they are now."""
        value, gain, mean = (x.numpy() for x in self._look(pages.state, whose))
        if not whose.any():
            of_value = {"value_mean": value.mean(axis=1), "value_abs": np.abs(value).mean(axis=1)}
            return {"value_loss": means["value_loss"], **of_value, "q_abs": of_value["value_abs"]}
        del means["value_loss"]
        return {
            **means,
            "off_policy_share": left_out / len(pages.reward),
            "q_abs": np.abs(value + gain).mean(axis=1),
            "advantage_mean": gain.mean(axis=1),
            "advantage_abs": np.abs(gain).mean(axis=1),
            "action_mean": mean.mean(axis=1),
        }

    # Compiled --------------------------------------------------------------------------------------------------------

    @property
    def _used(self) -> PolicyValue:
        """The networks whose opinion counts and whose gradients are taken."""
        return self.networks

    def _assessed(
        self, state: Inputs, next_state: Inputs, mean: tf.Tensor, sigma: tf.Tensor, whose: tf.Tensor
    ) -> Assessed:
        seen, ahead = (self._used(for_seeds(x, self._seeds), whose) for x in (state, next_state))
        ranks((mean, 2), (sigma, 2))
        is_policy = tf.reduce_sum(whose)  # what the baseline does never changes
        lag = tf.norm((seen.mean - mean) / sigma, axis=-1) * is_policy
        return Assessed(seen.value + seen.gain, ahead.value + ahead.gain, lag)

    def losses(self, examples: Examples, whose: tf.Tensor) -> Losses:
        seen = self._used(examples.state, whose)
        ranks((seen.value, 2), (examples.target, 2), (examples.advantage, 2), (examples.usable, 2))
        log_pi = log_density(examples.raw, seen.mean + examples.carried, examples.sigma)
        log_ratio = log_pi - examples.log_density
        surrogate = self._surrogate(log_ratio, log_pi, examples.advantage)
        usable, is_policy = examples.usable, tf.reduce_sum(whose)
        of_value = regression(seen.value, examples.target).loss
        of_gain = regression(tf.stop_gradient(seen.value) + seen.gain, examples.target).loss
        return Losses(
            masked_mean(of_value, usable) * (1 - is_policy),
            masked_mean(of_gain, usable) * is_policy,
            masked_mean(surrogate.loss, usable) * is_policy,
            masked_mean(tf.exp(log_ratio), usable),
            masked_mean(surrogate.clipped, usable),
            masked_mean(divergence(seen.mean, examples.mean, examples.sigma), usable),
            effective_share(log_ratio, usable),
        )

    @abstractmethod
    def _surrogate(self, log_ratio: tf.Tensor, log_pi: tf.Tensor, advantage: tf.Tensor) -> Surrogate:
        """Of one page each, [S, B]."""

    def _steps(
        self, examples: Examples, whose: tf.Tensor, active: tf.Tensor, going: tf.Tensor
    ) -> tuple[Losses, tf.Tensor]:
        """Returns the losses before the step and for which seeds mu went on, [S]."""
        groups = self._used.groups
        with tf.GradientTape() as tape:
            losses = self.losses(examples, whose)
            going = self._goes_on(losses, going & active)
            actor = tf.where(going, losses.actor_loss, 0.0)
            total = tf.reduce_sum(losses.value_loss + losses.advantage_loss + actor)  # seeds share no weight
        gradients = iter(tape.gradient(total, [v for group in groups for v in group.variables]))
        any_page = tf.reduce_any(examples.usable > 0, axis=1)
        mine = tf.cast(whose, tf.bool) & any_page[:, None]  # [S, K]
        is_baseline = any_page & (tf.reduce_sum(whose) == 0)
        moving = (any_page, is_baseline, mine, mine & going[:, None])
        for adam, group, shared, who in zip(self.adams, groups, self.networks.groups, moving, strict=True):
            adam.apply(shared.variables, [next(gradients) for _ in group.variables], who)
        return losses, going

    def _goes_on(self, losses: Losses, going: tf.Tensor) -> tf.Tensor:
        return going

    def _seen(self, state: Inputs, whose: tf.Tensor) -> Seen:
        """By the shared networks."""
        return self.networks(for_seeds(state, self._seeds), whose)

    def _evaluate(self, inputs: Inputs) -> Evaluation:
        value, gain, action = self.networks.all_policies(for_seeds(inputs, self._seeds))
        return Evaluation(tf.broadcast_to(for_policies(value, 3), tf.shape(gain)), gain, action)


def _repeated(columns: tuple[object, ...], seeds: int) -> list[object]:
    """The same rows for every seed, without copying them."""
    return tf.nest.map_structure(lambda x: np.broadcast_to(x[None], (seeds, *x.shape)), list(columns))


def _select(examples: Examples, lot: np.ndarray) -> Examples:
    seeds = np.arange(len(lot))[:, None]
    return tf.nest.map_structure(lambda x: np.ascontiguousarray(x[seeds, lot]), examples)

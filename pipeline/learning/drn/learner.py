"""DRN's learner: double DQN over the candidates of a request, all seeds in one compiled step.

What is learned from is a page: each item that was shown is an example, and all have the next request of the same user,
with its candidates, ahead of them. With `gamma` 0 it is DN, a network that predicts the reward of an item.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from msgspec import Struct

from pipeline.learning.drn.losses import double_q, mean_of_shown
from pipeline.learning.drn.towers import TwoTowers, Widths
from pipeline.learning.losses import Regression
from pipeline.learning.networks import Draw, drawing
from pipeline.learning.optimiser import Adam
from pipeline.learning.targets import NoTarget, Periodic, Target


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The paper gives gamma, but neither widths, nor the optimiser, nor how often W' is renewed."""

    gamma: float = 0.4
    double: bool = True
    hidden: tuple[int, ...] = (64, 32)
    learning_rate: float = 1e-3
    target_period: int = 200  # updates between copies; 0: the network looks ahead with itself
    seeds: tuple[int, ...] = (1,)


class Pages(NamedTuple):
    """Closed pages with the next request of each, for every seed its own. Of a config user and items are its inputs by
    name, with the same first axes."""

    user: Any  # [S, B, U]
    items: Any  # [S, B, K, I] what was shown, as it was then
    shown: tf.Tensor  # [S, B, K] bool; False for padding
    reward: tf.Tensor  # [S, B, K]
    discount: tf.Tensor  # [S, B] 0 or 1, without gamma: 0 where no next request came
    next_user: Any  # [S, B, U] anything finite where the discount is 0, as next_items
    next_items: Any  # [S, B, N, I]
    next_exists: tf.Tensor  # [S, B, N] bool; False for padding


class Report(NamedTuple):
    """Means over the items that were shown, [S]."""

    loss: tf.Tensor
    q_mean: tf.Tensor
    q_abs: tf.Tensor
    target_mean: tf.Tensor


class Kind(NamedTuple):
    """Of the network: how a fresh one is made, and what pages are like to it."""

    network: Callable[[Draw], Any]
    spec: Callable[[int], Pages]  # of so many seeds


class Drn(tf.Module):
    def __init__(self, kind: Kind | Widths, settings: Settings) -> None:
        """`Widths`: of columns that are there already."""
        super().__init__(name="drn")
        self.settings = settings
        if isinstance(kind, Widths):
            kind = of_columns(kind, settings.hidden)

        def network() -> Any:
            return kind.network(drawing(settings.seeds))

        self.online = network()
        period = settings.target_period
        self.target: Target = Periodic(self.online, network(), period) if period else NoTarget(self.online)
        self.adam = Adam(self.online.trainable_variables, settings.learning_rate)
        spec = kind.spec(len(settings.seeds))
        several = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape], x.dtype), spec)
        self.step = tf.function(self._step, input_signature=(spec,), autograph=False)
        self.steps = tf.function(self._steps, input_signature=(several,), autograph=False)

    def fit(self, pages: Pages) -> Regression:
        """Per shown item, [S, B, K]; with anything where there is padding."""
        q_tm1 = self.online(pages.user, pages.items)
        chooser_t, q_t = self._ahead(pages)
        discount_t = self.settings.gamma * pages.discount
        return double_q(q_tm1, pages.reward, discount_t, chooser_t, q_t, pages.next_exists)

    def _ahead(self, pages: Pages) -> tuple[tf.Tensor, tf.Tensor]:
        """By what the next item is chosen, and what it is worth, [S, B, N]."""
        if self.settings.gamma == 0:
            nothing = tf.zeros(tf.shape(pages.next_exists))
            return nothing, nothing
        q_t = self.target.networks(pages.next_user, pages.next_items)
        second = self.settings.double and self.settings.target_period > 0
        return (self.online(pages.next_user, pages.next_items) if second else q_t), q_t

    def losses(self, pages: Pages) -> Report:
        fit = self.fit(pages)
        q = fit.target - fit.error
        return Report(*(mean_of_shown(x, pages.shown) for x in (fit.loss, q, tf.abs(q), fit.target)))

    def _step(self, pages: Pages) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            report = self.losses(pages)
            loss = tf.reduce_sum(report.loss)  # seeds share no weight
        self.adam.apply(tape.gradient(loss, self.online.trainable_variables))
        self.target.follow()
        return report._asdict()

    def _steps(self, batches: Pages) -> dict[str, tf.Tensor]:
        """Updates one after another, [n, S, B, ...]: what n calls of `step` do and return, as [n, S]."""
        spec = dict.fromkeys(Report._fields, tf.TensorSpec([len(self.settings.seeds)], tf.float32))
        return tf.map_fn(self._step, batches, fn_output_signature=spec, parallel_iterations=1)


def of_columns(widths: Widths, hidden: tuple[int, ...]) -> Kind:
    return Kind(lambda draw: TwoTowers(draw, widths, hidden), lambda seeds: pages_spec(widths, seeds))


def pages_spec(widths: Widths, seeds: int) -> Pages:
    def of(dtype: tf.DType, *shape: int | None) -> tf.TensorSpec:
        return tf.TensorSpec([seeds, None, *shape], dtype)

    user, items, several = of(tf.float32, widths.user), of(tf.float32, None, widths.item), of(tf.bool, None)
    return Pages(user, items, several, of(tf.float32, None), of(tf.float32), user, items, several)

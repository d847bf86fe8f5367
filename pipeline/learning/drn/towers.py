"""The two towers of DRN: V from the user and the context, A from these and the candidate, Q = V + A.

Shapes: S seeds (or rankers that are scored side by side), B pages, N candidates, U and I columns: `user` has those of
user and context, [S, B, U], `items` those of the item and of user and item together, [S, B, N, I].

All candidates of a page have the same V, so A alone ranks them; V is there for the target. The sum is not centred: the
mean over a page's candidates would depend on which candidates there were.

Source: Zheng et al. 2018, figure 4 and section 4.3.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pipeline.learning.drn.weighted import Weighted
from pipeline.learning.networks import Draw, Mlp, he_bound


class Widths(NamedTuple):
    user: int  # columns of user and context
    item: int  # columns of item, and of user and item together


class AdvantageTower(tf.Module):
    """A(s, i). The user's share of the first layer is worked out once for all candidates of a page."""

    def __init__(self, draw: Draw, widths: Widths, hidden: tuple[int, ...]) -> None:
        super().__init__(name="advantage")
        first, *rest = hidden
        bound = he_bound(sum(widths))
        self.user_kernel = draw("advantage_user_kernel", (widths.user, first), bound)
        self.item_kernel = draw("advantage_item_kernel", (widths.item, first), bound)
        self.bias = draw("advantage_bias", (1, first), 0.0)
        self.rest = Mlp(draw, "advantage", first, tuple(rest), 1)

    def __call__(self, user: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """[S, B, U], [S, B, N, I] -> [S, B, N]."""
        lead, width = tf.shape(items)[:3], self.item_kernel.shape[2]
        of_user = tf.matmul(user, self.user_kernel) + self.bias  # [S, B, H]
        rows = tf.matmul(_rows(items), self.item_kernel)  # [S, B N, H]
        hidden = tf.nn.relu(tf.reshape(rows, tf.concat([lead, [width]], 0)) + of_user[:, :, None])
        return tf.reshape(self.rest(_rows(hidden)), lead)


class TwoTowers(Weighted):
    """Fresh ones say 0 of everything: the last layers start there. Weights are `value_...` and `advantage_...`."""

    def __init__(self, draw: Draw, widths: Widths, hidden: tuple[int, ...]) -> None:
        super().__init__(name="two_towers")
        self.value = Mlp(draw, "value", widths.user, hidden, 1)
        self.advantage = AdvantageTower(draw, widths, hidden)

    def __call__(self, user: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Q, [S, B, N]."""
        return self.value(user) + self.advantage(user, items)  # [S, B, 1] + [S, B, N]


def _rows(x: tf.Tensor) -> tf.Tensor:
    """[S, B, N, I] -> [S, B N, I]: one product for all candidates."""
    shape = tf.shape(x)
    return tf.reshape(x, [shape[0], shape[1] * shape[2], x.shape[3]])

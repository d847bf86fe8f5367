"""Adam (Kingma & Ba 2015) for variables of which some seeds and policies move while the others rest.

A rollout is one policy's, and only that policy moves. With the moments of one optimiser for all, the others would coast
on what is left of their last gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pipeline.learning.optimiser import slot

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class MaskedAdam(tf.Module):
    def __init__(self, variables: Sequence[tf.Variable], learning_rate: float, lead: tuple[int, ...]) -> None:
        """`lead`: the axes along which members move on their own, (S,) or (S, K), first in every variable."""
        super().__init__()
        self._learning_rate = learning_rate
        self.first = [slot(v, "first") for v in variables]  # moments
        self.second = [slot(v, "second") for v in variables]
        self.steps = tf.Variable(tf.zeros(lead))  # of each member

    def apply(self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor | None], moving: tf.Tensor) -> None:
        """One update of the members that are `moving`; the others stay to the last bit, with their moments."""
        self.steps.assign_add(tf.cast(moving, tf.float32))
        steps = tf.maximum(self.steps, 1.0)  # of one that never moved, nothing is used
        rate = self._learning_rate * tf.sqrt(1 - _BETA2**steps) / (1 - _BETA1**steps)
        for variable, first, second, gradient in zip(variables, self.first, self.second, gradients, strict=True):
            if gradient is None:
                continue
            gradient = tf.convert_to_tensor(gradient)  # a gather's is sparse
            mask, pace = (_spread(x, variable.shape.rank) for x in (moving, rate))
            first.assign(tf.where(mask, _BETA1 * first + (1 - _BETA1) * gradient, first))
            second.assign(tf.where(mask, _BETA2 * second + (1 - _BETA2) * tf.square(gradient), second))
            moved = variable - pace * first / (tf.sqrt(second) + _EPSILON)
            variable.assign(tf.where(mask, moved, variable))


def _spread(x: tf.Tensor, rank: int) -> tf.Tensor:
    """[S] or [S, K] over variables of a rank."""
    return tf.reshape(x, [*x.shape, *[1] * (rank - x.shape.rank)])

"""Adam (Kingma & Ba 2015) over TensorFlow's fused kernel, with all its state in variables that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class Adam(tf.Module):
    def __init__(
        self,
        variables: Sequence[tf.Variable],
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ):
        super().__init__()
        self._variables = tuple(variables)
        self._constants = {"lr": learning_rate, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self.first = [tf.Variable(tf.zeros_like(v)) for v in variables]  # moments
        self.second = [tf.Variable(tf.zeros_like(v)) for v in variables]
        self.beta1_power = tf.Variable(np.float32(beta1))  # beta ** (number of the update to come)
        self.beta2_power = tf.Variable(np.float32(beta2))

    def apply(self, gradients: Sequence[tf.Tensor | None], moving: tf.Tensor | None = None) -> None:
        """One update. While `moving` is False (all gradients are zero) the bias correction does not age either."""
        for variable, first, second, gradient in zip(self._variables, self.first, self.second, gradients, strict=True):
            if gradient is None:
                continue
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=self.beta1_power,
                beta2_power=self.beta2_power,
                grad=tf.convert_to_tensor(gradient),  # a gather's gradient is sparse
                **self._constants,
            )
        self._age(self.beta1_power, self._constants["beta1"], moving)
        self._age(self.beta2_power, self._constants["beta2"], moving)

    @staticmethod
    def _age(power: tf.Variable, beta: float, moving: tf.Tensor | None) -> None:
        power.assign(power * (beta if moving is None else tf.where(moving, beta, 1.0)))

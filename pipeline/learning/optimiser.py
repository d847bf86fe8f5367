"""Adam (Kingma & Ba 2015) over TensorFlow's fused kernel, with all its state in variables that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class Adam(tf.Module):
    """Over variables that learn together; or, with `policies`, whose second axis are policies that start to move each
    in its time, every one with a bias correction of its own. With another's its first steps would be up to
    (1 - beta1) / sqrt(1 - beta2), 3 times, too long.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        policies: int | None = None,
        decay: float = 0.0,
    ):
        """`decay`: the share of every kernel that an update takes away besides (Loshchilov & Hutter 2019)."""
        super().__init__()
        self._variables, self._per_policy = tuple(variables), policies is not None
        self._decay, self._kernels = decay, tuple(v for v in variables if decay and "kernel" in v.name)
        self._constants = {"lr": learning_rate, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self.first = [slot(v, "first") for v in variables]  # moments
        self.second = [slot(v, "second") for v in variables]
        shape = () if policies is None else (policies,)
        self.beta1_power = tf.Variable(np.full(shape, beta1, np.float32))  # beta ** (number of the update to come)
        self.beta2_power = tf.Variable(np.full(shape, beta2, np.float32))

    def apply(self, gradients: Sequence[tf.Tensor | None], moving: tf.Tensor | None = None) -> None:
        """One update. Who is not `moving`, [] or with policies [K], has gradients of 0, and does not age either."""
        if self._per_policy:
            self._apply_per_policy(gradients, moving)
        else:
            self._fused(gradients, self.beta1_power, self.beta2_power)
        for kernel in self._kernels:
            kernel.assign(kernel * (1 - self._decay))
        self._age(self.beta1_power, self._constants["beta1"], moving)
        self._age(self.beta2_power, self._constants["beta2"], moving)

    def _fused(self, gradients: Sequence[tf.Tensor | None], beta1_power: tf.Tensor, beta2_power: tf.Tensor) -> None:
        for variable, first, second, gradient in zip(self._variables, self.first, self.second, gradients, strict=True):
            if gradient is None:
                continue
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                grad=tf.convert_to_tensor(gradient),  # a gather's gradient is sparse
                **self._constants,
            )

    def _apply_per_policy(self, gradients: Sequence[tf.Tensor | None], moving: tf.Tensor) -> None:
        """The fused kernel has one correction for all: that of the oldest. Only while others move, too, that are
        younger, their steps are scaled afterwards."""
        powers = tf.convert_to_tensor(self.beta1_power), tf.convert_to_tensor(self.beta2_power)  # [K]
        oldest = tuple(tf.reduce_min(power) for power in powers)
        scale = _correction(*powers) / _correction(*oldest)

        def together() -> int:
            self._fused(gradients, *oldest)
            return 0

        def apart() -> int:
            before = [tf.identity(v) for v in self._variables]
            self._fused(gradients, *oldest)
            for variable, old in zip(self._variables, before, strict=True):
                of_policy = tf.reshape(scale, [1, -1, *[1] * (old.shape.rank - 2)])
                variable.assign(old + of_policy * (variable - old))
            return 0

        tf.cond(tf.reduce_any(moving & (scale != 1)), apart, together)

    @staticmethod
    def _age(power: tf.Variable, beta: float, moving: tf.Tensor | None) -> None:
        power.assign(power * (beta if moving is None else tf.where(moving, beta, 1.0)))


def _correction(beta1_power: tf.Tensor, beta2_power: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(1 - beta2_power) / (1 - beta1_power)


def slot(variable: tf.Variable, name: str) -> tf.Variable:
    """Named after its variable: where features change, its rows go the way of the variable's."""
    return tf.Variable(tf.zeros_like(variable), name=f"{variable.name.removesuffix(':0')}_{name}")

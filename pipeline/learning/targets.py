"""Networks that a learner looks ahead with: those that learn, or copies that follow them.

A copy is part of the learner's variables, and so of its checkpoints, with the count that says when it is due.
Source: Lillicrap et al. 2016 (polyak averages), Mnih et al. 2015 (periodic copies).
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Protocol

import tensorflow as tf


class Target(Protocol):
    networks: tf.Module

    def follow(self) -> None:
        """After each update."""


class NoTarget:
    def __init__(self, online: tf.Module) -> None:
        self.networks = online

    def follow(self) -> None:
        """The networks that learn are ahead of nobody."""


class Polyak(tf.Module):
    """Goes the `tau`-th part of the way with every update."""

    def __init__(self, online: tf.Module, copy: tf.Module, tau: float) -> None:
        super().__init__(name="polyak")
        self.networks, self._tau = copy, tau
        self._pairs = _paired(copy.trainable_variables, online.trainable_variables)

    def follow(self) -> None:
        for old, new in self._pairs:
            old.assign_add(self._tau * (new - old))


class Periodic(tf.Module):
    """Becomes equal with every `period`-th update."""

    def __init__(self, online: tf.Module, copy: tf.Module, period: int) -> None:
        super().__init__(name="periodic")
        self.networks, self._period = copy, period
        self.updates = tf.Variable(0, trainable=False, dtype=tf.int64, name="updates")
        self._pairs = _paired(copy.variables, online.variables)

    def follow(self) -> None:
        due = self.updates.assign_add(1) % self._period == 0
        tf.cond(due, self._copy, lambda: 0)  # and not tf.where, which would write every weight at every update

    def _copy(self) -> int:
        for old, new in self._pairs:
            old.assign(new)
        return 0


def _paired(copy: Several[tf.Variable], online: Several[tf.Variable]) -> tuple[tuple[tf.Variable, tf.Variable], ...]:
    pairs = tuple(zip(copy, online, strict=True))
    for old, new in pairs:
        old.assign(new)
    return pairs

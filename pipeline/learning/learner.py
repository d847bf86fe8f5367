"""What every learner is to the trainer and to the export: S seeds of K policies that learn together.

A learner is a `tf.Module` with one compiled `step`; its variables, all of them with a leading axis of seeds, are what a
checkpoint holds. The shapes here are those of every learner: B examples, N action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import model_inputs
from pipeline.learning.actions import ActionSpace, Served
from pipeline.learning.networks import Inputs


class Batch(NamedTuple):
    """Transitions, for every seed its own."""

    state: Inputs  # [S, B, ...]
    next_state: Inputs  # anything that is finite where discount is 0
    action: tf.Tensor  # [S, B, N] as executed
    reward: tf.Tensor  # [S, B]
    discount: tf.Tensor  # [S, B] 0 or 1, without gamma
    by_baseline: tf.Tensor  # [S, B] 1 where the baseline acted


class Evaluation(NamedTuple):
    value: tf.Tensor  # [S, K, B] of the baseline
    advantage: tf.Tensor  # [S, K, B] of the policy over it
    action: tf.Tensor  # [S, K, B, N] inside the range


class Learner(Protocol):
    space: ActionSpace
    actor: Served

    def step(self, batch: Batch, active: np.ndarray) -> dict[str, tf.Tensor]:
        """One update. `active` [K]: whose actor may move; the others stay where they are to the last bit.

        Returns means over the batch by the name they are logged under: of a seed [S], of a policy [S, K], of an action
        dimension [S, K, N].
        """

    def evaluate(self, inputs: Inputs) -> Evaluation:
        """Of the same states, [B, ...], by every seed."""


def inputs_spec(config: FeatureConfig, seeds: int | None = None) -> Inputs:
    lead = [None] if seeds is None else [seeds, None]
    return {i.name: tf.TensorSpec([*lead, *i.shape], i.dtype) for i in model_inputs(config)}


def batch_spec(config: FeatureConfig, seeds: int) -> Batch:
    state, vector = inputs_spec(config, seeds), tf.TensorSpec([seeds, None], tf.float32)
    action = tf.TensorSpec([seeds, None, len(config.action)], tf.float32)
    return Batch(state, dict(state), action, vector, vector, vector)


def for_seeds(inputs: Inputs, seeds: int) -> Inputs:
    """The same examples for every seed: [B, ...] -> [S, B, ...]."""
    return {name: tf.repeat(x[None], seeds, axis=0) for name, x in inputs.items()}

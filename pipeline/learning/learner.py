"""What every learner is to the trainer and to the export: S seeds of K policies that learn together.

A learner is a `tf.Module` with one compiled `step`; its variables, all of them with a leading axis of seeds, are what a
checkpoint holds. The shapes here are those of every learner: B examples, N action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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

    def steps(self, batches: Batch, active: np.ndarray) -> dict[str, tf.Tensor]:
        """Updates one after another, [n, S, B, ...]: what n calls of `step` do and return, as [n, ...]."""

    def evaluate(self, inputs: Inputs) -> Evaluation:
        """Of the same states, [B, ...], by every seed."""


def in_turn(step: Any) -> Callable[[Batch, np.ndarray], dict[str, tf.Tensor]]:
    """`steps` of a compiled `step`: what a call costs beside its arithmetic is paid once for all of them.

    Measured for a tower of 256x256: with a call for each update a quarter more time at batches of 256, and twice the
    time at batches of 32. XLA (`jit_compile`) brings nothing on top of that, and compiles for many seconds. It is
    compiled for each size of batch, of which a trainer has one: what depends on shapes is then computed only once.
    """
    compiled: dict[int, Any] = {}

    def steps(batches: Batch, active: np.ndarray) -> dict[str, tf.Tensor]:
        size = batches.reward.shape[-1]
        if size not in compiled:
            compiled[size] = _in_turn(step, size)
        return compiled[size](batches, active)

    return steps


def _in_turn(step: Any, size: int) -> Any:
    batch, active = step.input_signature
    batch = tf.nest.map_structure(lambda x: tf.TensorSpec([x.shape[0], size, *x.shape[2:]], x.dtype), batch)
    one = tf.function(step.python_function, input_signature=(batch, active), autograph=False)

    def steps(batches: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        returned = one.get_concrete_function().structured_outputs
        spec = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), returned)
        return tf.map_fn(lambda each: one(each, active), batches, fn_output_signature=spec, parallel_iterations=1)

    stacked = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape], x.dtype), batch)
    return tf.function(steps, input_signature=(stacked, active), autograph=False)


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

"""Means over the workers that learn together, inside a compiled step: see `together.py`. Of one alone they are its own.

Every worker's batch is as large as the others', so the mean over the workers of means over batches is the mean over all
of their examples. Where examples are chosen by a mask, the workers' masks count together: see `mean_count`.
"""

from __future__ import annotations

from typing import TypeVar

import tensorflow as tf

_T = TypeVar("_T")


def workers() -> int:
    return int(tf.distribute.get_replica_context().num_replicas_in_sync)


def averaged(tensors: _T) -> _T:
    """A structure of float tensors, each a mean over this worker's batch (or a gradient of one; None where there is
    none). All of it is one message to the others, who have to come to the same place."""
    number = workers()
    if number == 1:
        return tensors
    given = [x for x in tf.nest.flatten(tensors) if x is not None]
    totals = iter(summed([tf.convert_to_tensor(x) / number for x in given]))  # a gather's gradient is sparse
    return tf.nest.map_structure(lambda x: None if x is None else next(totals), tensors)


def mean_count(mask: tf.Tensor) -> tf.Tensor:
    """How many are chosen along the last axis, as a mean over the workers; at least 1 between them."""
    count, number = tf.reduce_sum(mask, axis=-1), workers()
    if number == 1:
        return tf.maximum(count, 1.0)
    return tf.maximum(summed([count])[0], 1.0) / number


def summed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    placed = [tf.identity(x) for x in tensors]  # an argument of a function lies nowhere yet
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed))

"""Actions to choose from: the levels of every dimension, combined. Shapes: M atoms, N action dimensions."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pipeline.config.grid import levels_of
from pipeline.config.schema import FeatureConfig

_DECIMALS = 9  # beyond which distances that mean to be equal may differ by rounding


class ActionGrid:
    """The atoms in baseline-centred units, nearest to the baseline first: atom 0 is the baseline itself.

    Pages are served with noise, so an executed action is hardly ever an atom. It counts as its nearest one: what is
    learned for an atom is the mean over the actions of its cell that were tried, weighed by how often they were. That
    is off by how unevenly the noise covers a cell that the reward bends or tilts in, and nearly all of what was clipped
    belongs to the outermost cells. More levels make cells smaller, and pages for each of them fewer.
    """

    def __init__(self, config: FeatureConfig) -> None:
        levels = [_units(config, i) for i in range(len(config.action))]
        product = np.stack([x.ravel() for x in np.meshgrid(*levels, indexing="ij")], axis=-1)
        order = _nearest_first(product)
        self.size = len(product)
        self.atoms = product[order].astype(np.float32)  # [M, N]
        self._atom_of = np.argsort(order).astype(np.int32)  # [M] by place in the product
        self._strides = [int(np.prod([len(x) for x in levels[i + 1 :]])) for i in range(len(levels))]
        self._borders = [((x[1:] + x[:-1]) / 2).astype(np.float32) for x in levels]

    def nearest(self, units: tf.Tensor) -> tf.Tensor:
        """The atom of each action, in units: [..., N] -> int32 [...]."""
        place = tf.zeros(tf.shape(units)[:-1], tf.int32)
        for i, (borders, stride) in enumerate(zip(self._borders, self._strides, strict=True)):
            above = units[..., i, None] > borders
            place += stride * tf.reduce_sum(tf.cast(above, tf.int32), axis=-1)
        return tf.gather(self._atom_of, place)

    def units(self, atom: tf.Tensor) -> tf.Tensor:
        """[...] -> [..., N]."""
        return tf.gather(self.atoms, atom)


def _units(config: FeatureConfig, i: int) -> np.ndarray:
    dimension = config.action[i]
    low, high = dimension.range
    levels = np.array(levels_of(dimension, config.algorithm.levels), np.float64)
    return (levels - dimension.baseline) / ((high - low) / 2)


def _nearest_first(points: np.ndarray) -> np.ndarray:
    """By distance from 0, then by the first coordinate, the second and so on."""
    distance = np.round(np.linalg.norm(points, axis=1), _DECIMALS)
    return np.lexsort((*points.T[::-1], distance))

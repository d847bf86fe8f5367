"""The state as a cell: what a table of values has rows for."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from pipeline.config.schema import Bits, Cell, Dense, Feature, FeatureConfig, HashedId, IdFeature
from pipeline.features.inputs import DENSE, dense_columns, hashed_rows, table_rows
from pipeline.learning.networks import Inputs

# A polynomial over the integers modulo a prime, by a multiplier whose powers are spread well (Fishman & Moore 1986,
# "An exhaustive analysis of multiplicative congruential random number generators with modulus 2^31 - 1"). Products fit
# 64 bits.
_PRIME = 2**31 - 1
_MULTIPLIER = 950_706_376


class Cells(tf.Module):
    """State inputs [S, B, ...] -> row [S, B], below `rows`.

    A cell is one combination of the values of the configured features: a dense feature's interval, an id's row, each
    bit. Where there are at most as many combinations as the config has rows every cell has a row of its own. Where
    there are more, cells are hashed into rows, and those that share one learn one value: the mean over their pages.
    With n cells in use and r rows a cell is alone with probability about exp(-n / r).
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="cells")
        features = {feature.name: feature for feature in config.features}
        self._parts = tuple((cell, features[cell.feature]) for cell in config.algorithm.cells)
        self._columns = dense_columns(config)
        self._sizes = [size for cell, feature in self._parts for size in _sizes(cell, feature, config)]
        self.exact = math.prod(self._sizes) <= config.algorithm.rows
        self.rows = math.prod(self._sizes) if self.exact else config.algorithm.rows

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        digits = [digit for part in self._parts for digit in self._digits(*part, inputs)]
        row = tf.zeros_like(digits[0])
        for digit, size in zip(digits, self._sizes, strict=True):
            row = row * size + digit if self.exact else (row * _MULTIPLIER + digit) % _PRIME
        return tf.cast(row if self.exact else row % self.rows, tf.int32)

    def _digits(self, cell: Cell, feature: Feature, inputs: Inputs) -> list[tf.Tensor]:
        """int64 [S, B], one per number that `_sizes` gives."""
        if isinstance(feature, Dense):
            value = inputs[DENSE][..., self._columns.index(feature.name), None]
            return [tf.reduce_sum(tf.cast(value > np.array(cell.cuts, np.float32), tf.int64), axis=-1)]
        if isinstance(feature, Bits):
            return tf.unstack(tf.cast(inputs[feature.name], tf.int64), axis=-1)
        return [tf.cast(inputs[feature.name], tf.int64)]


def _sizes(cell: Cell, feature: Feature, config: FeatureConfig) -> list[int]:
    """How many values each of the feature's numbers has."""
    match feature:
        case Dense():
            return [len(cell.cuts) + 1]
        case Bits():
            return [2] * feature.width
        case IdFeature():
            return [table_rows(config.embeddings[feature.embedding])]
        case HashedId():
            return [hashed_rows(feature)]
    msg = f"feature {feature.name} has no cells"
    raise AssertionError(msg)

"""Rows of embedding tables whose ids come and go: an id that gets a row begins with what served it before.

That is the row of its out-of-vocabulary bucket, which learned from all rare ids of the bucket: right after the change
policies act on the id as they did. The optimiser's moments of such a row are 0, as those of a row that never learned.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import FIRST_OOV_ROW, first_id_row, vocabularies
from pipeline.features.snapshot import Snapshot


class _Table(NamedTuple):
    first_row: int
    oov_buckets: int
    weights: tuple[tf.Variable, ...]  # [S, rows, dim], of each network that there is
    slots: tuple[tf.Variable, ...]  # of optimisers


class Tables:
    """Of a learner: those of vocabularies with a half-life. Owns nothing, changes the learner's variables."""

    def __init__(self, config: FeatureConfig, learner: tf.Module) -> None:
        fading = {name: v for name, v in vocabularies(config).items() if v.half_life is not None}
        self._tables = {
            name: _Table(first_id_row(v), v.oov_buckets, _named(learner, name, ""), _named(learner, name, "_[a-z]+"))
            for name, v in fading.items()
        }

    def hand_over(self, before: Snapshot, now: Snapshot) -> None:
        """The rows that have another id now, or their first."""
        for name, table in self._tables.items():
            places = changed(before.vocabularies[name], now.vocabularies[name])
            if len(places):
                ids = now.vocabularies[name][places]
                buckets = FIRST_OOV_ROW + (ids % np.uint64(table.oov_buckets)).astype(np.int64)
                _begin(table, places + table.first_row, buckets)


def changed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Where there is an id [n] that was not there before. Ids never become fewer."""
    same = np.zeros(len(now), bool)
    same[: len(before)] = now[: len(before)] == before
    return np.flatnonzero(~same)


def _begin(table: _Table, rows: np.ndarray, buckets: np.ndarray) -> None:
    for variable in table.weights:
        variable.scatter_nd_update(_at(variable, rows), tf.gather_nd(variable, _at(variable, buckets)))
    for variable in table.slots:
        variable.scatter_nd_update(_at(variable, rows), tf.zeros([variable.shape[0], len(rows), variable.shape[2]]))


def _at(variable: tf.Variable, rows: np.ndarray) -> np.ndarray:
    """[S, n, 2]: those rows of every seed."""
    seeds = np.arange(variable.shape[0])
    return np.stack(np.broadcast_arrays(seeds[:, None], rows[None]), axis=-1)


def _named(learner: tf.Module, table: str, suffix: str) -> tuple[tf.Variable, ...]:
    name = re.compile(rf"(critic_)?{table}_table{suffix}:0")
    return tuple(variable for variable in learner.variables if name.fullmatch(variable.name))

"""Rows of embedding tables whose ids come and go.

An id that gets a row begins with what served it before: the row of its out-of-vocabulary bucket, which learned from all
rare ids of the bucket. So right after the change policies act on the id as they did. The optimiser's moments of such a
row are 0, as those of a row that never learned. With `remember` a row that passes on is put away first, with its
moments, and an id that comes back begins with its own.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import xxhash

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import FIRST_OOV_ROW, canonical, first_id_row, vocabularies
from pipeline.features.snapshot import Snapshot
from pipeline.learning.shelf import Shelf, Spans

COLD, REMEMBERED = "cold", "remembered"


class _Table(NamedTuple):
    first_row: int
    oov_buckets: int
    weights: tuple[tf.Variable, ...]  # [S, rows, dim], of each network that there is
    slots: tuple[tf.Variable, ...]  # of optimisers
    shelved: str | None  # as what its rows are put away: another table of the name is another one


class Tables:
    """Of a learner: those of vocabularies with a half-life. Changes the learner's variables."""

    def __init__(self, config: FeatureConfig, learner: tf.Module, shelf: Shelf | None = None) -> None:
        """Without a shelf nothing is remembered."""
        self._shelf = shelf
        self._tables = {
            name: _Table(
                first_id_row(v), v.oov_buckets, _named(learner, name, ""), _named(learner, name, "_[a-z]+"),
                _shelved(config, name) if shelf and v.remember else None,
            )
            for name, v in vocabularies(config).items()
            if v.half_life is not None
        }  # fmt: skip
        self.begun: Counter[tuple[str, str]] = Counter()  # (table, COLD or REMEMBERED): ids that were given a row

    def hand_over(self, before: Snapshot, now: Snapshot) -> None:
        """The rows that have another id now, or their first."""
        for name, table in self._tables.items():
            former, ids = before.vocabularies[name], now.vocabularies[name]
            places = changed(former, ids)
            if not len(places):
                continue
            gone = places[places < len(former)]
            self._put_away(table, former[gone], gone + table.first_row)
            _begin(table, ids[places], places + table.first_row)
            came_back = self._take_out(table, ids[places], places + table.first_row)
            self.begun[name, REMEMBERED] += came_back
            self.begun[name, COLD] += len(places) - came_back

    def _put_away(self, table: _Table, ids: np.ndarray, rows: np.ndarray) -> None:
        if self._shelf is None or table.shelved is None:
            return
        read = [tf.gather_nd(v, _at(v, rows)).numpy() for v in _all(table)]  # [S, n, dim] each
        content = np.stack(read, axis=2).swapaxes(0, 1)  # [n, S, variables, dim]
        self._shelf.put(table.shelved, ids.tolist(), [row.tobytes() for row in content])

    def _take_out(self, table: _Table, ids: np.ndarray, rows: np.ndarray) -> int:
        """Returns how many there were."""
        if self._shelf is None or table.shelved is None:
            return 0
        kept = [
            (row, of_id) for row, of_id in zip(rows, self._shelf.get(table.shelved, ids.tolist()), strict=True) if of_id
        ]
        if not kept:
            return 0
        variables = _all(table)
        seeds, _, dim = variables[0].shape
        content = np.frombuffer(b"".join(of_id for _, of_id in kept), np.float32)
        content = content.reshape(len(kept), seeds, len(variables), dim).transpose(2, 1, 0, 3)
        at = _at(variables[0], np.array([row for row, _ in kept]))
        for variable, of_variable in zip(variables, content, strict=True):
            variable.scatter_nd_update(at, of_variable)
        return len(kept)

    # With the checkpoint ---------------------------------------------------------------------------------------------

    def keep(self) -> Spans:
        """See `Shelf`."""
        return self._shelf.keep() if self._shelf else ()

    def go_on(self, spans: Spans) -> None:
        if self._shelf:
            self._shelf.go_on(spans)

    def go_back(self, spans: Spans) -> None:
        if self._shelf:
            self._shelf.go_back(spans)


def changed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Where there is an id [n] that was not there before. Ids never become fewer."""
    same = np.zeros(len(now), bool)
    same[: len(before)] = now[: len(before)] == before
    return np.flatnonzero(~same)


def _begin(table: _Table, ids: np.ndarray, rows: np.ndarray) -> None:
    buckets = FIRST_OOV_ROW + (ids % np.uint64(table.oov_buckets)).astype(np.int64)
    for variable in table.weights:
        variable.scatter_nd_update(_at(variable, rows), tf.gather_nd(variable, _at(variable, buckets)))
    for variable in table.slots:
        variable.scatter_nd_update(_at(variable, rows), tf.zeros([variable.shape[0], len(rows), variable.shape[2]]))


def _all(table: _Table) -> tuple[tf.Variable, ...]:
    return (*table.weights, *table.slots)


def _at(variable: tf.Variable, rows: np.ndarray) -> np.ndarray:
    """[S, n, 2]: those rows of every seed."""
    seeds = np.arange(variable.shape[0])
    return np.stack(np.broadcast_arrays(seeds[:, None], rows[None]), axis=-1)


def _named(learner: tf.Module, table: str, suffix: str) -> tuple[tf.Variable, ...]:
    name = re.compile(rf"(critic_)?{table}_table{suffix}:0")
    return tuple(variable for variable in learner.variables if name.fullmatch(variable.name))


def _shelved(config: FeatureConfig, table: str) -> str:
    return f"{table}@{xxhash.xxh3_64_hexdigest(canonical(config.embeddings[table]))}"

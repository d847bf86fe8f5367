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

from pipeline.config.schema import DynamicVocabulary, FeatureConfig
from pipeline.features.inputs import FIRST_OOV_ROW, canonical, first_id_row, vocabularies
from pipeline.features.snapshot import Snapshot
from pipeline.learning.shelf import Shelf, Spans

COLD, REMEMBERED = "cold", "remembered"


class _Table(NamedTuple):
    first_row: int
    oov_buckets: int
    weights: tuple[tf.Variable, ...]  # [S, rows, dim], of each network that there is
    slots: tuple[tf.Variable, ...]  # of optimisers
    remembered: tuple[tf.Variable, ...]  # weights, then slots: where a row is put that was put away
    learned: tuple[tf.Variable, ...]  # where each of these is read
    shelved: str | None  # as what its rows are put away: another table of the name is another one


class Tables:
    """Of a learner: those of vocabularies with a half-life. Changes the learner's variables."""

    def __init__(self, config: FeatureConfig, learner: tf.Module, shelf: Shelf | None = None) -> None:
        """Without a shelf nothing is remembered.

        In pre-training rows are put away for another learner, that goes on from this one: as the `whole` of it will
        have them, each variable as the one that it `stands_for` has learned.
        """
        self._shelf = shelf
        self._tables = {
            name: _table(config, name, v, learner, remember=shelf is not None and v.remember)
            for name, v in vocabularies(config).items()
            if v.half_life is not None
        }
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
        read = [tf.gather_nd(v, _at(v, rows)).numpy() for v in table.learned]  # [S, n, dim] each
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
        variables = table.remembered
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


def _table(config: FeatureConfig, name: str, rule: DynamicVocabulary, learner: tf.Module, remember: bool) -> _Table:
    weights, slots = _variables(learner, name)
    whole, stands_for = getattr(learner, "whole", learner), getattr(learner, "stands_for", lambda variable: variable)
    remembered = sum(_variables(whole, name), ())
    learned = tuple(stands_for(variable) for variable in remembered)
    shelved = _shelved(config, name) if remember else None
    return _Table(first_id_row(rule), rule.oov_buckets, weights, slots, remembered, learned, shelved)


def _variables(learner: tf.Module, table: str) -> tuple[tuple[tf.Variable, ...], tuple[tf.Variable, ...]]:
    """Weights, and slots of optimisers."""
    return _named(learner, table, ""), _named(learner, table, "_[a-z]+")


def _at(variable: tf.Variable, rows: np.ndarray) -> np.ndarray:
    """[S, n, 2]: those rows of every seed."""
    seeds = np.arange(variable.shape[0])
    return np.stack(np.broadcast_arrays(seeds[:, None], rows[None]), axis=-1)


def _named(learner: tf.Module, table: str, suffix: str) -> tuple[tf.Variable, ...]:
    name = re.compile(rf"(critic_)?{table}_table{suffix}:0")
    return tuple(variable for variable in learner.variables if name.fullmatch(variable.name))


def _shelved(config: FeatureConfig, table: str) -> str:
    return f"{table}@{xxhash.xxh3_64_hexdigest(canonical(config.embeddings[table]))}"

"""Prepared rows -> model inputs, with the numbers of a snapshot: the half of encoding that needs parameters.

Many rows are computed by NumPy. One row, an agent's page, is computed in Python's own arithmetic, which rounds as
NumPy's does: the bits are the same, and a page that comes after others had the core pays for one interpreter that it
needs anyway, not for each of NumPy's functions (a third of the time: 26 for 72 us, after a pause 116 for 324).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.config.schema import Dense, FeatureConfig
from pipeline.features.inputs import (
    DENSE,
    FIRST_OOV_ROW,
    MISSING_ROW,
    first_id_row,
    has_indicator,
    mask_name,
    vocabularies,
)
from pipeline.features.layout import Layout
from pipeline.features.quantiles import positions
from pipeline.features.snapshot import Snapshot
from pipeline.features.values import transform

_ROWS_AT_ONCE = 512  # what is computed with them stays in the cache of a core

Columns = dict[str, np.ndarray]  # by the name of the model's input


class _Table(NamedTuple):
    hashes: np.ndarray  # uint64, sorted; the first is 0 = missing
    rows: np.ndarray  # int32


class Bound(NamedTuple):
    """A snapshot, ready to compute with."""

    mean: np.ndarray  # [n dense]
    std: np.ndarray  # infinite where too few values were seen
    scales: bool  # otherwise these are (x - 0) / 1
    tables: dict[str, _Table]
    knots: tuple[tuple[int, np.ndarray], ...]  # by column of the dense features
    one_by_one: tuple[tuple[float, float, float, float], ...]  # of the dense features: fill, mean, std, clip


class Finish:
    def __init__(self, config: FeatureConfig, layout: Layout) -> None:
        self._layout, self._head = layout, layout.head()
        self._oov_buckets = {name: vocabulary.oov_buckets for name, vocabulary in vocabularies(config).items()}
        self._first_rows = {name: first_id_row(vocabulary) for name, vocabulary in vocabularies(config).items()}
        self._clip = _numbers(math.inf if f.zscore is None else f.zscore.clip for f in layout.dense)
        self._fill = _numbers(_fill(f) for f in layout.dense)
        indicators = [f for f in config.features if has_indicator(f)]
        self._width = len(layout.dense) + len(indicators)
        at = {f.name: len(layout.dense) + i for i, f in enumerate(indicators)}
        self._dense_flags = [i for i, f in enumerate(layout.dense) if f.name in at]
        self._dense_flags_to = [at[layout.dense[i].name] for i in self._dense_flags]
        self._other_flags_to = [at[f.name] for f in layout.absent]

    def bind(self, snapshot: Snapshot) -> Bound:
        scales = [_scale(f, snapshot) for f in self._layout.dense]
        mean, std = (_numbers(each) for each in zip(*scales, strict=True)) if scales else (_numbers(()),) * 2
        tables = {name: _table(snapshot.vocabularies[name], first) for name, first in self._first_rows.items()}
        scaling = any(f.zscore is not None for f in self._layout.dense)
        knots = tuple((i, snapshot.quantiles[f.name]) for i, f in enumerate(self._layout.dense) if f.quantile)
        one_by_one = zip(*(x.tolist() for x in (self._fill, mean, std, self._clip)), strict=True)
        return Bound(mean, std, scaling, tables, knots, tuple(one_by_one))

    def columns(self, rows: np.ndarray, bound: Bound) -> Columns:
        """Prepared rows [B] -> inputs [B, ...]; a row's are the same to the last bit in a batch of any size."""
        columns = self._of_one(rows, bound) if len(rows) == 1 else self._of_many(rows, bound)
        for slot in self._layout.sequences:
            columns[slot.feature.name] = rows[slot.field].astype(np.float32, copy=False)
        return columns

    # Many rows -------------------------------------------------------------------------------------------------------

    def _of_many(self, rows: np.ndarray, bound: Bound) -> Columns:
        columns = {DENSE: self._dense(rows, bound)}
        for i, known in enumerate(self._layout.hashes):
            columns[known.name] = self._looked_up(known.embedding, rows["hashes"][:, i], bound)
        for i, bits in enumerate(self._layout.bits):
            columns[bits.name] = _unpacked(rows["bits"][:, i], bits.width)
        for i, fixed in enumerate(self._layout.rows):
            columns[fixed.name] = rows["rows"][:, i].copy()
        for i, slot in enumerate(self._layout.sequences):
            columns[mask_name(slot.feature.name)] = _mask(rows["lengths"][:, i], slot.feature.max_len)
        return columns

    def _dense(self, rows: np.ndarray, bound: Bound) -> np.ndarray:
        """[B, values and indicators]."""
        out = np.empty((len(rows), self._width), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self._fill_in(out[part], rows["dense"][part], bound)
        out[:, self._other_flags_to] = rows["absent"]
        return out

    def _fill_in(self, out: np.ndarray, dense: np.ndarray, bound: Bound) -> None:
        """[B, values and indicators] of [B, n dense]."""
        z = np.array(dense, order="C")
        missing = np.isnan(z)
        some = missing.any()
        if some:
            np.copyto(z, self._fill, where=missing)
        if bound.scales:
            z -= bound.mean
            z /= bound.std
            np.minimum(z, self._clip, out=z)
            np.maximum(z, -self._clip, out=z)
        for column, knots in bound.knots:
            z[:, column] = positions(z[:, column], knots)  # filled with the median: 0
        if some:
            np.copyto(z, 0.0, where=np.isnan(z))  # filled with the mean
        out[:, : z.shape[1]] = z
        out[:, self._dense_flags_to] = missing[:, self._dense_flags]

    def _looked_up(self, table: str, hashes: np.ndarray, bound: Bound) -> np.ndarray:
        known, rows = bound.tables[table]
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        oov = FIRST_OOV_ROW + (hashes % np.uint64(self._oov_buckets[table])).astype(np.int32)
        return np.where(known[at] == hashes, rows[at], oov)

    # One row ---------------------------------------------------------------------------------------------------------

    def _of_one(self, rows: np.ndarray, bound: Bound) -> Columns:
        layout = self._layout
        numbers = iter(self._head.unpack_from(rows.tobytes()))
        dense = [next(numbers) for _ in layout.dense]
        columns = {known.name: self._row_of(known.embedding, next(numbers), bound) for known in layout.hashes}
        for bits in layout.bits:
            columns[bits.name] = _unpacked_one(next(numbers), bits.width)
        for fixed in layout.rows:
            columns[fixed.name] = np.array([next(numbers)], np.int32)
        for slot in layout.sequences:
            length = next(numbers)
            mask = [1.0] * length + [0.0] * (slot.feature.max_len - length)
            columns[mask_name(slot.feature.name)] = np.array([mask], np.float32)
        columns[DENSE] = self._dense_of(dense, list(numbers), bound)
        return columns

    def _dense_of(self, dense: list[float], absent: list[int], bound: Bound) -> np.ndarray:
        out = [0.0] * self._width
        for i, (x, (fill, mean, std, clip)) in enumerate(zip(dense, bound.one_by_one, strict=True)):
            z = ((fill if x != x else x) - mean) / std
            out[i] = -clip if z < -clip else clip if z > clip else z
        for column, knots in bound.knots:
            out[column] = positions(np.array(out[column : column + 1]), knots)[0]
        for i, to in zip(self._dense_flags, self._dense_flags_to, strict=True):
            out[to] = float(dense[i] != dense[i])
        for to, flag in zip(self._other_flags_to, absent, strict=True):
            out[to] = float(flag)
        return np.array([[0.0 if z != z else z for z in out]], np.float32)

    def _row_of(self, table: str, wanted: int, bound: Bound) -> np.ndarray:
        known, rows = bound.tables[table]
        at = bisect_left(known.data, wanted)
        if at < len(known) and known[at] == wanted:
            return rows[at : at + 1]
        return np.array([FIRST_OOV_ROW + wanted % self._oov_buckets[table]], np.int32)


def _numbers(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), np.float64)


def _fill(feature: Dense) -> float:
    """What stands in for a missing value, transformed; NaN for the mean and the median (0 once normalised)
    and where none may be."""
    fill = feature.missing.fill if feature.missing else None
    return transform(feature)(fill) if isinstance(fill, float | int) else math.nan


def _scale(feature: Dense, snapshot: Snapshot) -> tuple[float, float]:
    """Mean and divisor: (x - 0) / 1 is x, exactly; (x - mean) / inf is 0."""
    if feature.zscore is None:
        return 0.0, 1.0
    moments = snapshot.moments[feature.name]
    if moments.count < feature.zscore.min_count:
        return 0.0, math.inf
    return moments.mean, max(moments.std, feature.zscore.min_std)


def _table(hashes: np.ndarray, first_row: int) -> _Table:
    order = np.argsort(hashes)
    known = np.concatenate([np.zeros(1, np.uint64), hashes[order]])
    rows = np.concatenate([[MISSING_ROW], first_row + order]).astype(np.int32)
    rows.flags.writeable = False  # what is found for one row is a view of them
    return _Table(known, rows)


def _unpacked(bits: np.ndarray, width: int) -> np.ndarray:
    """[B] -> float32 [B, width], bit 0 first."""
    octets = np.ascontiguousarray(bits, "<u8").view(np.uint8).reshape(len(bits), 8)
    return np.unpackbits(octets, axis=1, count=width, bitorder="little").astype(np.float32)


def _unpacked_one(bits: int, width: int) -> np.ndarray:
    return np.array([[bits >> i & 1 for i in range(width)]], np.float32)


def _mask(lengths: np.ndarray, max_len: int) -> np.ndarray:
    return (np.arange(max_len) < lengths[:, None]).astype(np.float32)

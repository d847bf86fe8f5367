"""Raw features -> model inputs, in two halves: `prepare` needs no parameters, `finish` is vectorised over a batch.

The same code runs in the agent (one page at a time) and in the trainer (batches). `finish` uses only elementwise
arithmetic that IEEE 754 rounds exactly, so that the size of a batch changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.schema import Bits, Dense, FeatureConfig, GraphTable, HashedId, IdFeature, RangeVocabulary
from pipeline.features.errors import FeatureError, MissingVector, SnapshotError
from pipeline.features.inputs import (
    DENSE,
    FIRST_OOV_ROW,
    HASHED_MISSING_ROW,
    MISSING_ROW,
    RANGE_OOV_ROWS,
    Part,
    config_sha,
    first_id_row,
    has_indicator,
    mask_name,
    model_inputs,
    part_of,
    vocabularies,
)
from pipeline.features.layout import Layout
from pipeline.features.quantiles import positions
from pipeline.features.snapshot import Snapshot
from pipeline.features.values import bit_field, canonical_id, decimal, id_hash, raw_reader, transform
from pipeline.features.vectors import VectorSource, block, fetch, lookup, planner
from pipeline.records import Item, Lookup, State

__all__ = ["Encoder", "FeatureError", "MissingVector", "Prepared", "VectorSource"]

_SNAPSHOTS_IN_USE = 16  # stable and canary of every policy, and then some
_ROWS_AT_ONCE = 512  # what is computed with them stays in the cache of a core


class Prepared(NamedTuple):
    row: np.ndarray  # [1] of Encoder.prepared_dtype, read-only
    lookups: dict[str, Lookup]  # by sequence feature: what to log with the page


class Encoder:
    """Of one part of a config's features: those of states, or those of items."""

    def __init__(self, config: FeatureConfig, vectors: VectorSource | None = None, part: Part = "state") -> None:
        self.config_sha = config_sha(config)
        config = part_of(config, part)
        self.inputs = model_inputs(config)
        layout = Layout.of(config)
        self.prepared_dtype = layout.dtype()
        self._layout = layout
        self._source = vectors
        self._head = layout.head()
        self._scalars = _scalar_readers(layout, config)
        self._plan = tuple(planner(slot) for slot in layout.sequences)
        self._absent = tuple(raw_reader(f) for f in layout.absent)
        self._finish = _Finish(config, layout)
        self._bound = lru_cache(maxsize=_SNAPSHOTS_IN_USE)(self._finish.bind)

    def prepare(self, state: State) -> Prepared:
        """Check, transform and hash the raw features; fetch the vectors.

        Where the state carries logged look-ups they are obeyed: only ids that were hits are fetched, from the logged
        epoch. FeatureError where a raw value is not what the config promises.
        """
        scalars = [read(state) for read in self._scalars]
        plans = [plan(state) for plan in self._plan]
        answers = fetch(plans, self._source)
        lengths = [len(plan.ids) for plan in plans]
        absent = [read(state) is None for read in self._absent]
        head = self._head.pack(*scalars, *lengths, *absent)
        blocks = [block(plan, vectors) for plan, vectors in zip(plans, answers, strict=True)]
        lookups = {plan.slot.feature.name: lookup(plan, v) for plan, v in zip(plans, answers, strict=True)}
        return Prepared(np.frombuffer(b"".join((head, *blocks)), self.prepared_dtype), lookups)

    def prepare_items(self, items: Sequence[Item]) -> np.ndarray:
        """[n items] of `prepared_dtype`. An item is read as a state that has nothing but the item's features, in the
        place of the page's."""
        return self.stack([self.prepare(State(page=item.features)) for item in items])

    def stack(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """The rows of many states as one array [n]; much faster than np.concatenate on records."""
        return np.frombuffer(b"".join([p.row.tobytes() for p in prepared]), self.prepared_dtype)

    def finish(self, rows: np.ndarray, snapshot: Snapshot) -> dict[str, np.ndarray]:
        """Prepared rows [B] -> model inputs [B, ...], in the order of `model_inputs`.

        float32 sequences are views of the rows: whoever feeds a model copies them anyway.
        """
        if snapshot.config_sha != self.config_sha:
            message = f"expected parameters of config {self.config_sha[:12]}, found those of {snapshot.config_sha[:12]}"
            raise SnapshotError(message)
        if rows.dtype != self.prepared_dtype or rows.ndim != 1:
            msg = f"expected prepared rows [B] of this config, found {rows.shape} of another layout"
            raise SnapshotError(msg)
        columns = self._finish.columns(rows, self._bound(snapshot))
        return {i.name: columns[i.name] for i in self.inputs}


# prepare ---------------------------------------------------------------------------------------------------------


def _scalar_readers(layout: Layout, config: FeatureConfig) -> tuple[Callable[[State], float], ...]:
    """One reader per number of the row's head, in its order."""
    return (
        *(_or(math.nan, f, transform(f)) for f in layout.dense),
        *(_or(0, f, _hash(f)) for f in layout.hashes),
        *(_or(0, f, _bits(f)) for f in layout.bits),
        *(_fixed_row(f, config) for f in layout.rows),
    )


def _or(default: float, feature: Any, convert: Callable[[Any], float]) -> Callable[[State], float]:
    raw = raw_reader(feature)

    def read(state: State) -> float:
        value = raw(state)
        return default if value is None else convert(value)

    return read


def _hash(feature: IdFeature | HashedId) -> Callable[[object], int]:
    return lambda value: id_hash(feature, value)


def _bits(feature: Bits) -> Callable[[object], int]:
    return lambda value: bit_field(feature, value)


def _fixed_row(feature: IdFeature | HashedId, config: FeatureConfig) -> Callable[[State], float]:
    if isinstance(feature, HashedId):
        return _or(HASHED_MISSING_ROW, feature, lambda value: 1 + id_hash(feature, value) % feature.buckets)
    table = config.embeddings[feature.embedding]
    assert isinstance(table, GraphTable)
    assert isinstance(table.vocabulary, RangeVocabulary)
    size = table.vocabulary.size

    def row(value: object) -> int:
        number = decimal(canonical_id(feature, value))
        if number is None or number >= size:
            return FIRST_OOV_ROW
        return FIRST_OOV_ROW + RANGE_OOV_ROWS + number

    return _or(MISSING_ROW, feature, row)


# finish ----------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    hashes: np.ndarray  # uint64, sorted; the first is 0 = missing
    rows: np.ndarray  # int32


class _Bound(NamedTuple):
    """A snapshot, ready to compute with."""

    mean: np.ndarray  # [n dense]
    std: np.ndarray  # infinite where too few values were seen
    scales: bool  # otherwise these are (x - 0) / 1
    tables: dict[str, _Table]
    knots: tuple[tuple[int, np.ndarray], ...]  # by column of the dense features


class _Finish:
    def __init__(self, config: FeatureConfig, layout: Layout) -> None:
        self._layout = layout
        self._vocabularies = vocabularies(config)
        self._clip = _numbers(math.inf if f.zscore is None else f.zscore.clip for f in layout.dense)
        self._fill = _numbers(_fill(f) for f in layout.dense)
        indicators = [f for f in config.features if has_indicator(f)]
        self._width = len(layout.dense) + len(indicators)
        at = {f.name: len(layout.dense) + i for i, f in enumerate(indicators)}
        self._dense_flags = [i for i, f in enumerate(layout.dense) if f.name in at]
        self._dense_flags_to = [at[layout.dense[i].name] for i in self._dense_flags]
        self._other_flags_to = [at[f.name] for f in layout.absent]

    def bind(self, snapshot: Snapshot) -> _Bound:
        scales = [_scale(f, snapshot) for f in self._layout.dense]
        tables = {name: _table(snapshot.vocabularies[name], first_id_row(v)) for name, v in self._vocabularies.items()}
        scaling = any(f.zscore is not None for f in self._layout.dense)
        knots = tuple((i, snapshot.quantiles[f.name]) for i, f in enumerate(self._layout.dense) if f.quantile)
        return _Bound(_numbers(mean for mean, _ in scales), _numbers(std for _, std in scales), scaling, tables, knots)

    def columns(self, rows: np.ndarray, bound: _Bound) -> dict[str, np.ndarray]:
        columns = {DENSE: self._dense(rows, bound)}
        for i, known in enumerate(self._layout.hashes):
            columns[known.name] = self._looked_up(known.embedding, rows["hashes"][:, i], bound)
        for i, bits in enumerate(self._layout.bits):
            columns[bits.name] = _unpacked(rows["bits"][:, i], bits.width)
        for i, fixed in enumerate(self._layout.rows):
            columns[fixed.name] = rows["rows"][:, i].copy()
        for i, slot in enumerate(self._layout.sequences):
            columns[slot.feature.name] = rows[slot.field].astype(np.float32, copy=False)
            columns[mask_name(slot.feature.name)] = _mask(rows["lengths"][:, i], slot.feature.max_len)
        return columns

    def _dense(self, rows: np.ndarray, bound: _Bound) -> np.ndarray:
        """[B, values and indicators]."""
        out = np.empty((len(rows), self._width), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self._fill_in(out[part], rows["dense"][part], bound)
        out[:, self._other_flags_to] = rows["absent"]
        return out

    def _fill_in(self, out: np.ndarray, dense: np.ndarray, bound: _Bound) -> None:
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

    def _looked_up(self, table: str, hashes: np.ndarray, bound: _Bound) -> np.ndarray:
        known, rows = bound.tables[table]
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        oov = FIRST_OOV_ROW + (hashes % np.uint64(self._vocabularies[table].oov_buckets)).astype(np.int32)
        return np.where(known[at] == hashes, rows[at], oov)


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
    return _Table(known, np.concatenate([[MISSING_ROW], first_row + order]).astype(np.int32))


def _unpacked(bits: np.ndarray, width: int) -> np.ndarray:
    """[B] -> float32 [B, width], bit 0 first."""
    octets = np.ascontiguousarray(bits, "<u8").view(np.uint8).reshape(len(bits), 8)
    return np.unpackbits(octets, axis=1, count=width, bitorder="little").astype(np.float32)


def _mask(lengths: np.ndarray, max_len: int) -> np.ndarray:
    return (np.arange(max_len) < lengths[:, None]).astype(np.float32)

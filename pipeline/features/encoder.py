"""Raw features -> model inputs, in two halves: `prepare` needs no parameters, `finish` is vectorised over a batch.

The same code runs in the agent (one page at a time) and in the trainer (batches). `finish` uses only elementwise
arithmetic that IEEE 754 rounds exactly, so that the size of a batch changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.schema import Bits, FeatureConfig, GraphTable, HashedId, IdFeature, RangeVocabulary
from pipeline.features.errors import FeatureError, MissingVector, SnapshotError
from pipeline.features.finishing import Finish
from pipeline.features.inputs import (
    FIRST_OOV_ROW,
    HASHED_MISSING_ROW,
    MISSING_ROW,
    RANGE_OOV_ROWS,
    Part,
    config_sha,
    model_inputs,
    part_of,
)
from pipeline.features.layout import Layout
from pipeline.features.snapshot import Snapshot
from pipeline.features.values import bit_field, canonical_id, decimal, id_hash, raw_reader, transform
from pipeline.features.vectors import VectorSource, block, fetch, lookup, planner
from pipeline.records import Item, Lookup, State

__all__ = ["Encoder", "FeatureError", "MissingVector", "Prepared", "VectorSource"]

_SNAPSHOTS_IN_USE = 16  # stable and canary of every policy, and then some


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
        self._finish = Finish(config, layout)
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
        if len(prepared) == 1:
            return prepared[0].row
        return np.frombuffer(b"".join([p.row.tobytes() for p in prepared]), self.prepared_dtype)

    def finish(self, rows: np.ndarray, snapshot: Snapshot) -> dict[str, np.ndarray]:
        """Prepared rows [B] -> model inputs [B, ...], in the order of `model_inputs`.

        float32 sequences are views of the rows, and ids of a single row of the snapshot's table, read-only: whoever
        feeds a model copies them anyway.
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
